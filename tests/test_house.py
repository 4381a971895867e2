"""The house rules of the design, held by reading the code."""

import ast
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import resnest_seg

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "resnest_seg"
FILES = sorted(PACKAGE.rglob("*.py"))
OTHERS = sorted((PROJECT / "tools").rglob("*.py")) + sorted((PROJECT / "datasets").glob("*.py"))

GROUND = {"errors", "files", "labels", "yaml_files", "config_types", "config_reading", "config", "config_doubts"}
"""Modules below all wings."""

MAY_IMPORT = {
    "io": set(),
    "storage": set(),
    "annotations": {"io", "storage"},
    "data": {"io", "storage"},
    "models": {"io"},
    "inference": {"io", "storage", "models"},
    "evaluation": {"io", "storage", "data", "models", "inference"},
    "reports": {"io", "storage", "data", "models", "inference", "evaluation"},
    "teachers": {"io", "storage", "data", "models", "inference", "evaluation"},
    "training": {"io", "storage", "data", "models", "inference", "evaluation", "reports", "teachers"},
    "export": {"io", "storage", "data", "models", "inference", "evaluation"},
    "bulk": {"io", "storage", "annotations", "data", "models", "inference", "evaluation"},
    "combining": {"io", "storage", "data", "models", "inference", "evaluation", "reports", "training"},
    "cli": {
        "io",
        "storage",
        "annotations",
        "data",
        "models",
        "inference",
        "evaluation",
        "reports",
        "teachers",
        "training",
        "export",
        "bulk",
        "combining",
    },
    "__main__": {"cli"},
}
"""Wing -> the other wings that it may import from; every wing may import from the ground."""

LIGHT = """
resnest_seg resnest_seg.errors resnest_seg.files resnest_seg.labels resnest_seg.config resnest_seg.config_doubts
resnest_seg.inference.protocols resnest_seg.inference.numpy_engine resnest_seg.inference.exported
resnest_seg.inference.ensemble resnest_seg.inference.prediction resnest_seg.inference.predictor
resnest_seg.inference.http_server
resnest_seg.annotations.importing resnest_seg.annotations.writers resnest_seg.cli.datasets.import_labels
resnest_seg.reports.run_table resnest_seg.cli.review.runs resnest_seg.cli.predict resnest_seg.bulk.engines
"""
"""Modules that import no torch; besides them, all of `resnest_seg.io` and `resnest_seg.storage`."""

PUBLIC = """
ADE20K AuditReport Callback CamVid CheckpointError Cityscapes ConfigError ConfusionMatrix DatasetError Diagnosis
DownloadError EvalReport ExportError FitResult FolderDataset IGNORE_LABEL ImportReport LabelSpace LoadReport ModelConfig
OnnxPredictor PairDataset Prediction Predictor Protocol ResNeStSegError RunConfig Sample Scores SegmentationDataset
Segmenter SegmenterOutput StepReport Synthetic Trainer ValidationReport audit build_dataset build_encoder build_loader
build_segmenter detection_backbone diagnose evaluate fit fit_folds import_labels load_checkpoint load_run_config
multiscale protocol sliding_window whole
"""


def name_of(path):
    """A file's name in the package, such as models.resnest; a wing's __init__ is the wing."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path):
    """Names of our own modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} imports relatively"
            module = node.module or ""
            if module.split(".")[0] == "resnest_seg":
                inner = module.partition(".")[2]
                if (PACKAGE / inner.replace(".", "/")).is_dir():  # a wing, or the package itself: names may be modules
                    files = {path.stem for path in (PACKAGE / inner.replace(".", "/")).glob("*.py")}
                    found |= {
                        f"{inner}.{alias.name}".strip(".") if alias.name in files else inner or alias.name
                        for alias in node.names
                    }
                else:
                    found.add(inner)
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("resnest_seg.")}
    return found


def functions(path):
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


MODULES = [path for path in FILES if path.name != "__init__.py"]
ids = name_of


def test_every_file_stands_on_the_ground_or_in_a_wing():
    places = {name_of(path).split(".")[0] for path in MODULES}
    assert places == GROUND | set(MAY_IMPORT)
    inner = [path for path in FILES if len(path.relative_to(PACKAGE).parts) > 2]
    rooms = ("benchmark", "datasets", "parsing", "review")
    assert {path.parent for path in inner} == {PACKAGE / "cli" / name for name in rooms}


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_arrows_run_one_way(path):
    """The ground imports the ground; a wing imports itself, the ground and the wings before it."""
    if path == PACKAGE / "__init__.py":  # re-exports lazily
        return
    own = name_of(path).split(".")[0]
    for name in imported(path) - {"lazy_exports"}:  # which every wing's __init__ takes from the package
        other = name.split(".")[0]
        if own in GROUND:
            assert other in GROUND, f"{name_of(path)} imports {name}"
        else:
            assert other in GROUND | {own} | MAY_IMPORT[own], f"{name_of(path)} imports {name}"


def test_no_cycle():
    arrows = {name_of(path): imported(path) for path in MODULES}
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, " -> ".join([*open_[open_.index(name) :], name])
        if name in done or name not in arrows:
            return
        open_.append(name)
        for other in arrows[name]:
            visit(other)
        open_.pop()
        done.add(name)

    for name in arrows:
        visit(name)
    assert done == set(arrows)


WINGS = [wing for wing in MAY_IMPORT if wing != "__main__"]


@pytest.mark.parametrize("wing", [*WINGS, "cli/benchmark", "cli/datasets", "cli/parsing", "cli/review"])
def test_a_wing_has_at_most_fourteen_files_and_says_what_it_is_for(wing):
    files = [path for path in (PACKAGE / wing).glob("*.py") if path.name != "__init__.py"]
    assert 0 < len(files) <= 14
    assert ast.get_docstring(tree(PACKAGE / wing / "__init__.py"))


@pytest.mark.parametrize("wing", WINGS)
def test_no_name_of_a_wing_is_that_of_its_module(wing):
    """Once the module is imported, Python puts it in the place of the name, whatever the wing offers."""
    modules = {path.stem for path in (PACKAGE / wing).glob("*.py")}
    assert not modules & set(importlib.import_module(f"resnest_seg.{wing}").__all__)


@pytest.mark.parametrize("wing", WINGS)
def test_the_surface_of_a_wing_is_its_all(wing):
    module = importlib.import_module(f"resnest_seg.{wing}")
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018


def test_the_map_has_a_row_for_every_wing_and_names_every_file():
    page = (
        (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Map")[2].partition("\n## ")[0]
    )
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for wing in WINGS:
        (row,) = [row for row in rows if row.startswith(f"| `{wing}/`")]
        assert set(re.findall(r"`(\w+)\.py`", row)) == {
            path.stem for path in (PACKAGE / wing).glob("*.py") if path.name != "__init__.py"
        }, wing


@pytest.mark.parametrize("path", FILES + OTHERS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_budgets(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 700
    for function in functions(path):
        length = function.end_lineno - function.lineno + 1
        assert length <= 60, f"{path.name}: {function.name} has {length} lines"


@pytest.mark.parametrize("path", FILES + OTHERS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_no_kwargs_no_globals_no_star_imports(path):
    for node in ast.walk(tree(path)):
        assert not isinstance(node, ast.Global), f"{path.name} has a global statement"
        if isinstance(node, ast.FunctionDef):
            assert node.args.kwarg is None, f"{path.name}: {node.name} takes **{node.args.kwarg.arg}"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names)


@pytest.mark.parametrize("path", FILES + OTHERS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_mutable_values_of_a_module_are_constants(path):
    for node in tree(path).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(
            node.value, ast.Dict | ast.List | ast.Set | ast.ListComp | ast.DictComp | ast.Call
        ):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            # T is a type variable; a constant is a promise not to change it; Python calls the other two by these names
            allowed = ("__all__", "__getattr__", "__dir__")
            assert all(name.isupper() or name in allowed for name in names), names


def test_no_file_for_odds_and_ends():
    assert not {"utils", "misc", "common", "helpers"} & {path.stem for path in FILES + OTHERS}


def test_scripts_are_a_few_lines_and_import_no_other_script():
    scripts = {path.stem for path in OTHERS}
    for path in OTHERS:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 12, path.name
        assert (
            not {alias.name for node in ast.walk(tree(path)) if isinstance(node, ast.Import) for alias in node.names}
            & scripts
        )
        assert not {node.module for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)} & scripts


@pytest.mark.parametrize("path", FILES, ids=ids)
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
        if name == "build_segmenter":  # (encoder, head, num_classes)
            optional = [p for p in optional if p.name not in ("head", "num_classes")]
        assert all(p.kind is p.KEYWORD_ONLY for p in optional), name


def fresh(code):
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_light_modules_import_no_torch():
    light = [path for wing in ("io", "storage") for path in (PACKAGE / wing).glob("*.py")]
    names = [*LIGHT.split(), *(f"resnest_seg.{name_of(path)}" for path in light)]
    code = f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\n"
    assert fresh(code + "print({'torch', 'albumentations', 'torchvision'} & set(sys.modules))") == "set()"


def test_a_prediction_waits_for_no_library_that_it_does_not_use():
    """Each of them takes seconds to import; a network with DropBlock, SMP's parts or a training loads what it needs."""
    code = (
        "import sys, resnest_seg.inference.predictor, resnest_seg.models.loading, resnest_seg.training.losses\n"
        "resnest_seg.build_segmenter('resnest14_tiny').fuse()\n"
        "names = 'torchvision', 'timm', 'segmentation_models_pytorch', 'albumentations', 'accelerate', 'scipy'\n"
        "names += 'torch._dynamo', 'sympy'\n"
        "print([name for name in names if name in sys.modules])"
    )
    assert fresh(code) == "[]"


def test_config_keys_are_known_without_opencv():
    """It takes 30 ms to import, a tenth of the time of --help."""
    assert fresh("import sys, resnest_seg.config\nprint('cv2' in sys.modules)") == "False"


def test_importing_the_library_opens_no_connection():
    """albumentations asks for its newest release when it is imported, unless it is told not to before."""
    code = (
        "import socket, urllib.request\n"
        "def refuse(*arguments, **options): print('asked the network'); raise OSError\n"
        "urllib.request.OpenerDirector.open = socket.socket.connect = socket.create_connection = refuse\n"
        "import resnest_seg.training.trainer, resnest_seg.inference.predictor, resnest_seg.data.transforms\n"
        "print('imported')"
    )
    assert fresh(code) == "imported"
