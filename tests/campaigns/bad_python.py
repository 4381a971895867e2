"""Bad inputs to what the package offers in Python: each function is called with the folder of the fixtures."""


def of(name, *arguments, **options):
    """Call something of `resnest_seg`; `@/` in strings is the folder of the fixtures."""

    def call(root):
        import resnest_seg

        def real(value):
            return value.replace("@/", f"{root}/") if isinstance(value, str) else value

        thing = resnest_seg
        for part in name.split("."):
            thing = getattr(thing, part)
        return thing(*map(real, arguments), **{key: real(value) for key, value in options.items()})

    return call


def predictor(make_image, **options):
    """Predict what `make_image()` returns by the trained run."""

    def call(root):
        import resnest_seg

        opened = resnest_seg.Predictor.from_checkpoint(root / "run", **options)
        return opened(make_image(root))

    return call


def array(dtype, *shape, scale=1):
    def make(root):
        import numpy as np

        return (np.random.default_rng(0).random(shape) * scale).astype(dtype)

    return make


def pil(mode, suffix=""):
    def make(root):
        from PIL import Image

        return Image.new(mode, (40, 32))

    return make


def segmenting(make_tensor):
    """Call the trained `Segmenter` with a tensor."""

    def call(root):
        import torch

        import resnest_seg

        with torch.inference_mode():
            return resnest_seg.load_checkpoint(root / "run")(make_tensor(torch))

    return call


def evaluating(data="good", *, float_images=False, checkpoint="run", **options):
    """`evaluate` a checkpoint on a folder."""

    def call(root):
        import numpy as np

        import resnest_seg
        from resnest_seg.data.datasets import Sample

        class Floats(resnest_seg.FolderDataset):
            def __getitem__(self, index):
                sample = super().__getitem__(index)
                return Sample((sample.image / 255).astype(np.float32), sample.labels, sample.name)

        dataset = (Floats if float_images else resnest_seg.FolderDataset)(root / "data" / data, "train")
        return resnest_seg.evaluate(resnest_seg.load_checkpoint(root / checkpoint), dataset, **options)

    return call


def item(data, index=0):
    """Read a sample of a folder."""

    def call(root):
        import resnest_seg

        return resnest_seg.FolderDataset(root / "data" / data, "train")[index]

    return call


def multiscale(shape=(3, 32, 40), dtype="float32", **options):
    def call(root):
        import torch

        import resnest_seg

        image = torch.zeros(shape, dtype=getattr(torch, dtype))
        return resnest_seg.multiscale(lambda images: images.float()[:, :1].repeat(1, 3, 1, 1), image, **options)

    return call


def sliding(**options):
    def call(root):
        import torch

        import resnest_seg

        return resnest_seg.sliding_window(lambda images: images, torch.zeros(3, 64, 64), **options)

    return call


def counting(labels, predictions, dtype="int64"):
    """Count zeros of these shapes."""

    def call(root):
        import numpy as np

        import resnest_seg

        return resnest_seg.ConfusionMatrix(3).update(np.zeros(labels, dtype), np.zeros(predictions, dtype))

    return call


def loading(**options):
    """Load an epoch of a folder."""

    def call(root):
        import resnest_seg

        dataset = resnest_seg.FolderDataset(root / "data" / "good", "train")
        return list(resnest_seg.build_loader(dataset, **options))

    return call


def space(*, names=("sky", "road"), raw_ids=(0, 1), colors=((1, 2, 3), (4, 5, 6)), ignored=(255,)):
    def call(root):
        import resnest_seg

        return resnest_seg.LabelSpace("mine", names, colors, raw_ids, ignored)

    return call


def encode(value):
    def call(root):
        import numpy as np

        import resnest_seg

        return resnest_seg.LabelSpace.of("ade20k").encode(np.full((4, 4), value, np.uint8))

    return call


def encode_colors(root):
    import numpy as np

    import resnest_seg

    return resnest_seg.LabelSpace.of("camvid").encode_colors(np.full((4, 4, 3), 77, np.uint8))


def slow(root):
    import os

    from resnest_seg.inference.inputs import fetch_image
    from resnest_seg.io.downloads import Pace

    return fetch_image(os.environ["BAD_INPUTS_SITE"] + "/slow.jpg", pace=Pace(rate=4096, window=1.0))


def onnx(name="model.onnx", **options):
    def call(root):
        import resnest_seg

        return resnest_seg.OnnxPredictor(root / name, **options)

    return call


WARNED = {"code": (0,)}
QUICK = {}
L3 = {"line": "3"}

PYTHON = (
    ("load_checkpoint missing", of("load_checkpoint", "nowhere"), "nowhere", {}),
    ("load_checkpoint text", of("load_checkpoint", "@/weights/text.pth"), r"text\.pth", {}),
    ("load_checkpoint evil", of("load_checkpoint", "@/weights/evil.pth"), r"evil\.pth.*run code", {}),
    ("load_checkpoint liar", of("load_checkpoint", "@/weights/liar.safetensors"), r"liar\.safetensors", {}),
    (
        "load_checkpoint nan",
        of("load_checkpoint", "@/weights/nan.safetensors"),
        r"nan\.safetensors.*finite|nan\.safetensors.*nan",
        {"code": (0, 2)},
    ),
    ("load_checkpoint folder", of("load_checkpoint", "@/photos"), r"photos", {}),
    ("load_checkpoint photo", of("load_checkpoint", "@/photos/good.jpg"), r"good\.jpg", {}),
    ("load_checkpoint loop", of("load_checkpoint", "@/photos/loop"), r"loop", {}),
    ("load_checkpoint stride", of("load_checkpoint", "@/run", output_stride=7), r"output stride|7", {}),
    ("load_checkpoint dilation", of("load_checkpoint", "@/run", dilation="x"), r"dilation", {}),
    ("load_checkpoint NUL", of("load_checkpoint", "a\0b"), r"a\\?", {}),
    ("load_checkpoint long", of("load_checkpoint", "n" * 5000), r"nnn", {}),
    ("detection_backbone encoder", of("detection_backbone", "resnest51"), r"resnest51", {}),
    ("detection_backbone stages", of("detection_backbone", returned_stages=(3, 2)), r"returned_stages.*3, 2", {}),
    ("detection_backbone weights", of("detection_backbone", weights="nowhere.pth"), r"nowhere\.pth", {}),
    ("detection_backbone evil", of("detection_backbone", weights="@/weights/evil.pth"), r"evil\.pth.*run code", {}),
    ("load_run_config missing", of("load_run_config", "nowhere.yaml"), r"nowhere\.yaml", {}),
    ("load_run_config deep", of("load_run_config", "@/configs/deep.yaml"), r"deep\.yaml", {"line": "22"}),
    ("Predictor missing", of("Predictor.from_checkpoint", "nowhere"), r"nowhere", {}),
    (
        "Predictor nan",
        of("Predictor.from_checkpoint", "@/weights/nan.safetensors"),
        r"finite|nan",
        {"line": "13", "code": (0, 2)},
    ),
    ("Predictor classifier", of("Predictor.from_checkpoint", "@/weights/classifier.safetensors"), r"classifier", {}),
    ("Predictor device", of("Predictor.from_checkpoint", "@/run", device="abacus"), r"abacus", {}),
    ("Predictor protocol", of("Predictor.from_checkpoint", "@/run", protocol="fast"), r"'fast'", {}),
    ("Predictor precision", of("Predictor.from_checkpoint", "@/run", precision="fp8"), r"fp8", {}),
    ("Predictor tile 0", of("Predictor.from_checkpoint", "@/run", tile=0), r"tile.*0", {}),
    ("Predictor overlap", of("Predictor.from_checkpoint", "@/run", tile=32, overlap=32), r"overlap.*32", {}),
    ("Predictor overlap alone", of("Predictor.from_checkpoint", "@/run", overlap=4), r"window|tile", {}),
    ("Predictor batch 0", of("Predictor.from_checkpoint", "@/run", batch=0), r"batch.*0", {}),
    ("Predictor memory 0", of("Predictor.from_checkpoint", "@/run", memory=0), r"memory.*0", {"line": "17"}),
    ("Predictor memory -1", of("Predictor.from_checkpoint", "@/run", memory=-1), r"memory.*-1", {"line": "17"}),
    ("predict None", predictor(lambda root: None), r"NoneType", {}),
    ("predict number", predictor(lambda root: 5), r"int", {}),
    ("predict bytes", predictor(lambda root: b"photo"), r"bytes", {}),
    ("predict missing file", predictor(lambda root: "nowhere.jpg"), r"nowhere\.jpg", {}),
    ("predict folder", predictor(lambda root: root / "photos"), r"photos", {}),
    ("predict cut", predictor(lambda root: root / "photos/cut.jpg"), r"cut\.jpg", {}),
    ("predict NUL", predictor(lambda root: "a\0b"), r"a", {}),
    (
        "predict floats 0..1",
        predictor(array("float32", 32, 40, 3)),
        r"0\.\.1|0 ?\.\. ?1|float32",
        {**L3, "code": (0, 2)},
    ),
    ("predict uint16", predictor(array("uint16", 32, 40, 3, scale=4000)), r"uint16", {}),
    ("predict int64", predictor(array("int64", 32, 40, 3, scale=255)), r"int64 \[32, 40, 3\].*uint8", {}),
    ("predict transparent", predictor(array("uint8", 32, 40, 4)), r"\[32, 40, 4\].*transparent", {}),
    ("predict 5 channels", predictor(array("uint8", 32, 40, 5)), r"\[32, 40, 5\]", {}),
    ("predict normalised", predictor(lambda root: array("float32", 32, 40, 3)(root) - 0.5), r"0\.\.255", WARNED),
    ("predict floats 0..65535", predictor(array("float32", 32, 40, 3, scale=65535)), r"0\.\.255", {}),
    ("predict NaN", predictor(array("float32", 32, 40, 3, scale=float("nan"))), r"nan", {}),
    ("predict NCHW", predictor(array("uint8", 2, 3, 32, 40)), r"\[2, 3, 32, 40\].*transpose", {}),
    ("predict dictionary", predictor(lambda root: {"image": "a.jpg"}), r"dict", {}),
    ("predict ftp", predictor(lambda root: "ftp://localhost/a.jpg"), r"ftp", {}),
    ("predict CHW", predictor(array("uint8", 3, 32, 40)), r"\[3, 32, 40\]", {}),
    ("predict empty", predictor(array("uint8", 0, 40, 3)), r"\[0, 40, 3\]", {}),
    ("predict list with None", predictor(lambda root: [root / "photos/good.jpg", None]), r"NoneType", {}),
    ("predict empty list", predictor(lambda root: []), (), WARNED),
    ("predict PIL F", predictor(pil("F")), r"\bF\b|float|range", {"line": "4", "code": (0, 2)}),
    ("predict PIL I", predictor(pil("I")), r"\bI\b|32|range", {"line": "4", "code": (0, 2)}),
    (
        "predict 16-bit file",
        predictor(lambda root: root / "photos/rgb16.png"),
        r"16.bit|range|uint16",
        {"line": "4", "code": (0, 2)},
    ),
    (
        "segment floats 0..1",
        segmenting(lambda torch: torch.rand(1, 3, 64, 64)),
        r"0\.\.1|0\.\.255|255",
        {**L3, **WARNED},
    ),
    ("segment 4 channels", segmenting(lambda torch: torch.zeros(1, 4, 64, 64)), r"4|channels", {}),
    ("segment no batch", segmenting(lambda torch: torch.zeros(3, 64, 64)), r"3, 64, 64|shape|\[N", {}),
    ("evaluate protocol", evaluating(protocols=["fast"]), r"'fast'", {}),
    ("evaluate protocol twice", evaluating(protocols=["whole", "whole"]), r"whole", {}),
    ("evaluate no protocol", evaluating(protocols=[]), r"protocol", {}),
    ("evaluate no image", evaluating(indices=[]), r"label|image", {}),
    ("evaluate workers -1", evaluating(workers=-1), r"workers.*-1", {}),
    ("evaluate memory 0", evaluating(memory=0), r"memory.*0", {"line": "17"}),
    (
        "evaluate floats 0..1",
        evaluating(float_images=True),
        r"0\.\.1|0\.\.255|255",
        {**L3, "code": (0, 2)},
    ),
    ("evaluate nan", evaluating(checkpoint="weights/nan.safetensors"), r"finite|nan|no numbers", {"line": "13"}),
    ("evaluate other classes", evaluating(checkpoint="weights/seven.safetensors"), r"classes", {}),
    ("evaluate classifier", evaluating(checkpoint="weights/classifier.safetensors"), r"classif|classes", {}),
    ("evaluate broken mask", evaluating(data="mask_cut"), r"masks/train/0\.png", {}),
    ("evaluate all ignored", evaluating(data="masks_ignored"), r"label", {}),
    ("FolderDataset missing", of("FolderDataset", "nowhere"), r"nowhere", {}),
    ("FolderDataset split", of("FolderDataset", "@/data/good", "dev"), r"dev", {}),
    ("FolderDataset classes", of("FolderDataset", "@/data/good", "train", classes="nowhere.csv"), r"nowhere\.csv", {}),
    ("FolderDataset zip", of("FolderDataset", "@/data/cut.zip", "train"), r"cut\.zip", {}),
    ("FolderDataset NUL", of("FolderDataset", "a\0b", "train"), r"a", {}),
    ("FolderDataset encrypted", item("encrypted.zip"), r"encrypted\.zip", {}),
    ("FolderDataset bytes in list", of("FolderDataset", "@/data/split_latin", "train"), r"train\.txt", {"line": "22"}),
    ("FolderDataset list folder", of("FolderDataset", "@/data/list_folder", "train"), r"classes\.csv", {"line": "0"}),
    ("sample 2-bit mask", item("masks_bits2"), (), {"line": "5"} | WARNED),
    ("sample cut photo", item("photo_cut.png"), r"images/train/0\.png", {}),
    ("sample other size", item("mask_size"), r"0\.png", {}),
    ("sample four bands", item("photo_nir.tif"), r"0\.tif", {"line": "4"}),
    ("sample vp8x mask", item("mask_vp8x"), r"0\.webp.*lossy", {"line": "5"}),
    ("ADE20K in another layout", of("ADE20K", "@/data/good"), r"data/good", {}),
    ("Cityscapes in another layout", of("Cityscapes", "@/data/good"), r"data/good", {}),
    ("CamVid in another layout", of("CamVid", "@/data/good"), r"data/good", {}),
    ("LabelSpace unknown", of("LabelSpace.of", "voc"), r"'voc'", {}),
    ("LabelSpace numbered 0", of("LabelSpace.numbered", 0), r"\b0\b", {}),
    ("LabelSpace numbered 300", of("LabelSpace.numbered", 300), r"300", {}),
    ("LabelSpace numbered names", of("LabelSpace.numbered", 3, names=["a"]), r"names?", {}),
    ("LabelSpace from nothing", of("LabelSpace.from_dict", {}), r"name", {}),
    ("LabelSpace lengths", space(names=("sky",)), r"names?|colou?rs", {}),
    ("LabelSpace doubled ids", space(raw_ids=(1, 1)), r"\b1\b", {}),
    ("LabelSpace id 300", space(raw_ids=(1, 300)), r"300", {}),
    ("LabelSpace doubled names", space(names=("sky", "sky")), r"sky", {"line": "0"}),
    ("LabelSpace NUL", space(names=("sky\0", "road")), r"sky", {"line": "0"}),
    ("LabelSpace empty name", space(names=("", "road")), r"name", {"line": "0"}),
    ("LabelSpace encode", encode(151), r"151", {}),
    ("LabelSpace colours", encode_colors, r"77", {}),
    ("multiscale scales empty", multiscale(scales=()), r"scales", {}),
    ("multiscale scales 0", multiscale(scales=(0,)), r"scales.*0", {}),
    ("multiscale scales nan", multiscale(scales=(float("nan"),)), r"scales.*nan", {}),
    ("multiscale scales 1e9", multiscale(scales=(1e9,)), r"scales?", {"line": "22"}),
    ("multiscale scales 1e-9", multiscale(scales=(1e-9,)), r"scales?", {"line": "0"}),
    ("multiscale window -1", multiscale(window=-1), r"window.*-1", {}),
    ("multiscale overlap", multiscale(window=32, overlap=32), r"overlap.*32", {}),
    ("multiscale overlap alone", multiscale(overlap=8), r"window", {}),
    ("multiscale merge", multiscale(merge="max"), r"'max'", {}),
    ("multiscale batch 0", multiscale(batch=0), r"batch.*0", {}),
    ("multiscale grey", multiscale(shape=(32, 40)), r"32, 40|\[3, H, W\]", {}),
    ("multiscale empty batch", multiscale(shape=(0, 3, 32, 40)), r"\[0, 3, 32, 40\]", {}),
    ("multiscale batch of batches", multiscale(shape=(1, 1, 3, 32, 40)), r"32, 40|\[3, H, W\]", {}),
    ("sliding_window 0", sliding(window=0), r"window", {}),
    ("sliding_window overlap", sliding(window=32, overlap=32), r"overlap.*32|32", {}),
    ("sliding_window blend", sliding(window=32, overlap=8, blend="sinc"), r"'sinc'", {}),
    ("protocol unknown", of("protocol", "fast"), r"'fast'", {}),
    ("build_segmenter encoder", of("build_segmenter", "resnest51"), r"resnest51", {}),
    ("build_segmenter classes", of("build_segmenter", "resnest14_tiny", num_classes=0), r"class.*0|0.*class", {}),
    ("build_segmenter stride", of("build_segmenter", "resnest14_tiny", num_classes=3, output_stride=7), r"7", {}),
    ("build_segmenter smp head", of("build_segmenter", "resnest14_tiny", "unet", 3), r"smp:unet", {}),
    ("build_segmenter smp encoder", of("build_segmenter", "resnet34"), r"smp:resnet34", {}),
    ("build_segmenter text classes", of("build_segmenter", "resnest14_tiny", num_classes="3"), r"number.*'3'", {}),
    ("build_segmenter pretrained", of("build_segmenter", encoder_weights=True), r"imagenet.*True", {}),
    ("RunConfig from_dict", of("RunConfig.from_dict", {"optim": {"lrr": 1}}), r"optim\.lrr.*optim\.lr'", {}),
    ("RunConfig from_dict type", of("RunConfig.from_dict", {"train": {"epochs": "five"}}), r"epochs.*'five'", {}),
    ("RunConfig dictionary", of("RunConfig", model={"encoder": "resnest50"}), r"model.*from_dict", {}),
    ("ConfusionMatrix 0", of("ConfusionMatrix", 0), r"num_classes.*0", {}),
    ("ConfusionMatrix shapes", counting((4, 5), (5, 4)), r"\[4, 5\] and \[5, 4\]", {}),
    ("ConfusionMatrix scores", counting((2, 8), (2, 3, 8), dtype="float32"), r"float32", {}),
    (
        "build_loader sizes",
        loading(batch_size=2, transform=lambda image, labels, seed: (image[: 9 + seed % 7], labels[: 9 + seed % 7])),
        r"different sizes",
        {},
    ),
    ("build_loader batch", loading(batch_size=0), r"batch_size.*0", {}),
    ("build_loader transform", loading(transform=lambda image, labels, seed: (image / 255, labels)), r"float64", {}),
    ("Protocol step", of("Protocol", window=(8, 8), step=(16, 16)), r"step|overlap", {}),
    ("EvalReport text", of("EvalReport.load", "@/reports/text.json"), r"text\.json", {}),
    ("OnnxPredictor missing", onnx("nothing.onnx"), r"nothing\.onnx", {}),
    ("OnnxPredictor cut", onnx("cut.onnx"), r"cut\.onnx", {}),
    ("OnnxPredictor batch", onnx(batch=0), r"batch.*0", {}),
    ("OnnxPredictor memory", onnx(memory=-1), r"memory.*-1", {"line": "17"}),
    ("OnnxPredictor threads", onnx(threads=0), r"threads.*0", {}),
    ("OnnxPredictor tile", onnx(tile=0), r"tile.*0", {}),
    ("fetch_image slow", slow, r"slow\.jpg", {"line": "24", "limit": 20.0}),
)
