"""Command lines: words that fit no option, short forms, the names of run folders, and the help."""

import concurrent.futures
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PROJECT

from resnest_seg.cli import pretrain
from resnest_seg.cli.parsing.keys import SHORT
from resnest_seg.config import ConfigError, PretrainConfig, config_keys
from resnest_seg.errors import unknown_option
from resnest_seg.files import claimed, next_free, numbered
from resnest_seg.training import assembly

TRAIN, PRETRAIN, BUDGET, EVAL, PREDICT = "train_seg", "pretrain_cls", "budget_seg", "eval_seg", "predict_seg"
CAMVID = ("--dataset", "camvid")
OWN_NETWORK = (*CAMVID, "--model", "gone.py:build", "--model.weights=x", "--model.task=binary", "--data.positive=Car")


IMAGENET = "imagenet_classifier_resnest50"
HUB = ("export_seg", "--checkpoint", "x", "--format", "hub")
LIST = ("check_dataset", "--dataset", "folder", "--write-classes")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((TRAIN, *CAMVID, "--allow-changes", "optim.lr,seed"), "--allow-changes optim.lr,seed is about a run that is"),
        ((TRAIN, *CAMVID, "--seed", "0,1", "--allow-changes", "seed"), "this one begins: leave it out, or resume"),
        ((PRETRAIN, "--config", IMAGENET, "--allow-changes", "optim.lr"), "is about a run that is resumed"),
        ((*HUB, "--layout", "nhwc"), "leave out --layout."),
        ((*HUB, "--images", "a.jpg", "--half"), "leave out --half, --images."),
        ((*HUB, "--dataset", "camvid", "--data.root", "x", "--limit", "3"), "out --dataset, --data.root, --limit."),
        ((*HUB, "--calibration-images", "32"), "leave out --calibration-images."),
        (("export_seg", "--checkpoint", "x", "--calibration-images", "32"), "--calibration-images is for --int8: give"),
        (("export_seg", "--checkpoint", "x", "--limit", "3"), "--limit: which data set to verify with is missing"),
        (("export_seg", "--checkpoint", "x", "--data.root", "y", "--split", "val"), "--data.root, --split: which data"),
        ((*LIST, "--splits", "train"), "--write-classes lists the ids of all masks and checks nothing: leave --splits"),
        ((*LIST, "--limit", "5", "--checkpoint", "x"), "leave --checkpoint, --limit out, or give them to the check"),
        ((*LIST, "--data.classes", "x.csv"), "leave --data.classes out, or give it to the check afterwards."),
        ((*LIST, "--data.bands", "1,2"), "reads all masks of the folder, as files: leave --data.bands out."),
    ],
)  # fmt: skip
def test_an_option_that_would_do_nothing_is_refused(words, says, tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert tool(words[0])(*words[1:]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        (TRAIN, (*OWN_NETWORK, "--model.encoder", "resnest101", "--model.encoder_weights=imagenet"),
         "--model.encoder and --model.encoder_weights would have no effect, because the function of --model builds"),
        (TRAIN, (*CAMVID, "--encoder", "x"), "'--encoder'. Did you mean '--model.encoder'? --help-all lists all."),
        (TRAIN, (*CAMVID, "--crop_size", "9"), "option '--crop_size'. Did you mean '--data.crop_size'? --help-all"),
        (TRAIN, (*CAMVID, "--crop-size=9"), "option '--crop-size'. Did you mean '--data.crop_size'? --help-all"),
        (TRAIN, (*CAMVID, "--train.batch-size", "9"), "Did you mean '--train.batch_size'? --help-all lists all."),
        (TRAIN, (*CAMVID, "--batch_size", "9"), "Did you mean '--batch-size'? --help-all lists all."),
        (TRAIN, (*CAMVID, "--epoch", "9"), "Did you mean '--epochs' or '--train.epochs'? --help-all lists all."),
        (TRAIN, (*CAMVID, "--optim.rl", "1"), "Did you mean '--optim.lr'? --help-all lists all."),
        (TRAIN, (*CAMVID, "--optim.batch_size", "1"), "Did you mean '--batch-size' or '--train.batch_size'?"),
        (TRAIN, (*CAMVID, "--datasets", "x"), "option '--datasets'. Did you mean '--dataset'"),
        (TRAIN, (*CAMVID, "--qqqq", "1"), "unknown option '--qqqq'. --help-all lists all."),
        (TRAIN, (*CAMVID, "foo"), "unexpected word 'foo': options begin with --."),
        (TRAIN, ("foo", *CAMVID), "unexpected word 'foo'"),
        (TRAIN, (*CAMVID, "--epochs", "5", "10"), "unexpected word '10'"),
        (TRAIN, (*CAMVID, "-epochs", "5"), "unknown option '-epochs'. Did you mean '--epochs'?"),
        (TRAIN, (*CAMVID, "--epochs"), "--epochs needs a value."),
        (TRAIN, (*CAMVID, "--optim.lr", "--epochs", "5"), "--optim.lr needs a value."),
        (TRAIN, (*CAMVID, "--epochs", "5", "--train.epochs", "6"), "--epochs 5 and --train.epochs 6 are two forms"),
        (TRAIN, (*CAMVID, "--optim.lr=0.1", "--lr=0.2"), "--optim.lr 0.1 and --lr 0.2 are two forms of one option"),
        (PRETRAIN, ("--config", "x", "--augment", "no"), "Did you mean '--classify.augment'? --help-all"),
        (PRETRAIN, ("x.yaml",), "unexpected word 'x.yaml'"),
        (BUDGET, (*CAMVID, "--device", "cpu", "12"), "unexpected word '12'"),
        (BUDGET, (*CAMVID, "--mem", "12"), "Did you mean '--memory'"),
        (BUDGET, (*CAMVID, "--checkpoint", "x"), "give it without --dataset and --config"),
        (EVAL, ("--checkpont", "x"), "unknown option '--checkpont'. Did you mean '--checkpoint'? --help lists all."),
        (EVAL, ("--checkpoint", "x", "--root", "x"), "'--root'. Did you mean '--data.root'? --help lists all."),
        (EVAL, ("runs/my_run",), "unexpected word 'runs/my_run': options begin with --."),
        (EVAL, ("--checkpoint", "runs/a", "runs/b"), "unexpected word 'runs/b': give --checkpoint once for each"),
        (EVAL, (), "--checkpoint is missing"),
        (EVAL, ("--checkpoint", "x", "--limit", "few"), "argument --limit: invalid int value: 'few'"),
        (EVAL, ("--checkpoint", "x", "--protocols", "whole,slid"), "unknown protocol 'slid'. Did you mean 'slide'?"),
        (EVAL, ("--checkpoint", "x", "--memory", "1", "--eval.memory", "9"), "--memory (GiB) and --eval.memory (MiB)"),
        (EVAL, ("--checkpoint", "x", "--memory", "1GB"), "--memory must be a number"),
        (PREDICT, ("--checkpoint", "x", "a.jpg", "--protocols", "whole,slide"), "takes one protocol here, not 2"),
        (PREDICT, ("--checkpoint", "x", "a.jpg", "--protocol", "hole"), "unknown protocol 'hole'"),
        (PREDICT, ("--checkpoint", "x"), "required: INPUT"),
        ("export_seg", ("--checkpoint", "x", "y"), "unexpected word 'y'"),
        ("check_dataset", (), "--dataset is missing"),
        ("check_dataset", ("camvid",), "unexpected word 'camvid'"),
        ("zoo_seg", ("--names",), "unknown option '--names'"),
        ("zoo_seg", ("--checkpoint", "resnest51"), "Did you mean 'resnest50'?"),
        ("serve_seg", ("model.onnx",), "unexpected word 'model.onnx'"),
        ("serve_seg", (), "--checkpoint is missing"),
        ("serve_seg", ("--checkpoint", "x.onnx", "--protocol", "hole"), "Did you mean 'whole'"),
    ],
)  # fmt: skip
def test_a_word_that_fits_nothing_is_named_with_the_nearest(name, words, says, tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert tool(name)(*words) == 2
    message = capsys.readouterr().err
    assert says in message
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_at_most_three_options_are_suggested():
    known = [f"--group{number}.size" for number in range(9)]
    assert re.findall("group(.)", str(unknown_option("--size", known))) == ["0", "1", "2"]
    assert "mean" not in str(unknown_option("--colour", known))


class StopError(ConfigError):
    """Raised in place of a training."""


@pytest.fixture
def order(monkeypatch, tmp_path, tool):
    """What `main` would train: its words -> config, output and resume; and the run folders that are there meanwhile."""
    found = []

    def stop(config, output, resume):
        given = SimpleNamespace(config=config, output=output, resume=resume)
        found.append((given, sorted(str(path) for path in Path("runs").glob("*"))))
        raise StopError

    def trainer_for(config, parts, *, output, resume, allow_changes, budget):
        stop(config, output, resume)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(assembly, "trainer_for", trainer_for)
    monkeypatch.setattr(pretrain, "trainer_for", lambda order: stop(order.config, order.output, order.resume))

    def of(*words, name=TRAIN):
        assert tool(name)(*words) == 2
        return found[-1]

    return of


def test_short_forms_are_the_keys(order):
    words = (
        "--epochs",
        "5",
        "--lr=0.5",
        "--batch-size",
        "12",
        "--workers=0",
        "--seed",
        "7",
        "--checkpoint",
        "a/run",
    )
    config = order(*CAMVID, *words)[0].config
    assert (config.train.epochs, config.optim.lr, config.train.batch_size) == (5, 0.5, 12)
    assert (config.data.workers, config.seed, config.model.weights) == (0, 7, "a/run")
    both = order(*CAMVID, "--lr", "0.50", "--optim.lr=5e-1", "--seed=1", "--seed", "2")[0].config
    assert (both.optim.lr, both.seed) == (0.5, 2)
    shipped = PROJECT / "configs" / "imagenet_classifier_resnest50.yaml"
    words = (
        "--epochs",
        "5",
        "--lr=0.5",
        "--batch-size",
        "12",
        "--workers=0",
        "--seed",
        "7",
        "--checkpoint",
        "a/run",
    )
    config = order("--config", shipped, *words, name=PRETRAIN)[0].config
    assert (config.train.epochs, config.optim.lr, config.train.batch_size) == (5, 0.5, 12)
    assert (config.data.workers, config.seed, config.model.encoder_weights) == (0, 7, "a/run")


TINY_FCN = ("--model.encoder", "resnest14_tiny", "--model.head", "fcn")


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (CAMVID, "runs/camvid_deeplabv3_resnest50"),
        ((*CAMVID, *TINY_FCN), "runs/camvid_fcn_resnest14_tiny"),
        ((*CAMVID, "--model.encoder=smp:tu-resnet18"), "runs/camvid_deeplabv3_smp-tu-resnet18"),
        ((*CAMVID, "--data.dataset=folder"), "runs/folder_deeplabv3_resnest50"),
        (("--dataset", "shards"), "runs/shards_deeplabv3_resnest50"),
        (("--config", PROJECT / "configs" / "ade20k_fcn_resnest101_mmseg.yaml"), "runs/ade20k_fcn_resnest101_mmseg"),
        ((*CAMVID, "--model.family=mmseg"), "runs/camvid_deeplabv3_resnest50_mmseg"),
        (("--config", "mine.v2.yaml", *TINY_FCN), "runs/mine.v2"),
        ((*CAMVID, "--output", "here"), "here"),
    ],
)
def test_a_run_is_named_after_what_it_trains(words, folder, order):
    shutil.copy(PROJECT / "configs" / "camvid_deeplabv3_resnest50.yaml", "mine.v2.yaml")
    given, seen = order(*words)
    assert given.output == folder
    assert seen == ([] if folder == "here" else [folder])  # no other start can take it from here on
    assert not Path("runs").exists()  # and nothing is left of a run that has not begun


def test_a_classifier_is_named_after_its_encoder(order):
    config = PROJECT / "configs" / "imagenet_classifier_resnest50.yaml"
    words = ("--config", config, "--model.encoder=resnest26")
    assert order(*words, name=PRETRAIN)[0].output == "runs/imagenet_classifier_resnest26"
    Path("runs/imagenet_classifier_resnest26").mkdir(parents=True)
    assert order(*words, name=PRETRAIN)[0].output == "runs/imagenet_classifier_resnest26-2"
    assert order(*words, "--resume=auto", name=PRETRAIN)[0].output == "runs/imagenet_classifier_resnest26"


def test_the_next_run_gets_the_next_name_and_auto_means_the_last(order, monkeypatch, capsys):
    base = "runs/camvid_deeplabv3_resnest50"
    auto = (*CAMVID, "--resume", "auto")
    given, seen = order(*auto)
    assert (given.output, given.resume, seen) == (base, "auto", [])
    for name in (base, f"{base}-2", f"{base}-10", "runs/camvid_deeplabv3_resnest50x"):
        Path(name).mkdir(parents=True)
    capsys.readouterr()
    assert order(*CAMVID)[0].output == f"{base}-11"
    assert f"{base} exists: this run goes to {base}-11" in capsys.readouterr().err
    assert order(*auto)[0].output == f"{base}-10"
    assert not Path(f"{base}-11").exists()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # torchrun's agent started it again
    assert order(*CAMVID)[0].output == f"{base}-10"
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")
    monkeypatch.setenv("WORLD_SIZE", "2")  # every process chooses; the folder is made when all have agreed
    given, seen = order(*CAMVID)
    assert (given.output, f"{base}-11" in seen) == (f"{base}-11", False)


def test_a_folder_is_claimed_once_by_many(tmp_path):
    """As many threads as can meet: none gets the name of another, and what is used stays."""

    def claim(number):
        with claimed(tmp_path / "runs" / "x") as folder:
            (folder / "file").write_text(str(number))
            return folder

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(claim, range(64)))
    assert len(set(folders)) == 64
    assert [(folder / "file").read_text() for folder in folders] == [str(number) for number in range(64)]
    assert sorted(numbered(tmp_path / "runs" / "x")) == list(range(1, 65))


def test_names_of_a_series(tmp_path):
    assert next_free(tmp_path / "no" / "x.json", suffix=".json") == tmp_path / "no" / "x.json"
    for name in ("x.json", "x-3.json", "x-1.json", "x-03.json", "x-4.txt", "ax-9.json"):
        (tmp_path / name).write_text("")
    assert next_free(tmp_path / "x.json", suffix=".json") == tmp_path / "x-4.json"
    assert [path.name for path in numbered(tmp_path / "x.json", suffix=".json").values()] == ["x.json", "x-3.json"]


def help_of(name, word):
    """The help of a tool, and whether torch was imported for it."""
    path = PROJECT / "tools" / f"{name}.py"
    code = (
        f"import runpy, sys; sys.argv = [{path.name!r}, {word!r}]\n"
        f"try: runpy.run_path({str(path)!r}, run_name='__main__')\n"
        "except SystemExit as stop: print('exit', stop.code, 'torch' in sys.modules)"
    )
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert text.splitlines()[-1] == "exit 0 False"
    return text


@pytest.mark.parametrize(("name", "kind"), [(TRAIN, None), (BUDGET, None), (PRETRAIN, PretrainConfig)])
def test_help_begins_with_twelve_keys_and_help_all_has_every_one(name, kind):
    keys = config_keys(kind) if kind else config_keys()
    short = help_of(name, "--help")
    shown = re.findall(r"^  (?:--[\w-]+, )?--([\w.]+) VALUE$", short, re.M)
    assert len(shown) == 12
    assert set(shown) <= set(keys)
    assert short.index("keys that people use:") < short.index("\noptions:\n")
    for form, key in SHORT.items():
        assert f"  {form}{'' if form == f'--{key}' else f', --{key}'} VALUE\n" in short
    assert "--help-all" in short
    everything = help_of(name, "--help-all")
    shown = re.findall(r"^  (?:--[\w-]+, )?--([\w.]+) VALUE$", everything, re.M)
    assert sorted(shown) == sorted(keys)
    for text in ("Momentum", "optim.*: The optimiser", "at most 100; default: 0.01)"):
        assert text in everything


@pytest.mark.parametrize("name", [EVAL, PREDICT, "export_seg", "serve_seg", "check_dataset", "zoo_seg"])
def test_every_verb_accepts_a_checkpoint_and_shows_it(name):
    text = " ".join(help_of(name, "--help").split())
    assert "--checkpoint" in text
    if name in (EVAL, PREDICT, "serve_seg"):
        assert "--protocol NAME" in text
        assert "--protocols NAME" in text
        assert re.search(r"--memory GIB memory limit of .{0,20}scores in GiB", text)
    if name in (EVAL, "check_dataset"):
        assert "--workers WORKERS loader processes" in text


TYPOS = [
    ("--model.encoder=resnest51", "unknown encoder 'resnest51'. Did you mean 'resnest50'?"),
    ("--model.encoder=smp:resnet19", "Did you mean 'smp:resnet18'?"),
    ("--model.head=deeplab", "unknown head 'deeplab'. Did you mean 'deeplabv3'?"),
    ("--model.head=smp:une", "unknown head 'smp:une'. Did you mean 'smp:unet'?"),
    ("--model.head=pspnet", "head 'pspnet' exists in family 'mmseg' only"),
    ("--model.family=mmsegs", "unknown family 'mmsegs'. Did you mean 'mmseg'?"),
    ("--model.dilation=tim", "unknown dilation 'tim'. Did you mean 'timm'?"),
    ("--model.rectify=rectifi", "unknown rectify 'rectifi'. Did you mean 'rectify'?"),
    ("--eval.protocol=hole", "unknown protocol 'hole'. Did you mean 'whole'?"),
    ("--train.loss=cross_entropi", "unknown loss in train.loss: 'cross_entropi'. Did you mean 'cross_entropy'?"),
    ("--train.parallel=dp", "unknown train.parallel 'dp'"),
    ("--train.precision=fp8", "unknown train.precision 'fp8'"),
    ("--train.trackers=wandbs", "unknown train.trackers 'wandbs'"),
    ("--optim.optimizer=adam", "unknown optim.optimizer 'adam'. Did you mean 'adamw'?"),
    ("--optim.schedule=cosin", "unknown optim.schedule 'cosin'. Did you mean 'cosine'?"),
    ("--optim.decay=weight", "unknown optim.decay 'weight'. Did you mean 'weights'?"),
    ("--optim.freeze=laier4", "unknown part in optim.freeze 'laier4'. Did you mean 'layer4'?"),
    ("--data.recipe=mmsegs", "unknown data.recipe 'mmsegs'. Did you mean 'mmseg'?"),
]


@pytest.mark.parametrize(("word", "says"), TYPOS)
def test_a_misspelt_name_is_reported_before_data_is_looked_for(word, says, tool, tmp_path, monkeypatch, capsys):
    """Whose folder is missing, as an unknown data set would be after minutes of reading masks."""
    monkeypatch.chdir(tmp_path)
    words = (*CAMVID, "--data.root", tmp_path / "missing", word)
    for name, extra in ((TRAIN, ()), (TRAIN, ("--dry-run",)), (BUDGET, ("--memory", "8"))):
        assert tool(name)(*words, *extra) == 2
        assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("word", "says"), [typo for typo in TYPOS if "model.encoder" in typo[0] or "optim" in typo[0]])
def test_so_it_is_for_a_classifier(word, says, tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = PROJECT / "configs" / "imagenet_classifier_resnest50.yaml"
    for extra in ((), ("--dry-run",)):
        assert tool(PRETRAIN)("--config", config, "--data.root", tmp_path / "missing", word, *extra) == 2
        assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_flag_takes_no_value(tool, capsys):
    """--dry-run=false trained nothing, and exit code 0 said that it had."""
    assert tool("train_seg")(*CAMVID, "--dry-run=false") == 2
    assert "--dry-run takes no value, and 'false' is one" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train_seg", "pretrain_cls"])
def test_a_resumed_run_stays_in_its_folder(name, tool, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/config.yaml").write_text("seed: 0\n")
    assert tool(name)("--resume", "run", "--output", "other") == 2
    assert "--resume run goes on in that folder, and --output other is another one" in capsys.readouterr().err
