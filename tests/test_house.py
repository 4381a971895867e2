"""The house rules of the design, held by reading the code."""

import ast
import dataclasses
import inspect
import re
import sys
from pathlib import Path

import pytest

import resnest_seg
from resnest_seg.config import config_keys

PACKAGE = Path(resnest_seg.__file__).parent
FILES = sorted(PACKAGE.glob("*.py"))
OTHERS = sorted((PACKAGE.parent / "tools").rglob("*.py")) + sorted((PACKAGE.parent / "datasets").glob("*.py"))

LAYER_NAMES = """
blueprints canvas class_balance convolution ema errors files paced palette_png pixel_range resampling sharding
/
photos yaml_files
/
config_checks heads heads_mmseg inputs labels large packing preparation protocols quantization rectify scenes sources
video weights
/
boundaries calibration classes_file composition config connections decoding download exported large_labels lean_loss
metrics polygons resnest samples submission views visualize
/
checkpoint conversion datasets fusion inference losses optim prediction pretraining published report schedules smp
transforms watch
/
engine folder loader parts run_folder runtime serving
/
catalog class_folder inspection segmenter
/
budget classification doctor finetune running task zoo
/
exportable model
/
evaluation onnx_file predictor
/
proof validation
/
export segmentation training
/
dry_run
/
__init__
"""
LAYERS = [set(layer.split()) for layer in LAYER_NAMES.split("/")]

CONFIG_KEYS = """
model.encoder model.head model.family model.output_stride model.dilation model.aux_head model.in_channels
model.encoder_weights model.weights model.drop_block model.drop_path model.zero_gamma model.rectify
model.checkpointing data.dataset data.root data.classes data.recipe data.base_size data.long_edge data.crop_size
data.crop_width data.scale_min data.scale_max data.flip data.rotate data.color_jitter data.blur data.coarse_dropout
data.class_mix data.rare_class data.check data.workers optim.optimizer optim.lr optim.reference_batch
optim.head_lr_factor optim.layer_decay optim.freeze optim.momentum optim.weight_decay optim.decay optim.schedule
optim.power optim.min_lr optim.warmup train.epochs train.iterations train.batch_size train.accumulation train.loss
train.class_weights train.label_smoothing train.ohem_threshold train.ohem_min_kept train.aux_weight train.precision
train.sync_bn train.parallel train.ema train.validate_every train.validate_every_steps train.patience
train.save_every train.keep train.log_every train.trackers eval.split eval.protocol eval.limit eval.sheet
eval.memory seed output
"""

PUBLIC = """
ADE20K CamVid CheckpointError Cityscapes ConfigError ConfusionMatrix DatasetError Diagnosis DownloadError EvalReport
ExportError FolderDataset IGNORE_LABEL LabelSpace LoadReport OnnxPredictor Prediction Predictor Protocol ResNeStSegError
RunConfig Scores Segmenter SegmenterOutput Synthetic Trainer build_loader build_segmenter diagnose evaluate
load_checkpoint load_run_config multiscale protocol sliding_window whole
"""


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path):
    """Names of our own modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resnest_seg"):
            rest = (node.module or "").split(".")[1:]
            found |= set(rest[:1]) if rest else {alias.name for alias in node.names}
            assert not node.level, f"{path.name} imports relatively"
    return found


def functions(path):
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_every_file_has_a_layer_and_none_is_listed_twice():
    listed = [name for layer in LAYERS for name in layer]
    assert sorted(listed) == [path.stem for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_imports_only_from_lower_layers(path):
    level = next(index for index, layer in enumerate(LAYERS) if path.stem in layer)
    allowed = set().union(*LAYERS[:level])
    assert imported(path) <= allowed, f"{path.name} imports {sorted(imported(path) - allowed)}"


def test_the_readme_maps_every_file_in_reading_order():
    """As it says: a file imports only from files above it."""
    page = (PACKAGE.parent / "README.md").read_text(encoding="utf-8").partition("## Map")[2]
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `resnest_seg/")]
    order = [name for row in rows for name in re.findall(r"`(?:resnest_seg/)?(\w+)\.py`", row)]
    assert sorted(order) == sorted(path.stem for path in FILES if path.stem != "__init__")
    for place, name in enumerate(order):
        assert imported(PACKAGE / f"{name}.py") <= set(order[:place]), name


@pytest.mark.parametrize("path", FILES + OTHERS, ids=lambda path: path.stem)
def test_budgets(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 700
    for function in functions(path):
        length = function.end_lineno - function.lineno + 1
        assert length <= 60, f"{path.name}: {function.name} has {length} lines"


@pytest.mark.parametrize("path", FILES + OTHERS, ids=lambda path: path.stem)
def test_no_kwargs_no_globals_no_star_imports(path):
    for node in ast.walk(tree(path)):
        assert not isinstance(node, ast.Global), f"{path.name} has a global statement"
        if isinstance(node, ast.FunctionDef):
            assert node.args.kwarg is None, f"{path.name}: {node.name} takes **{node.args.kwarg.arg}"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names)


@pytest.mark.parametrize("path", FILES + OTHERS, ids=lambda path: path.stem)
def test_mutable_values_of_a_module_are_constants(path):
    for node in tree(path).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(
            node.value, ast.Dict | ast.List | ast.Set | ast.ListComp | ast.DictComp | ast.Call
        ):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            # T is a type variable; a constant is a promise not to change it
            assert all(name.isupper() or name == "__all__" for name in names), names


def test_no_file_for_odds_and_ends():
    assert not {"utils", "misc", "common", "helpers"} & {path.stem for path in FILES + OTHERS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_public_things_have_docstrings(path):
    def check(node, owner):
        for child in node.body:
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
                # forward() is documented in the class, as everywhere in the field
                assert child.name == "forward" or ast.get_docstring(child), f"{owner}.{child.name} has no docstring"
                if isinstance(child, ast.ClassDef):
                    check(child, f"{owner}.{child.name}")

    assert ast.get_docstring(tree(path))
    check(tree(path), path.stem)


def test_the_public_surface_is_what_is_promised():
    assert resnest_seg.__all__ == sorted(PUBLIC.split())
    for name in resnest_seg.__all__:
        assert getattr(resnest_seg, name) is not None
    assert set(resnest_seg.__all__) <= set(dir(resnest_seg))
    with pytest.raises(AttributeError):
        resnest_seg.no_such_name  # noqa: B018


def test_options_of_public_functions_are_keyword_only():
    for name in set(resnest_seg.__all__) - {"IGNORE_LABEL"} - {n for n in resnest_seg.__all__ if n.endswith("Error")}:
        thing = getattr(resnest_seg, name)
        if dataclasses.is_dataclass(thing) or name in ("SegmenterOutput", "Segmenter"):
            continue  # values and the model, whose parts have an order
        parameters = list(inspect.signature(thing).parameters.values())
        optional = [p for p in parameters[1:] if p.default is not p.empty]
        split_of_dataset = name in ("ADE20K", "CamVid", "Cityscapes", "FolderDataset")  # (root, split), as promised
        optional = [p for p in optional if not (split_of_dataset and p.name == "split")]
        assert all(p.kind is p.KEYWORD_ONLY for p in optional), name


def test_config_keys_are_listed():
    assert config_keys() == CONFIG_KEYS.split()


def test_import_is_light():
    """`import resnest_seg` and the config load no torch: a fresh interpreter proves it."""
    import subprocess

    code = "import sys, resnest_seg, resnest_seg.config; print('torch' in sys.modules, 'albumentations' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_prediction_waits_for_no_library_that_it_does_not_use():
    """Each of them takes seconds to import; a network with DropBlock, SMP's parts or a training loads what it needs."""
    import subprocess

    code = (
        "import sys, resnest_seg.predictor, resnest_seg.parts, resnest_seg.losses\n"
        "from resnest_seg.segmenter import build_segmenter\n"
        "build_segmenter('resnest14_tiny')\n"
        "names = 'torchvision', 'timm', 'segmentation_models_pytorch', 'albumentations', 'accelerate', 'scipy'\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_library_opens_no_connection():
    """albumentations asks for its newest release when it is imported, unless it is told not to before."""
    import subprocess

    code = (
        "import socket, urllib.request\n"
        "def refuse(*arguments, **options): print('asked the network'); raise OSError\n"
        "urllib.request.OpenerDirector.open = socket.socket.connect = socket.create_connection = refuse\n"
        "import resnest_seg.training, resnest_seg.predictor, resnest_seg.transforms; print('imported')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["imported"]
