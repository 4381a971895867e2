"""The pages of docs/reference/, written from the code: the Python API, the config keys and the command line.

Sphinx writes them before each build, see conf.py. By hand: python docs/reference_pages.py
"""

import contextlib
import importlib
import inspect
import io
import os
import re
import sys
from pathlib import Path
from unittest import mock

import resnest_seg
from resnest_seg.cli import main as command
from resnest_seg.cli.benchmark import COMMANDS
from resnest_seg.cli.parsing.keys import CHECKPOINT, ENCODER_CHECKPOINT, SHORT, groups, key_texts
from resnest_seg.config import PretrainConfig, RunConfig

WINGS = (
    "io", "storage", "annotations", "data", "models", "inference", "evaluation", "reports", "teachers", "training",
    "export", "bulk", "combining",
)  # fmt: skip
"""Wings with names for others, in the order of the architecture."""

GROUND = {
    "config": "RunConfig ModelConfig DataConfig OptimConfig TrainConfig SemiConfig DistillConfig EvalConfig "
    "PretrainConfig load_run_config config_keys",
    "errors": "ResNeStSegError ConfigError DatasetError CheckpointError DownloadError ExportError",
    "labels": "IGNORE_LABEL LabelSpace",
}
"""Module of the ground -> its names for others."""

MENTIONED = {
    "annotations": "objects.AnnotatedSet objects.AnnotatedImage objects.AnnotatedObject objects.Patch "
    "objects.ReadOptions",
    "data": "inspection.BandFacts loader.ShardOrder datasets.PairedFiles",
    "evaluation": "acquisition.Choice boundaries.BoundaryReport calibration.CalibrationReport "
    "calibration.ReliabilityBin evaluator.Measures image_scores.ImageScoresWriter label_audit.AuditedImage "
    "label_audit.AuditedRegion label_audit.JudgedPixels label_issues.DoubtfulRegion label_scores.ThresholdCurve "
    "metrics.Confusion report.Method",
    "export": "verify.Comparison verify.Evidence",
    "inference": "backends.Decision",
    "io": "downloads.Pace raster_windows.LargeBands",
    "storage": "tar_shards.Shard tar_shards.SampleTable",
    "teachers": "consistency.ConsistencyOutput teacher.Reply",
    "training": "memory.Option tasks.Moment tasks.TaskDescription",
}
"""Wing -> types that its names take or give."""

COLUMNS = "100"
"""Width of the help."""


def write(folder: Path) -> None:
    """Write every page that changed, so that Sphinx reads it again, and remove what is no page any more."""
    pages = {"index.md": index(), "config.md": config_page(), "commands.md": commands_page(), **api_pages()}
    folder.mkdir(exist_ok=True)
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in folder.iterdir():
        if path.name not in pages:
            path.unlink()


def links() -> dict[str, str]:
    """Name of a config key, or of something public, -> Markdown that links it to where it is described."""
    keys = dict.fromkeys([*key_texts(RunConfig), *key_texts(PretrainConfig)])
    public = {f"resnest_seg.{name}": _found("resnest_seg", name)[1] for name in resnest_seg.__all__}
    return {key: f"{{confval}}`{key}`" for key in keys if "." in key} | {
        name: f"{{py:obj}}`{name} <{path}>`" for name, path in public.items()
    }


def index() -> str:
    """The page with the contents of the reference."""
    return (
        "# Reference\n\nThese pages are written from the code when the site is built, so they say what the installed "
        "version does.\n\n```{toctree}\n:maxdepth: 2\n\nconfig\ncommands\napi\n"
        + "".join(f"api_{name}\n" for name in (*GROUND, *WINGS))
        + "```\n"
    )


# The Python API


def api_pages() -> dict[str, str]:
    """One page for the names of the package itself, one for each module of the ground and each wing."""
    pages = {"api.rst": _root_page()}
    for module, names in GROUND.items():
        pages[f"api_{module}.rst"] = _module_page(f"resnest_seg.{module}", names.split())
    for wing in WINGS:
        module = importlib.import_module(f"resnest_seg.{wing}")
        pages[f"api_{wing}.rst"] = _module_page(module.__name__, module.__all__) + _mentioned(wing)
    return pages


def _root_page() -> str:
    """The names of `resnest_seg`, each with the first sentence of its docstring and a link to where it is described."""
    rows = []
    for name in resnest_seg.__all__:
        thing, path = _found("resnest_seg", name)
        rows.append(f"{_role(thing)}:`resnest_seg.{name} <{path}>`\n   {_sentence(thing)}\n")
    return (
        _title("resnest_seg") + "These names are what most programs need: ``import resnest_seg`` gives all of them, "
        "and imports a library when it is first used. They are described where they live, one page a wing.\n\n"
        + "\n".join(rows)
    )


def _module_page(module: str, names: list[str]) -> str:
    """The names that a module or wing has for others."""
    purpose = inspect.getdoc(importlib.import_module(module)) or ""
    found = [_found(module, name) for name in names]
    return "\n".join([_title(module), purpose.partition("\n\n")[0] + "\n", *(_directive(*each) for each in found)])


def _mentioned(wing: str) -> str:
    """The types that a wing's names take or give, below a heading of their own."""
    if wing not in MENTIONED:
        return ""
    blocks = ["", "What these take and give", "------------------------", ""]
    for name in MENTIONED[wing].split():
        module, _, name = name.rpartition(".")
        blocks.append(_directive(*_found(f"resnest_seg.{wing}.{module}", name)))
    return "\n".join(blocks)


def _found(package: str, name: str) -> tuple[object, str]:
    """A public thing, and the path of its definition.

    A wing's function may have the name of its module, so that `getattr` of the wing gives either one.
    """
    homes = vars(importlib.import_module(package)).get("_HOMES", {})
    module = f"{package}.{homes[name]}" if name in homes else package
    return getattr(importlib.import_module(module), name), f"{module}.{name}"


def _directive(thing: object, path: str) -> str:
    if inspect.isclass(thing):
        if issubclass(thing, Exception):
            return f".. autoexception:: {path}\n"
        if thing.__module__ == "resnest_seg.config":  # whose fields are config keys, with a page of their own
            methods = "   :members: from_dict, to_dict\n" if hasattr(thing, "from_dict") else ""
            return f".. autoclass:: {path}()\n{methods}"
        return f".. autoclass:: {path}\n   :members:\n   :special-members: __call__\n"
    return f".. auto{'function' if inspect.isfunction(thing) else 'data'}:: {path}\n"


def _role(thing: object) -> str:
    if inspect.isclass(thing):
        return ":py:exc" if issubclass(thing, Exception) else ":py:class"
    return ":py:func" if inspect.isfunction(thing) else ":py:data"


def _sentence(thing: object) -> str:
    """The first paragraph of a docstring."""
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return "Label of pixels that no loss and no score counts."
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def _title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n\n"


# The config keys


def config_page() -> str:
    """Every key once: type and range, default, what it does."""
    texts = key_texts(RunConfig)
    own = {key: said for key, said in key_texts(PretrainConfig).items() if key not in texts}
    shared = [key for key in key_texts(PretrainConfig) if key in texts]
    other = {key: key_texts(PretrainConfig)[key].default for key in shared}
    other = {key: default for key, default in other.items() if default != texts[key].default}
    known = [*texts, *own]
    parts = [
        "# Config keys\n",
        "A run is one YAML file with these keys, in groups; every key is an option of `resnest-seg train`, too, such "
        "as `--optim.lr 0.02`. A key that is left out has its default. A run folder has the complete file, "
        "`config.yaml`. A key or a value that does not exist is refused before anything is read.\n",
        "Short forms: "
        + ", ".join(f"`{form}` is `--{key}`" for form, key in (SHORT | CHECKPOINT).items() if form != f"--{key}")
        + f"; in `pretrain`, `--checkpoint` is `--{ENCODER_CHECKPOINT['--checkpoint']}`.\n",
    ]
    for group, title in groups(RunConfig).items():
        keys = [key for key in texts if _group(key) == group]
        name, _, text = title.partition(".*: ")
        parts += [
            f"## {name if text else 'Without a group'}\n",
            f"{text}.\n" if text else "",
            *(_key(key, texts[key], known) for key in keys),
        ]
    parts += [
        "## Only in pretrain\n",
        "`resnest-seg pretrain` trains an image classifier. It has the keys below, and these of above: "
        + ", ".join(f"{{confval}}`{key}`" for key in shared)
        + ".\n",
        "Other defaults there: " + ", ".join(f"`{key}: {default}`" for key, default in other.items()) + ".\n",
        *(_key(key, said, known) for key, said in own.items()),
    ]
    return "\n".join(parts)


def _group(key: str) -> str:
    return key.partition(".")[0] if "." in key else ""


def _key(key: str, said: object, known: list[str]) -> str:
    text = _linked(_escaped(said.text), [other for other in known if other != key])
    return f"````{{confval}} {key}\n:type: {said.values}\n:default: {said.default}\n\n{text}\n````\n"


def _escaped(text: str) -> str:
    """Mark as text what Markdown would take for markup, outside of code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>\[\]{}$#|\\])", r"\\\1", part) for part in parts)


def _linked(text: str, keys: list[str]) -> str:
    """Link the names of other keys, which have a dot in them."""
    names = sorted((key.replace("_", r"\_") for key in keys if "." in key), key=len, reverse=True)
    words = re.compile(r"(?<![\w.`])(" + "|".join(map(re.escape, names)) + r")(?![\w`])(?!\.\w)")
    return words.sub(lambda match: "{confval}`" + match[0].replace("\\", "") + "`", text)


# The command line


def commands_page() -> str:
    """The help of every verb, as it prints it."""
    parts = [
        "# Command line\n",
        "`resnest-seg VERB --help` prints what stands here. In a checkout, `python tools/train_seg.py` is `resnest-seg "
        "train`, and so on. Exit codes: 0 done, 1 something failed and is listed, 2 wrong input, 70 a bug, 130 "
        "Ctrl-C, 143 SIGTERM.\n",
        _fence(_help()),
    ]
    for group, verbs in command.GROUPS.items():
        parts.append(f"## {group[0].upper()}{group[1:]}\n")
        for verb, text in verbs.items():
            parts += [f"### {verb}\n", f"{text[0].upper()}{text[1:]}.\n", _fence(_help(verb))]
            inner = {"prepare": ["ade20k", "camvid", "cityscapes", "synthetic"], "benchmark": list(COMMANDS)}
            for name in inner.get(verb, []):
                parts += [f"#### {verb} {name}\n", _fence(_help(verb, name))]
    return "\n".join(parts)


def _help(*words: str) -> str:
    """What the command prints with --help."""
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["resnest-seg"]),
        mock.patch.dict(os.environ, {"COLUMNS": COLUMNS}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        command.main([*words, "--help"])
    text = "\n".join(line.rstrip() for line in printed.getvalue().splitlines())
    assert "usage:" in text, words
    return text


def _fence(text: str) -> str:
    return f"```text\n{text}\n```\n"


if __name__ == "__main__":
    write(Path(__file__).resolve().parent / "reference")
