"""`audit` as a user has it: a folder of photos and masks, folds, files, and what is refused."""

import contextlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from resnest_seg import IGNORE_LABEL, Synthetic
from resnest_seg.config import load_run_config
from resnest_seg.data.datasets import assign_folds
from resnest_seg.data.folder import FolderDataset

pytestmark = pytest.mark.slow

NAMES = ("plain", "a [1]", "<b>x", "sp ace", "ümlaut", "50%", "c 1", "c 2")

SHORT = [
    "--config=synthetic_fcn_resnest14_tiny",
    "--data.dataset=folder",
    "--data.root=my [1] data",
    "--data.crop_size=48",
    "--data.base_size=64",
    "--data.workers=0",
    "--data.check=0",
    "--train.iterations=2",
    "--train.trackers=none",
    "--eval.sheet=0",
    "--output=runs/one",
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with a data set, `my [1] data`, of which a run was trained, `runs/one`."""
    from resnest_seg.cli import train

    folder = tmp_path_factory.mktemp("audits")
    for split, count in (("train", len(NAMES)), ("val", 2)):
        scenes = Synthetic(split, size=(48, 64))
        for kind in ("images", "masks"):
            (folder / "my [1] data" / kind / split).mkdir(parents=True)
        for index in range(count):
            sample = scenes[index]
            for kind, pixels in (("images", sample.image), ("masks", sample.labels)):
                Image.fromarray(pixels).save(folder / "my [1] data" / kind / split / f"{NAMES[index]}.png")
    rows = [f"{name},{label},{label},9,9" for label, name in enumerate(Synthetic().label_space.names)]
    (folder / "my [1] data" / "classes.csv").write_text("\n".join(["name,id,red,green,blue", *rows]))
    with contextlib.chdir(folder):
        assert train.main(SHORT) == 0
    return folder


@pytest.fixture
def audit(begun, tool, monkeypatch):
    monkeypatch.chdir(begun)
    return lambda *words: tool("audit_labels")("--workers", 0, "--device", "cpu", *words)


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_audit_writes_into_its_folder_and_nowhere_else(audit, begun, capsys):
    before = {path: path.stat().st_mtime_ns for path in begun.rglob("*")}
    assert audit("--checkpoint", "runs/one", "--min-area", 9, "--count", 5, "--write", "labelme", "yolo") == 0
    said = capsys.readouterr()
    assert said.err.count("was trained on these images (folder, train)") == 1
    assert "audit_folder_train/audit.html shows the 5 most doubtful images" in said.out
    output = begun / "audit_folder_train"
    assert {path.name for path in output.iterdir()} == {
        "audit.html", "audit.json", "images.jsonl", "regions.jsonl", "relabel.txt", "labelme", "yolo"
    }  # fmt: skip
    now = {path: path.stat().st_mtime_ns for path in begun.rglob("*") if output not in (path, *path.parents)}
    assert now == before
    images, about = rows(output / "images.jsonl"), json.loads((output / "audit.json").read_text())
    assert sorted(row["name"] for row in images) == sorted(f"images/train/{name}.png" for name in NAMES)
    assert about["warnings"]
    assert about["checkpoints"] == ["runs/one"]
    listed = (output / "relabel.txt").read_text(encoding="utf-8").splitlines()
    assert listed == [f"my [1] data/{row['name']}" for row in images[:5]]
    assert "was trained on these images" in (output / "audit.html").read_text(encoding="utf-8")

    assert audit("--checkpoint", "runs/one", "--output", output) == 2
    assert "already holds files" in capsys.readouterr().err
    assert audit("--checkpoint", "runs/one", "--split", "val") == 0  # which it was not trained on
    assert "warning" not in capsys.readouterr().err
    assert audit("--checkpoint", "runs/one", "--limit", 2, "--overwrite") == 0
    assert len(rows(output / "images.jsonl")) == 2
    assert audit("--checkpoint", "runs/one", "--limit", 2) == 0
    assert (begun / "audit_folder_train-2" / "audit.json").is_file()


def test_annotations_are_the_labels_with_the_models_in_doubtful_regions(audit, begun, tmp_path):
    output = tmp_path / "out"
    assert audit("--checkpoint", "runs/one", "--min-area", 30, "--write", "coco", "--output", output) == 0
    regions = rows(output / "regions.jsonl")
    assert regions
    content = json.loads((output / "coco" / "annotations.json").read_text(encoding="utf-8"))
    files = {image["file_name"]: image["id"] for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    given = FolderDataset(begun / "my [1] data")
    for row in rows(output / "images.jsonl"):
        labels = given[row["index"]].labels
        expected = np.bincount(labels[labels != IGNORE_LABEL], minlength=10)
        for region in (region for region in regions if region["index"] == row["index"]):
            space = given.label_space.names
            expected[space.index(region["given"])] -= region["area"]
            expected[space.index(region["predicted"])] += region["area"]
        found = dict.fromkeys(given.label_space.names, 0)
        for annotation in content["annotations"]:
            if annotation["image_id"] == files.get(row["name"]):
                found[names[annotation["category_id"]]] += annotation["area"]
        assert row["name"] in files
        assert list(found.values()) == expected.tolist()


def test_folds_are_trained_judged_and_gone_on_with(audit, begun, tmp_path, capsys, monkeypatch):
    """Killed in the second fold; the same command goes on; the folder of folds can be audited again."""
    from resnest_seg.training.trainer import Trainer

    output, train = tmp_path / "folds", Trainer.fit

    def dies(self, **options):
        if self.output.name == "fold_1":
            raise KeyboardInterrupt
        return train(self, **options)

    monkeypatch.setattr(Trainer, "fit", dies)
    command = ("--checkpoint", "runs/one", "--folds", 3, "--group-by", "^images/train/(c|.+)", "--output", output)
    assert audit(*command) == 130
    said = capsys.readouterr().err
    assert f"--output {output}" in said
    assert "--device cpu is where the models judge; --folds trains them on what CUDA_VISIBLE_DEVICES shows" in said
    assert not (output / "audit.json").exists()
    kept = (output / "fold_0" / "last.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(Trainer, "fit", train)
    assert audit(*command) == 0
    assert "warning: " not in capsys.readouterr().err
    assert (output / "fold_0" / "last.safetensors").stat().st_mtime_ns == kept
    fold_of = assign_folds(FolderDataset(begun / "my [1] data"), 3, group_by="^images/train/(c|.+)")
    for fold in range(3):
        said = load_run_config(output / f"fold_{fold}" / "config.yaml")
        assert (said.data.dataset, said.data.root) == ("folder", "my [1] data")
    assert set(fold_of.tolist()) == {0, 1, 2}
    assert fold_of[3] == fold_of[4]  # "c 1" and "c 2"
    images = rows(output / "images.jsonl")

    assert audit("--checkpoint", output, "--output", tmp_path / "again") == 0
    assert "warning" not in capsys.readouterr().err
    assert rows(tmp_path / "again" / "images.jsonl") == images
    runs = [output / f"fold_{fold}" for fold in range(3)]
    for words, problem in (
        ((runs[1], runs[0], runs[2]), "fold_1 is not the next fold"),
        (runs[:2], "folds is 2, and by"),
    ):
        assert audit("--checkpoint", *words, "--output", tmp_path / "no") == 2
        assert problem in capsys.readouterr().err
        assert not (tmp_path / "no" / "audit.json").exists()
    shutil.copytree(output, tmp_path / "moved", ignore=shutil.ignore_patterns("folds.json"))
    moved = [tmp_path / "moved" / run.name for run in runs]
    assert audit("--checkpoints", *moved, "--output", tmp_path / "taken") == 0
    assert "says how the images were divided" in capsys.readouterr().err


def test_of_a_run_on_listed_samples_those_are_audited(audit, begun, tmp_path, capsys):
    """By the run itself, by folds of them, and by these again; all, where the data set is named."""
    from resnest_seg.cli import train

    chosen = [f"images/train/{name}.png" for name in sorted(("c 2", "plain", "ümlaut", "50%"))]
    (begun / "listed.txt").write_text("".join(f"{name}\n" for name in chosen), encoding="utf-8")
    assert train.main([*SHORT[:-1], "--train.batch_size=2", "--data.samples=listed.txt", "--output=runs/listed"]) == 0
    command, names = ("--checkpoint", "runs/listed", "--min-area", 9), []
    for words in ((), ("--folds", 2), ("--dataset", "folder")):
        output = tmp_path / f"audit{len(names)}"
        assert audit(*command, *words, "--output", output) == 0
        names.append(sorted(row["name"] for row in rows(output / "images.jsonl")))
        relabel = (output / "relabel.txt").read_text(encoding="utf-8").splitlines()
        assert sorted(relabel) == [f"my [1] data/{name}" for name in names[-1]]
    assert names == [chosen, chosen, sorted(f"images/train/{name}.png" for name in NAMES)]
    assert audit("--checkpoint", tmp_path / "audit1", "--output", tmp_path / "again", "--min-area", 9) == 0
    assert sorted(row["name"] for row in rows(tmp_path / "again" / "images.jsonl")) == chosen
    (begun / "listed.txt").unlink()
    capsys.readouterr()
    assert audit(*command, "--output", tmp_path / "no") == 2
    assert "cannot be read: No such file or directory. To take all" in capsys.readouterr().err


def test_what_cannot_be_audited_is_said_in_one_line(audit, begun, tmp_path, capsys, monkeypatch):
    data = begun / "my [1] data"
    for words, problem in (
        ((), "--checkpoint is missing"),
        (("--checkpoint", "runs/none"), "runs/none"),
        (("--checkpoint", "runs/none", "--folds", 2), "takes the recipe of a run"),
        (("--checkpoint", "runs/one", "--folds", 1), "--folds"),
        (("--checkpoint", "runs/one", "--folds", 2, "--split", "val"), "audit it without --folds"),
        (("--checkpoint", "runs/one", "runs/one", "--folds", 2), "give one checkpoint"),
        (("--checkpoint", "runs/one", "--folds", 99, "--output", tmp_path / "x"), "from 2 to 8"),
        (("--checkpoint", "runs/one", "--folds", 2, "--group-by", "[", "--output", tmp_path / "y"), "no regular"),
        (("--checkpoint", "runs/one", "--min-area", 0), "--min-area"),
        (("--checkpoint", "runs/one", "--group-by", "^a"), "--group-by says which images stay in one fold, and one"),
        (("--checkpoint", "runs/one", "--output", data / "images" / "train" / "audit"), "holds the data set's files"),
        (("--checkpoint", "runs/one", "--split", "tset"), "tset"),
        (("--checkpoint", "runs/one", "--dataset", "synthetic", "--write", "xml"), "invalid choice: 'xml'"),
    ):
        assert audit(*words) == 2, words
        error = capsys.readouterr().err
        assert problem in error
        assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert audit("--checkpoint", "runs/one") == 2
    assert "without torchrun" in capsys.readouterr().err
