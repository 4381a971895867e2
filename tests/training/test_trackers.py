"""Trackers: what they are told, by a tracker of accelerate's interface that remembers it."""

import dataclasses
import json
import re
from pathlib import Path

import accelerate.tracking
import pytest
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_validation import CONFIG, trainer, validations

from resnest_seg.errors import ConfigError
from resnest_seg.training.run_folder import RunFolder
from resnest_seg.training.trackers import TRACKERS, TrackedRun, class_points, tracker_names

pytestmark = pytest.mark.filterwarnings("ignore:A tracker with the name")


@pytest.fixture
def told(monkeypatch):
    """What a fake trackio was told."""
    heard = {"starts": [], "config": [], "points": [], "finished": 0}

    class Remembering(GeneralTracker):
        name, requires_logging_directory = "trackio", False

        def __init__(self, project, **options):
            super().__init__()
            self.options = {"project": project, **options}

        def start(self):
            if heard.get("refuses"):
                raise RuntimeError("no account")
            heard["starts"].append(self.options)

        @property
        def tracker(self):
            return self

        def store_init_configuration(self, values):
            heard["config"].append(values)

        def log(self, values, step=None):
            heard["points"].append((step, values))

        def finish(self):
            heard["finished"] += 1

    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "trackio", Remembering)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType.TENSORBOARD, LoggerType.TRACKIO])
    return heard


def tracked(**changes):
    return dataclasses.replace(CONFIG.train, iterations=4, ema=0.0, **changes)


def test_every_tracker_of_accelerate_has_a_name():
    assert TRACKERS.keys() == accelerate.tracking.LOGGER_TYPE_TO_CLASS.keys()


def test_a_tracker_hears_name_tags_points_and_the_resume(told, tmp_path):
    folder = tmp_path / "my run [1] ü"
    values = tracked(trackers="trackio", tags="camvid, <script>,")
    assert not trainer(folder, train=values).fit(until=2)
    assert trainer(folder, resume=True, train=values).fit()
    first, again = told["starts"]
    identity = json.loads((folder / "machine.jsonl").read_text().splitlines()[0])["id"]
    assert first == again == {
        "project": "resnest_seg", "name": f"my run [1] ü-{identity[:8]}", "resume": "allow",
        "config": {"tags": "camvid, <script>"},
    }  # fmt: skip
    assert told["config"][0]["train.tags"] == "camvid, <script>,"
    assert told["finished"] == 2
    lines = {line["step"]: line for line in validations(folder)}
    points = {}
    for step, one in told["points"]:
        points.setdefault(step, {}).update(one)
    assert set(points) >= {1, 2, 3, 4}
    for step, line in lines.items():
        assert points[step]["validation/val_loss"] == line["val_loss"]
        assert points[step]["class_iou/0 sky"] == line["class_iou"][0]
        assert points[step]["class_iou/1 _road_"] == line["class_iou"][1]
        assert points[step]["class_iou/2 Straße"] == line["class_iou"][2]
        assert points[step].get("class_iou/3 moon") == line["class_iou"][3]  # predicted nowhere in the end
    assert line["class_iou"][3] is None


def test_a_tracker_that_cannot_start_is_told_in_words(told, tmp_path):
    told["refuses"] = True
    with pytest.raises(ConfigError, match=r"train.trackers trackio cannot be started: RuntimeError: no account\. Log"):
        trainer(tmp_path / "run", train=tracked(trackers="trackio")).fit()


def test_tensorboard_has_the_classes(tmp_path):
    assert trainer(tmp_path / "run", train=tracked(trackers="tensorboard")).fit()
    (events,) = (tmp_path / "run" / "tensorboard" / "resnest_seg").glob("events.*")
    found = EventAccumulator(str(events)).Reload()
    tags = set(found.Tags()["scalars"])
    assert {"class_iou/0 sky", "class_iou/1 _road_", "class_iou/2 Straße", "validation/val_loss"} <= tags
    seen = [(event.step, event.value) for event in found.Scalars("validation/val_loss")]
    assert seen == [(line["step"], pytest.approx(line["val_loss"])) for line in validations(tmp_path / "run")]


def test_points_of_classes_have_names_that_all_trackers_take():
    names = ["a/b", "a_b", "..", "", "x\n$^&<>\"'%", "ü 道路", "k" * 300, *"1234"]
    points = class_points(names, [0.5] * len(names))
    assert len(points) == len(names)
    assert list(points)[:4] == ["class_iou/00 a_b", "class_iou/01 a_b", "class_iou/02 ..", "class_iou/03 "]
    assert all(re.fullmatch(r"class_iou/\d\d [\w .-]{0,100}", name) for name in points)
    assert class_points(["a", "b"], [None, 0.25]) == {"class_iou/1 b": 0.25}


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("wandbs", "unknown train.trackers 'wandbs'.*wandb"),
        ("tensorboard,comet_ml", r"train.trackers comet_ml needs its package: pip install comet-ml\. Or use tensorb"),
    ],
)
def test_names_are_checked(told, names, says):
    with pytest.raises(ConfigError, match=says):
        tracker_names(names)
    assert tracker_names("trackio , tensorboard,none") == ["tensorboard", "trackio"]


def test_identities_are_told_to_those_that_take_some(tmp_path):
    run = TrackedRun(tmp_path / "a", "0123456789abcdef" * 2, ("x", "y"), 7)
    assert TRACKERS["tensorboard"](run) == {"purge_step": 8}
    wandb = TRACKERS["wandb"](run)
    assert (wandb["id"], wandb["resume"], wandb["name"], wandb["tags"]) == (run.identity, "allow", "a", ["x", "y"])
    assert TRACKERS["aim"](run)["run_hash"] == run.identity
    for name in ("clearml", "dvclive"):
        assert TRACKERS[name](run) != TRACKERS[name](dataclasses.replace(run, step=0))


def test_a_run_killed_before_its_first_save_begins_again_in_the_folders_of_its_trackers(tmp_path):
    run = TrackedRun(tmp_path / "run", "0123456789abcdef" * 2, (), 0)
    for name in TRACKERS.keys() - {"comet_ml", "mlflow"}:  # which are asked at once, and need their packages
        for value in TRACKERS[name](run).values():
            if str(value).startswith(str(run.folder)):
                (Path(value) / "wandb" if name == "wandb" else Path(value)).mkdir(parents=True)
    assert {path.name for path in run.folder.iterdir()} >= {"dvclive", "swanlog"}
    RunFolder(run.folder).check_new(adopt=True)


@pytest.fixture(autouse=True)
def _fresh_engine():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
