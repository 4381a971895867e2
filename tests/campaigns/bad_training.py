"""Bad inputs to tools/train_seg.py: configs, numbers, data, weights, outputs, and states to resume."""

import shutil

from campaigns.bad_case import DATA_REFUSED, DATA_WARNED, NAMES, REFUSED, WARNED, WEIGHTS, add, clutter


def train(name, *words, **details):
    """With a config of two steps on good data, unless the words name another."""
    given = {word.partition("=")[0] for word in words if isinstance(word, str)}
    start = [] if given & {"--config", "--resume", "--dataset"} else ["--config", "@/configs/good.yaml"]
    if start and "--data.root" not in given:
        start += ["--data.root", "@/data/good"]
    if "--output" not in given and start:
        start += ["--output", "run"]
    add(f"train {name}", "train_seg", *start, *words, **({"writes": ("run",)} | details))


def configs():
    good = "@/configs/good.yaml"
    for name, says in {
        "missing": r"no config file .*missing\.yaml",
        "folder": r"folder\.yaml",
        "loop": r"loop\.yaml",
        "empty": r"empty\.yaml must hold a mapping",
        "scalar": r"scalar\.yaml must hold a mapping",
        "list": r"list\.yaml must hold a mapping",
        "unknown": r"unknown key .*optimizer",
        "unknown_key": r"unknown key .*optim\.learning_rate",
        "group_null": r"eval .*mapping",
        "group_list": r"eval .*group_list\.yaml.*mapping",
        "type": r"data\.crop_size.*big",
        "float": r"data\.crop_size.*32\.5",
        "boolean": r"data\.crop_size.*true",
        "nan": r"optim\.lr .*not nan",
        "infinite": r"optim\.lr .*not inf",
        "exponent": r"optim\.lr.*1e-2x",
        "tag": r"tag\.yaml is not valid YAML.*python/object",
        "tab": r"tab\.yaml is not valid YAML",
        "colon": r"colon\.yaml is not valid YAML",
        "anchor": r"anchor\.yaml is not valid YAML.*nothing",
        "key_number": r"key.*1",
        "key_null": r"key.*None",
        "key_list": r"key_list\.yaml",
        "documents": r"documents\.yaml is not valid YAML",
        "binary": r"binary\.yaml is not valid YAML",
        "latin": r"latin\.yaml is not valid YAML.*utf-8",
        "nul": r"nul\.yaml|model\.head",
    }.items():
        words = ("--config", f"@/configs/{name}.yaml")
        train(f"config {name}", *words, "--data.root", "@/data/good", "--output", "run", says=says, writes=())
    for name, says, line in (
        ("repeated_group", r"optim.*line", "12"),
        ("repeated_key", r"crop_size.*line", "12"),
        ("deep", r"deep\.yaml", "22"),
        ("deep_mapping", r"deep_mapping\.yaml", "22"),
        ("bomb", r"unknown key .*\ba\b", "22"),
        ("huge_number", r"huge_number\.yaml|data\.crop_size", "22"),
    ):
        words = ("--config", f"@/configs/{name}.yaml")
        train(f"config {name}", *words, says=says, line=line, writes=())
    for name, words, says in (
        ("nothing", (), r"--dataset NAME, --config FILE"),
        ("both", ("--config", good, "--dataset", "synthetic"), r"one of --dataset"),
        ("dataset unknown", ("--dataset", "camvidd"), r"camvidd.*Did you mean 'camvid'"),
        ("dataset empty", ("--dataset=",), r"--dataset needs a value|unknown data set ''"),
        ("config no value", ("--config",), r"--config needs a value"),
        ("option unknown", ("--config", good, "--optim.lrr", "1"), r"--optim\.lrr.*Did you mean '--optim\.lr'"),
        ("option short", ("--config", good, "-x", "1"), r"-x"),
        ("word stray", ("--config", good, "stray"), r"stray"),
        ("value missing", ("--config", good, "--optim.lr"), r"optim\.lr"),
        ("resume nothing", ("--resume", "nowhere"), r"nowhere is not a run folder"),
        ("resume file", ("--resume", "@/photos/good.jpg"), r"good\.jpg is not a run folder"),
        ("resume and config", ("--resume", "@/run", "--config", good), r"--resume FOLDER.*neither"),
        ("resume and dry", ("--resume", "@/run", "--dry-run"), r"--dry-run"),
        ("resume and budget", ("--resume", "@/run", "--budget", "auto"), r"--budget"),
        ("output no value", ("--config", good, "--output"), r"output"),
    ):
        add(
            f"train {name}",
            "train_seg",
            *words,
            says=says,
        )


NUMBERS = [
    "model.output_stride",
    "model.in_channels",
    "model.drop_block",
    "model.drop_path",
    "data.base_size",
    "data.long_edge",
    "data.crop_size",
    "data.crop_width",
    "data.scale_min",
    "data.scale_max",
    "data.flip",
    "data.rotate",
    "data.color_jitter",
    "data.blur",
    "data.coarse_dropout",
    "data.class_mix",
    "data.rare_class",
    "data.check",
    "data.workers",
    "optim.lr",
    "optim.reference_batch",
    "optim.head_lr_factor",
    "optim.layer_decay",
    "optim.momentum",
    "optim.weight_decay",
    "optim.power",
    "optim.min_lr",
    "optim.warmup",
    "train.epochs",
    "train.iterations",
    "train.batch_size",
    "train.accumulation",
    "train.label_smoothing",
    "train.ohem_threshold",
    "train.ohem_min_kept",
    "train.aux_weight",
    "train.ema",
    "train.validate_every",
    "train.validate_every_steps",
    "train.patience",
    "train.save_every",
    "train.keep",
    "train.peer_timeout",
    "train.log_every",
    "eval.limit",
    "eval.sheet",
    "eval.memory",
    "seed",
]


def numbers():
    """Every numeric key with what is no number, no finite one, or below all sense."""
    for key in NUMBERS:
        for value in ("nan", "inf", "-1", "abc"):
            shown = value if value in ("-1", "abc") else rf"{value}|finite"
            name = f"number {key}={value}"
            train(name, f"--{key}={value}", says=(key.replace(".", r"\."), shown), writes=())
    for key in ("area_min", "mixup", "cutmix", "label_smoothing", "dropout", "eval_share"):
        for value in ("nan", "inf", "-1", "abc"):
            words = ("--config", "@/configs/classifier.yaml", f"--classify.{key}={value}")
            add(f"pretrain number {key}={value}", "pretrain_cls", *words, says=rf"classify\.{key}")
    for key, value, line in (
        ("data.crop_size", "1000000", "22"),
        ("data.crop_width", "1000000", "22"),
        ("data.base_size", "10000000", "22"),
        ("data.color_jitter", "1e9", "22"),
        ("data.color_jitter", "3", "22"),
        ("data.scale_max", "1e6", "22"),
        ("data.rotate", "1e9", "22"),
        ("model.in_channels", "1000000000", "22"),
        ("model.in_channels", "4", ""),
        ("train.batch_size", "1000000000", "22"),
        ("optim.lr", "1e30", ""),
        ("optim.head_lr_factor", "1e38", ""),
        ("train.accumulation", "3", ""),
        ("train.accumulation", "1000000000", ""),
        ("seed", "99999999999999999999", ""),
        ("train.label_smoothing", "1", ""),
        ("train.ema", "1", ""),
        ("data.flip", "2", ""),
        ("model.drop_path", "1.5", ""),
        ("model.output_stride", "7", ""),
        ("train.epochs", "0", ""),
        ("optim.min_lr", "1", ""),
        ("data.scale_min", "5", ""),
        ("eval.memory", "0", ""),
    ):
        said = key.replace(".", r"\.").replace(r"optim\.head_lr_factor", r"(loss|gradient|optim\.head_lr_factor)")
        said = r"(loss|gradient|optim\.lr)" if (key, value) == ("optim.lr", "1e30") else said
        train(f"huge {key}={value}", f"--{key}={value}", says=said, line=line)
    for key, value in (
        ("model.encoder", "resnest51"),
        ("model.encoder", "smp:nothing"),
        ("model.head", "deeplab"),
        ("model.head", "smp:x"),
        ("model.family", "torch"),
        ("model.dilation", "none"),
        ("model.rectify", "yes"),
        ("data.dataset", "voc"),
        ("data.recipe", "paddle"),
        ("optim.optimizer", "lion"),
        ("optim.schedule", "step"),
        ("optim.decay", "some"),
        ("optim.freeze", "layer9"),
        ("train.loss", "dicee"),
        ("train.loss", "dice+dice"),
        ("train.class_weights", "auto"),
        ("train.precision", "fp8"),
        ("train.precision", "fp16"),
        ("train.parallel", "dp"),
        ("train.trackers", "foo"),
        ("eval.split", "dev"),
        ("eval.protocol", "fast"),
        ("model.head", "pspnet"),
        ("model.head", "classifier"),
        ("train.trackers", "wandb"),
    ):
        said = value.split(":")[-1] if value != "dice+dice" else "dice twice"
        train(f"name {key}={value}", f"--{key}={value}", says=(said,))
    for value, line in (("0.001", "0"), ("0", ""), ("nan", ""), ("-5", ""), ("lots", ""), ("inf", "")):
        train(f"budget {value}", "--budget", value, says=rf"--budget .*{value}", line=line)
    for name, says, code in (
        ("masks_onoff_names", r"255.*(classes\.csv|object)", REFUSED),
        ("masks_absent_class", r"ghost", WARNED),
        ("turned", r"EXIF|turn", WARNED),
    ):
        words = ("--data.root", f"@/data/{name}", "--dry-run")
        train(f"dry-run {name}", *words, code=code, says=says, writes=(), line="2")
    train("dry-run no data", "--data.root", "nowhere", "--dry-run", code=WARNED, says="data +not found", writes=())


def training():
    """Data, weights, outputs and states that training is given."""
    for name, says, line in DATA_REFUSED:
        train(
            f"data {name}",
            "--data.root",
            f"@/data/{name}",
            says=says,
            line=line,
        )
    for name, says, line in DATA_WARNED:
        train(
            f"data {name}",
            "--data.root",
            f"@/data/{name}",
            code=(0, 2) if line == "4" else WARNED,
            says=says,
            line=line,
        )
    train("root missing", "--data.root", "nowhere", says="nowhere")
    train("root file", "--data.root", "@/photos/good.jpg", says=r"good\.jpg")
    train("classes missing", "--data.classes", "nowhere.csv", says=r"nowhere\.csv")
    train("classes photo", "--data.classes", "@/photos/good.jpg", says=r"good\.jpg is not a class list")
    train("classes other ids", "--data.classes", "@/lists/four.csv", says=r"masks/train/\d\.png.*raw id 2")
    for name, says in WEIGHTS:
        train(f"weights {name}", f"--model.weights=@/weights/{name}", says=says)
        train(f"encoder {name}", f"--model.encoder_weights=@/weights/{name}", says=says)
    for key, name in (
        ("weights", "nan.safetensors"),
        ("encoder_weights", "nan.safetensors"),
        ("encoder_weights", "nan_encoder.pth"),
    ):
        said = (name.replace(".", r"\."), r"layer3\.0\.conv1\.weight", "finite|nan")
        train(f"{key} {name}", f"--model.{key}=@/weights/{name}", says=said, line="13")
    train("encoder unpublished", "--model.encoder_weights=imagenett", says="imagenett")
    train(
        "encoder no network",
        "--model.encoder=resnest14",
        "--model.encoder_weights=resnest14_nothing",
        says="resnest14_nothing",
    )
    for name, words, says in OUTPUTS_REFUSED:
        train(
            f"output {name}",
            "--output",
            *words,
            says=says,
            prepare=clutter,
            writes=(),
            line="0",
        )
    for name, place in NAMES:
        train(
            f"output named {name}",
            "--output",
            place,
            code=WARNED,
            says="done",
            writes=(place,),
            line="20",
        )
    train("output no value of null", "--output", "", says="output", code=(0, 2), writes=("runs",))


OUTPUTS_REFUSED = (
    ("file", ("file",), r"\bfile\b.*exists"),
    ("below file", ("file/run",), r"file.*(directory|folder)"),
    ("exists", ("full",), r"full already exists"),
    ("long name", ("n" * 300,), r"nnn.*too long"),
    ("in proc", ("/proc/nothing/run",), r"/proc/nothing"),
    ("data", ("@/data/good",), r"data/good already exists"),
    ("the run", ("@/run",), r"run already exists"),
)


def a_run(*changes):
    """Prepare: a copy of the trained run in `run`, then changed."""

    def prepare(work, root):
        shutil.copytree(root / "run", work / "run")
        for change in changes:
            change(work / "run", root)

    return prepare


def states(folder, root):
    return [folder / "last.safetensors", *folder.glob("step_*.safetensors")]


def cut_all(folder, root):
    for path in states(folder, root):
        path.write_bytes(path.read_bytes()[:1000])


def text_all(folder, root):
    for path in states(folder, root):
        path.write_text("this is a text")


def no_states(folder, root):
    for path in states(folder, root):
        path.unlink()


def weights_for_state(name):
    def change(folder, root):
        no_states(folder, root)
        shutil.copy(root / "weights" / name, folder / "last.safetensors")

    return change


def best_for_state(folder, root):
    no_states(folder, root)
    shutil.copy(folder / "best.safetensors", folder / "last.safetensors")


def rewrite(name, content):
    def change(folder, root):
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)

    return change


def make_folder(name):
    def change(folder, root):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return change


def resuming():
    words, more = ("--resume", "run"), ("--train.iterations=4", "--allow-changes", "train.iterations")
    auto = ("--config", "@/configs/good.yaml", "--data.root", "@/data/good", "--output", "run", "--resume", "auto")
    for name, change, given, says, code, line in (
        ("no states", no_states, words, r"holds no state to resume", REFUSED, ""),
        ("states cut", cut_all, words, r"no state in run can be resumed.*last\.safetensors", REFUSED, ""),
        ("states text", text_all, words, r"no state in run can be resumed.*last\.safetensors", REFUSED, ""),
        ("weights only", best_for_state, words, r"last\.safetensors holds weights only", REFUSED, ""),
        (
            "optimiser missing",
            weights_for_state("no_optimizer.safetensors"),
            (*words, *more),
            r"last\.safetensors .*holds no state of the optimiser",
            REFUSED,
            "",
        ),
        ("weights nan", weights_for_state("nan.safetensors"), words, r"last\.safetensors", REFUSED, ""),
        ("config missing", rewrite("config.yaml", None), words, r"no config\.yaml", REFUSED, ""),
        ("config empty", rewrite("config.yaml", b""), words, r"config\.yaml must hold a mapping", REFUSED, ""),
        (
            "config binary",
            rewrite("config.yaml", bytes(range(256))),
            words,
            r"config\.yaml is not valid YAML",
            REFUSED,
            "",
        ),
        ("config folder", make_folder("config.yaml"), words, r"no config\.yaml", REFUSED, ""),
        ("last is folder", make_folder("last.safetensors"), words, r"last\.safetensors|no state", REFUSED, ""),
        ("rate changed", no_change, (*words, "--optim.lr=0.5"), r"optim\.lr.*0\.5", REFUSED, ""),
        ("batch changed", no_change, (*words, "--train.batch_size=4"), r"train\.batch_size", REFUSED, "9"),
        ("head changed", no_change, (*words, "--model.head=deeplabv3"), r"model\.head", REFUSED, ""),
        ("allowed unknown", no_change, (*words, "--allow-changes", "optim.lrr"), r"optim\.lrr", REFUSED, ""),
        (
            "other network allowed",
            no_change,
            (*words, "--model.head=deeplabv3", "--allow-changes", "model.head"),
            r"model\.head|head",
            REFUSED,
            "",
        ),
        ("data changed", no_change, (*words, *more, "--data.root", "@/data/twin"), r"data|twin", REFUSED, ""),
        ("data gone", no_change, (*words, *more, "--data.root", "nowhere"), r"nowhere", REFUSED, ""),
        ("metrics gone", rewrite("metrics.jsonl", None), (*words, *more), r"metrics\.jsonl", WARNED, "0"),
        (
            "metrics text",
            rewrite("metrics.jsonl", b"this is a text\n"),
            (*words, *more),
            r"done|metrics\.jsonl",
            (0, 2),
            "",
        ),
        ("metrics folder", make_folder("metrics.jsonl"), (*words, *more), r"metrics\.jsonl", REFUSED, ""),
        ("machine bytes", rewrite("machine.jsonl", b"\xff\xfe\n"), (*words, *more), r"done", WARNED, ""),
        (
            "auto, stranger",
            lambda folder, root: (no_states(folder, root), (folder / "thesis.txt").write_text("x")),
            auto,
            r"thesis\.txt",
            REFUSED,
            "",
        ),
        ("auto, states cut", cut_all, auto, r"no state in run can be resumed", REFUSED, ""),
        ("auto, changed", no_change, (*auto, "--optim.lr=0.5"), r"optim\.lr", REFUSED, ""),
    ):
        add(
            f"train resume {name}",
            "train_seg",
            *given,
            says=says,
            code=code,
            line=line,
            prepare=a_run(change),
            writes=("run",),
        )
    long = (
        "--config",
        "@/configs/good.yaml",
        "--data.root",
        "@/data/good",
        "--output",
        "run",
        "--train.iterations=100000",
        "--train.save_every=5",
    )
    beside = {"beside": long, "until": "run/last.safetensors", "line": "7", "writes": ("run",)}
    said = r"run .*(in use|another|lock|running|already training|pid)"
    add("train two runs, auto", "train_seg", *long, "--resume", "auto", says=said, **beside)
    add("train two runs, resume", "train_seg", "--resume", "run", says=said, **beside)


def no_change(folder, root):
    pass


def fill():
    """Add them all."""
    configs()
    numbers()
    training()
    resuming()
