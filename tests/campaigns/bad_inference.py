"""Bad inputs to check_dataset.py, eval_seg.py, predict_seg.py and export_seg.py."""

import os

from campaigns.bad_case import DATA_REFUSED, DATA_WARNED, NAMES, REFUSED, SOME_FAILED, WARNED, WEIGHTS, add, clutter


def checking():
    def check(name, *words, **details):
        add(
            f"check {name}",
            "check_dataset",
            "--dataset",
            "folder",
            "--workers",
            "0",
            "--output",
            "check.json",
            *words,
            **({"writes": ("check.json",)} | details),
        )

    for name, says, line in DATA_REFUSED:
        if name == "photo_one_pixel.png":
            continue
        check(f"data {name}", "--data.root", f"@/data/{name}", code=(1, 2), says=says, line=line)
    for name, says, line in DATA_WARNED:
        said = "ready|error" if "done" in says else says
        check(
            f"data {name}",
            "--data.root",
            f"@/data/{name}",
            code=(0, 1),
            says=said,
            line=line,
        )
    for name in ("photo_float.tif", "photo_int16.tif"):
        says = (r"images/train/0\.tif", r"16|float|range|8.bit")
        check(
            f"data {name}",
            "--data.root",
            f"@/data/{name}",
            code=(0, 1),
            says=says,
            line="4",
        )
    good = ("--data.root", "@/data/good")
    for name, words, says, details in (
        ("root missing", ("--data.root", "nowhere"), "nowhere", {}),
        ("root photo", ("--data.root", "@/photos/good.jpg"), r"good\.jpg", {}),
        ("root empty", ("--data.root", "@/photos/nothing"), r"nothing", {}),
        ("limit", (*good, "--limit", "-1"), r"--limit .*-1", {}),
        ("workers", (*good, "--workers", "-1"), r"--workers .*-1", {}),
        ("workers huge", (*good, "--workers", "100000"), "ready|workers", {"code": (0, 2)}),
        ("limit word", (*good, "--limit", "few"), r"--limit.*few", {}),
        ("split unknown", (*good, "--splits", "train,dev"), r"dev", {"code": (1, 2)}),
        ("split empty", (*good, "--splits", "train,"), r"split ''|empty", {"code": (1, 2)}),
        ("split twice", (*good, "--splits", "train,train"), r"train", {"code": (0, 1, 2)}),
        ("option unknown", (*good, "--fix"), r"--fix", {}),
        ("classes missing", (*good, "--data.classes", "nowhere.csv"), r"nowhere\.csv", {}),
        ("classes folder", (*good, "--data.classes", "@/photos/nothing"), r"nothing", {}),
        ("output exists", (*good, "--output", "file"), r"file.*exists", {"line": "0"}),
        ("output folder", (*good, "--output", "full"), r"full", {"line": "0"}),
        ("output below file", (*good, "--output", "file/check.json"), r"file", {"line": "0"}),
        ("output long", (*good, "--output", "n" * 300), r"nnn.*too long", {}),
        ("output proc", (*good, "--output", "/proc/nothing/check.json"), r"/proc/nothing", {}),
    ):
        check(name, *words, says=says, **({"prepare": clutter, "writes": ("check.json",)} | details))
    for name, place in NAMES:
        check(f"output named {name}", *good, "--output", place, code=(0, 1), says="report", writes=(place,), line="20")
    add("check nothing", "check_dataset", says="--dataset")
    add("check dataset unknown", "check_dataset", "--dataset", "voc", says=r"unknown data set 'voc'")
    for name in ("ade20k", "cityscapes", "camvid"):
        add(
            f"check {name} in another layout",
            "check_dataset",
            "--dataset",
            name,
            "--data.root",
            "@/data/good",
            says=r"data/good",
        )


def evaluating():
    def evaluate(name, *words, checkpoint="@/run", **details):
        add(
            f"eval {name}",
            "eval_seg",
            "--checkpoint",
            checkpoint,
            "--workers",
            "0",
            "--output",
            "eval.json",
            *words,
            **({"writes": ("eval.json", "eval.images.jsonl")} | details),
        )

    for name, says in (
        *WEIGHTS,
        ("nan.safetensors", r"nan\.safetensors|finite|nan"),
        ("classifier.safetensors", r"classif"),
        ("seven.safetensors", r"7|classes"),
        ("nothing", r"nothing"),
    ):
        words = ("--dataset", "folder", "--data.root", "@/data/good")
        evaluate(f"checkpoint {name}", *words, checkpoint=f"@/weights/{name}", says=says)
    for name in ("cut.onnx", "text.onnx", "text.xml", "text.pt2", "empty.onnx", "missing.onnx"):
        evaluate(f"exported {name}", checkpoint=f"@/{name}", says=name.replace(".", r"\."))
    for name, words, says, details in (
        ("option unknown", ("--fast",), "--fast", {}),
        ("dataset unknown", ("--dataset", "voc"), r"unknown data set 'voc'", {}),
        ("other classes", ("--dataset", "synthetic", "--limit", "1"), r"classes", {}),
        ("root missing", ("--data.root", "nowhere"), "nowhere", {}),
        ("split unknown", ("--split", "dev"), r"dev.*(train|val)", {}),
        ("no test split", ("--split", "test"), r"test", {}),
        ("protocol unknown", ("--protocols", "whole,fast"), r"'fast'", {}),
        ("protocol empty", ("--protocols", ""), r"protocol ''", {}),
        ("protocol twice", ("--protocols", "whole,whole"), r"whole", {}),
        ("limit 0", ("--limit", "0"), r"--limit .*0", {}),
        ("limit -1", ("--limit", "-1"), r"--limit .*-1", {}),
        ("batch 0", ("--batch", "0"), r"--batch .*0", {}),
        ("memory 0", ("--eval.memory", "0"), r"--eval\.memory .*0", {}),
        ("memory word", ("--eval.memory", "much"), r"much", {}),
        ("workers -1", ("--workers", "-1"), r"--workers .*-1", {}),
        ("device", ("--device", "abacus"), r"abacus", {}),
        ("device far", ("--device", "cuda:99"), r"cuda:99", {}),
        ("precision", ("--precision", "fp8"), r"fp8", {}),
        ("precision fp16", ("--device", "cpu", "--precision", "fp16"), r"fp16", {}),
        ("ids", ("--ids", "colour"), r"colour", {}),
        ("boundary 0", ("--boundaries", "--boundary-width", "0"), r"boundary.width", {"line": "0"}),
        ("boundary nan", ("--boundaries", "--boundary-width", "nan"), r"boundary.width", {"line": "0"}),
        ("boundary -1", ("--boundaries", "--boundary-width", "-1"), r"boundary.width", {"line": "0"}),
        ("boundary huge", ("--boundaries", "--boundary-width", "1e9"), r"boundary.width", {"line": "0"}),
        ("tolerance -1", ("--boundaries", "--boundary-tolerance", "-1"), r"boundary.tolerance", {"line": "0"}),
        ("tolerance inf", ("--boundaries", "--boundary-tolerance", "inf"), r"boundary.tolerance", {"line": "0"}),
        ("submission limit", ("--submission", "s.zip", "--limit", "1"), r"--limit|submission", {}),
        ("submission of folder", ("--submission", "s.zip"), r"submission|Cityscapes|ADE20K|folder", {}),
        ("compare missing", ("--compare", "nowhere.json"), r"nowhere\.json", {}),
        ("compare text", ("--compare", "@/reports/text.json"), r"text\.json", {}),
        ("compare empty", ("--compare", "@/reports/empty.json"), r"empty\.json", {}),
        ("compare list", ("--compare", "@/reports/list.json"), r"list\.json", {}),
        ("compare other", ("--compare", "@/reports/other.json"), r"other\.json", {}),
        ("compare deep", ("--compare", "@/reports/deep.json"), r"deep\.json", {"line": "22"}),
        ("compare photo", ("--compare", "@/photos/good.jpg"), r"good\.jpg", {}),
        ("compare folder", ("--compare", "@/photos"), r"photos", {}),
        ("output exists", ("--output", "file"), r"file already exists", {}),
        ("output folder", ("--output", "full"), r"full", {}),
        ("output below file", ("--output", "file/eval.json"), r"file", {"line": "0"}),
        ("output deep below file", ("--output", "file/x/y.json"), r"file", {"line": "0"}),
        ("output long", ("--output", "n" * 300), r"nnn", {"line": "0"}),
        ("output proc", ("--output", "/proc/nothing/eval.json"), r"/proc/nothing", {"line": "0"}),
        ("predictions exist", ("--save-predictions", "full"), r"full.*exists", {}),
        ("predictions file", ("--save-predictions", "file"), r"file.*exists", {}),
        ("predictions below file", ("--save-predictions", "file/p"), r"file", {"line": "0"}),
        (
            "predictions over a file",
            ("--save-predictions", "file", "--overwrite"),
            r"file",
            {"line": "0", "writes": ("eval.json", "eval.images.jsonl", "file")},
        ),
    ):
        evaluate(name, *words, says=says, **({"prepare": clutter} | details))
    for folder in ("good", "bracket_names", "bytes_in_name", "good.zip"):
        words = ("--data.root", f"@/data/{folder}", "--split", "train", "--save-predictions", "predictions")
        evaluate(
            f"predictions of {folder}",
            *words,
            code=WARNED,
            says="predictions: 4 PNGs",
            writes=("eval.json", "eval.images.jsonl", "predictions"),
            line="1",
            prepare=None,
        )
    evaluate(
        "predictions into photos",
        "--data.root",
        "@/data/good",
        "--save-predictions",
        "@/data/good/images",
        says="images.*exists",
    )
    evaluate(
        "predictions over photos",
        "--data.root",
        "@/data/good",
        "--save-predictions",
        "@/data/good/images",
        "--overwrite",
        says="images",
        line="1",
        code=(2,),
    )
    for name in (
        "photo_cut.png",
        "mask_cut",
        "mask_range",
        "mask_size",
        "mask_jpeg",
        "masks_ignored",
        "list_doubled_ids",
        "val_missing",
        "cut.zip",
    ):
        said = {
            "masks_ignored": "label",
            "list_doubled_ids": "classes.csv",
            "val_missing": "val",
            "cut.zip": "cut.zip",
        }.get(name, "train/0")
        evaluate(
            f"data {name}", "--data.root", f"@/data/{name}", "--split", "val" if "val" in name else "train", says=said
        )
    for name, place in NAMES:
        evaluate(f"output named {name}", "--output", place, code=WARNED, says="report", writes=(place,), line="20")
    add("eval nothing", "eval_seg", says="--checkpoint")


def predicting():
    def predict(name, *words, checkpoint="@/run", **details):
        output = () if "--output" in words else ("--output", "out")
        add(
            f"predict {name}",
            "predict_seg",
            "--checkpoint",
            checkpoint,
            *output,
            *words,
            **({"writes": ("out",)} | details),
        )

    good = "@/photos/good.jpg"
    for name, says, line in (
        ("empty.jpg", r"empty\.jpg", ""),
        ("text.jpg", r"text\.jpg", ""),
        ("text.txt", r"text\.txt", ""),
        ("cut.jpg", r"cut\.jpg", ""),
        ("cut.png", r"cut\.png", ""),
        ("cut.webp", r"cut\.webp", ""),
        ("liar.png", r"liar\.png", ""),
        ("bomb.png", r"bomb\.png.*30000 x 30000", "0"),
        ("nir.tif", r"nir\.tif.*(4|band|channel)", "4"),
        ("bands7.tif", r"bands7\.tif", "4"),
        ("nothing.jpg", r"nothing\.jpg", ""),
        ("nothing", r"nothing holds no image", ""),
        ("loop", r"loop", ""),
        ("*.bmp", r"\*\.bmp matches nothing", ""),
    ):
        said = (says, "1 not segmented")
        predict(
            f"photo {name[:20]}",
            good,
            f"@/photos/{name}",
            code=SOME_FAILED,
            says=said,
            line=line,
            limit=40,
        )
    for name, says, line in (
        ("rgb16.png", r"16.bit|range|uint16", "4"),
        ("grey16.png", r"16.bit|range|uint16", "4"),
        ("uint16.tif", r"16.bit|range|uint16", "4"),
        ("int16.tif", r"16.bit|range|int16|8.bit", "4"),
        ("float.tif", r"float|range|8.bit", "4"),
    ):
        predict(f"photo {name}", good, f"@/photos/{name}", code=(0, 1), says=says, line=line)
    for name in ("animated.webp", "animated.gif", "cmyk.jpg", "turned.jpg", "one_pixel.png", "thin.png"):
        predict(f"photo {name}", f"@/photos/{name}", code=WARNED, says="1 of 1 inputs segmented")
    predict(
        "names",
        "@/photos/names/with [[]brackets] and spaces.png",
        "@/photos/names/emoji 🌲.png",
        "@/photos/names/line\nbreak.png",
        "@/photos/names/[bold red]x[/bold red].png",
        os.fsdecode(b"@/photos/names/caf\xe9.jpg"),
        code=WARNED,
        says="5 of 5 inputs",
        line="20",
    )
    predict(
        "name of 250 letters",
        good,
        "@/photos/names/" + "n" * 250 + ".png",
        code=(0, 1),
        says=r"2 of 2|n{240}.*1 not segmented|1 not segmented.*n{240}",
        line="23",
    )
    predict(
        "names that are not there",
        "[/] nothing.png",
        "[red]x[/red].png",
        code=SOME_FAILED,
        says=(r"\[/\] nothing", r"\[red\]x\[/red\]"),
        line="20",
    )
    for name, words, says, details in (
        ("nothing", (), r"INPUT", {}),
        ("empty word", ("",), r"empty", {"code": SOME_FAILED}),
        ("option unknown", (good, "--fast"), r"--fast", {}),
        ("scales 0", (good, "--scales", "0"), r"scales?.*0", {}),
        ("scales nan", (good, "--scales", "nan"), r"scales?.*nan", {}),
        ("scales -1", (good, "--scales", "-1"), r"scales?.*-1", {}),
        ("scales 1e6", (good, "--scales", "1e6"), r"scales?.*1e.?0?6|1000000", {"line": "22"}),
        ("scales 1e-9", (good, "--scales", "1e-9"), r"scales?.*1e-0?9", {"line": "0"}),
        ("scales word", (good, "--scales", "big"), r"scales.*big", {}),
        ("tile 0", (good, "--tile", "0"), r"--tile .*0", {}),
        ("tile -1", (good, "--tile", "-1"), r"--tile .*-1", {}),
        ("tile huge", (good, "--tile", "10000000"), r"1 of 1|tile", {"code": (0, 1, 2), "line": "22"}),
        ("overlap = tile", (good, "--tile", "32", "--overlap", "32"), r"overlap .*32", {}),
        ("overlap -1", (good, "--tile", "32", "--overlap", "-1"), r"overlap .*-1", {}),
        ("overlap alone", (good, "--overlap", "8"), r"window|tile", {}),
        ("blend alone", (good, "--blend", "hann"), r"--blend.*--tile", {}),
        ("alpha 2", (good, "--alpha", "2"), r"--alpha .*2", {}),
        ("alpha nan", (good, "--alpha", "nan"), r"--alpha .*nan", {}),
        (
            "simplify inf",
            (good, "--write", "polygons", "--simplify", "inf"),
            r"--simplify .*inf",
            {"line": "22"},
        ),
        ("simplify nan", (good, "--write", "polygons", "--simplify", "nan"), r"--simplify .*nan", {}),
        ("simplify -1", (good, "--write", "polygons", "--simplify", "-1"), r"--simplify .*-1", {}),
        ("batch 0", (good, "--batch", "0"), r"--batch .*0", {}),
        ("frames 0", (good, "--frames", "0"), r"--frames .*0", {}),
        ("write", (good, "--write", "gold"), r"gold", {}),
        ("write twice", (good, "--write", "labels", "labels"), r"1 of 1|labels", {"code": (0, 2)}),
        ("protocol", (good, "--protocol", "fast"), r"'fast'", {}),
        ("device", (good, "--device", "abacus"), r"abacus", {}),
        ("device far", (good, "--device", "cuda:99"), r"cuda:99", {}),
        ("device meta", (good, "--device", "meta"), r"meta", {}),
        ("precision", (good, "--precision", "fp8"), r"fp8", {}),
        ("precision fp16", (good, "--device", "cpu", "--precision", "fp16"), r"fp16", {}),
        ("video text", ("@/photos/text.mp4",), r"text\.mp4", {"code": SOME_FAILED, "prepare": None}),
        ("camera", ("camera:77",), r"camera.*77", {"code": SOME_FAILED}),
        ("same place", (good, "@/photos/good.png"), r"2 of 2", {"code": WARNED}),
        (
            "output is input",
            ("@/photos/names", "--output", "@/photos/names"),
            r"output folder too",
            {"code": SOME_FAILED},
        ),
        ("output file", (good, "--output", "file"), r"file", {"line": "0"}),
        ("output below file", (good, "--output", "file/out"), r"file", {"line": "0"}),
        ("output long", (good, "--output", "n" * 300), r"nnn.*too long", {}),
        ("output proc", (good, "--output", "/proc/nothing"), r"/proc/nothing", {"code": (1, 2)}),
        ("large without tiles", ("@/photos/bomb.png",), r"--tile", {"code": SOME_FAILED}),
        (
            "large without rasterio",
            ("@/photos/bomb.png", "--tile", "512", "--write", "labels"),
            r"rasterio|30000",
            {"code": (1, 2), "without": ("rasterio",)},
        ),
    ):
        predict(name, *words, says=says, **({"prepare": clutter} | details))
    for name, says, code in (
        ("403.jpg", r"403", 1),
        ("404.jpg", r"404", 1),
        ("500.jpg", r"500", 1),
        ("page.html", r"page\.html.*not an image", 1),
        ("empty.jpg", r"empty\.jpg", 1),
        ("cut.jpg", r"cut\.jpg.*broke off", 1),
        ("ftp.jpg", r"ftp\.jpg", 1),
        ("file.jpg", r"file\.jpg", 1),
        ("round.jpg", r"round\.jpg", 1),
        ("endless.jpg", r"endless\.jpg.*bytes", 1),
        ("film.mp4", r"film\.mp4 is a video", 1),
    ):
        predict(
            f"address {name}",
            f"SITE/{name}",
            code=(code,),
            says=says,
        )
    for word in (
        "http://127.0.0.1:9/x.jpg",
        "http://",
        "ftp://127.0.0.1/x.jpg",
        "http://[",
        "http://127.0.0.1:99999/x.jpg",
        "file:///etc/passwd",
    ):
        predict(
            f"address {word}",
            word,
            code=SOME_FAILED,
            says=(word[:8].replace("[", r"\["), "not segmented"),
        )
    for name, says in (
        *WEIGHTS,
        ("nan.safetensors", r"nan\.safetensors|finite|nan"),
        ("classifier.safetensors", r"classifier"),
        ("nothing", r"nothing"),
    ):
        predict(f"checkpoint {name}", good, checkpoint=f"@/weights/{name}", says=says)
    predict("checkpoint unknown", good, checkpoint="deeplab_resnest51_ade", says=r"deeplab_resnest51_ade")
    predict("checkpoint address", good, checkpoint="https://example.org/x.pth", says=r"example\.org")
    for name in ("cut.onnx", "text.onnx", "text.xml", "text.pt2", "empty.onnx", "missing.onnx"):
        predict(f"exported {name}", good, checkpoint=f"@/{name}", says=name.replace(".", r"\."))
    for package, name in (("onnxruntime", "model.onnx"), ("openvino", "text.xml")):
        predict(
            f"without {package}",
            good,
            checkpoint=f"@/{name}",
            without=(package,),
            says=f"{package}.*not installed.*pip install",
        )
    predict(
        "existing results",
        good,
        prepare=results_are_there,
        says=r"good_labels\.png already exists",
        writes=(),
    )
    for name, place in NAMES:
        predict(f"output named {name}", good, "--output", place, code=WARNED, says="1 of 1", writes=(place,), line="20")


def results_are_there(work, root):
    (work / "out").mkdir()
    (work / "out" / "good_labels.png").write_text("somebody's")


def exporting():
    def export(name, *words, checkpoint="@/run", **details):
        output = () if "--output" in words else ("--output", "model.onnx")
        add(
            f"export {name}",
            "export_seg",
            "--checkpoint",
            checkpoint,
            *output,
            *words,
            **({"prepare": clutter} | details),
        )

    for name, says in (*WEIGHTS, ("nan.safetensors", r"nan\.safetensors|finite|nan"), ("nothing", r"nothing")):
        code = (1, 2) if name == "nan.safetensors" else REFUSED
        export(f"checkpoint {name}", checkpoint=f"@/weights/{name}", says=says, code=code)
    export("exported", checkpoint="@/model.onnx", says=r"model\.onnx")
    for name, words, says, details in (
        ("option unknown", ("--fast",), "--fast", {}),
        ("format", ("--format", "caffe"), r"caffe", {}),
        ("ending", ("--output", "model.caffe"), r"model\.caffe", {}),
        ("half and int8", ("--half", "--int8"), r"--half and --int8", {}),
        ("int8 torch", ("--int8", "--format", "torch"), r"--int8", {}),
        ("aoti", ("--aoti",), r"--aoti", {}),
        ("calibration 0", ("--int8", "--calibration-images", "0"), r"calibration-images .*0", {}),
        ("limit -1", ("--limit", "-1"), r"--limit .*-1", {}),
        ("layout", ("--layout", "chw"), r"chw", {}),
        ("pixels", ("--pixels", "int4"), r"int4", {}),
        ("result", ("--result", "gold"), r"gold", {}),
        ("dataset unknown", ("--dataset", "voc"), r"'voc'", {}),
        ("dataset missing", ("--dataset", "camvid", "--data.root", "nowhere"), r"nowhere", {}),
        ("split unknown", ("--dataset", "folder", "--split", "dev"), r"dev", {}),
        ("images missing", ("--images", "nowhere.jpg"), r"nowhere\.jpg", {}),
        ("images text", ("--images", "@/photos/text.jpg"), r"text\.jpg", {}),
        ("images cut", ("--images", "@/photos/cut.jpg"), r"cut\.jpg", {}),
        ("images bomb", ("--images", "@/photos/bomb.png"), r"bomb\.png", {"line": "0", "code": (1, 2)}),
        ("output exists", ("--output", "taken.onnx"), r"taken\.onnx already exists", {"prepare": taken}),
        ("output folder", ("--output", "full.onnx", "--overwrite"), r"full\.onnx", {"prepare": taken, "line": "0"}),
        ("output a folder", ("--output", "full"), r"full", {"line": "0"}),
        ("output below file", ("--output", "file/model.onnx"), r"file", {"line": "0"}),
        ("output long", ("--output", "n" * 300 + ".onnx"), r"nnn.*too long", {"line": "0"}),
        ("output proc", ("--output", "/proc/nothing/model.onnx"), r"/proc/nothing", {"line": "0"}),
        ("without onnx", (), r"onnx.*pip install", {"without": ("onnx", "onnxruntime", "onnxscript"), "code": (1, 2)}),
        (
            "without openvino",
            ("--format", "openvino", "--output", "model.xml"),
            r"openvino.*pip install",
            {"without": ("openvino",), "code": (1, 2)},
        ),
        ("int8 without data", ("--int8", "--dataset", "folder", "--data.root", "nowhere"), r"nowhere", {}),
    ):
        export(name, *words, says=says, **details)


def taken(work, root):
    (work / "taken.onnx").write_text("somebody's")
    (work / "full.onnx").mkdir()
    (work / "full.onnx" / "x").write_text("somebody's")


def fill():
    """Add them all."""
    checking()
    evaluating()
    predicting()
    exporting()
