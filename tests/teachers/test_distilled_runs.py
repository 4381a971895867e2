"""Training with a teacher: it learns, a resumed run has the same bits, however a batch is divided the loss is one."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from support.small_models import save_scenes_model

from resnest_seg import fit, load_checkpoint
from resnest_seg.config import RunConfig
from resnest_seg.data.loader import Batch
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.io.visualize import write_png
from resnest_seg.models.loading import build_segmenter, segmenter_for
from resnest_seg.training.tasks import Moment, SegmentationTask

pytestmark = pytest.mark.slow

CONFIG = {
    "model": {"encoder": "resnest14_tiny", "head": "fcn", "output_stride": 16},
    "data": {"dataset": "synthetic", "crop_size": 64, "base_size": 96, "check": 0, "workers": 0},
    "optim": {"lr": 0.01, "reference_batch": None},
    "train": {"epochs": None, "iterations": 3, "batch_size": 4, "save_every": 1, "log_every": 1, "trackers": "none",
              "precision": "fp32"},
    "eval": {"limit": 1, "sheet": 0},
}  # fmt: skip


def taught(teacher, **changes):
    """The config with a teacher."""
    groups = {group: {**CONFIG.get(group, {}), **changes.get(group, {})} for group in (*CONFIG, *changes)}
    groups["distill"] = {"teacher": teacher, "method": "both", **changes.get("distill", {})} if teacher else {}
    return RunConfig.from_dict(groups)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run folder with a fresh model of the scenes."""
    folder = tmp_path_factory.mktemp("teachers") / "run, [1] ä"
    folder.mkdir()
    save_scenes_model(folder)
    return str(folder)


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    return fit(taught(teacher), output=tmp_path_factory.mktemp("runs") / "whole")


def lines(folder, kind="train"):
    entries = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [entry for entry in entries if entry["kind"] == kind]


def test_the_parts_of_the_loss_are_logged_and_add_up(whole):
    found = lines(whole.output)
    assert len(found) == 3
    for line in found:
        assert line["loss"] == pytest.approx(line["labelled_loss"] + line["kl_loss"] + line["cwd_loss"], rel=1e-5)
        assert line["kl_loss"] > 0
        assert line["cwd_loss"] > 0
    page = (whole.output / "report.html").read_text(encoding="utf-8")
    assert "teachers, kl" in page
    assert "teachers, cwd" in page


def test_a_resumed_run_has_the_same_bits_also_with_the_teacher_elsewhere(whole, teacher, tmp_path):
    output, moved = tmp_path / "part", tmp_path / "moved.safetensors"
    assert not fit(taught(teacher), output=output, until=1).finished
    moved.write_bytes((Path(teacher) / "best.safetensors").read_bytes())
    fit(taught(str(moved)), output=output, resume="yes")
    for name in ("last.safetensors", "best.safetensors"):
        with safe_open(whole.output / name, "pt") as one, safe_open(output / name, "pt") as other:
            assert set(one.keys()) == set(other.keys())
            assert all(torch.equal(one.get_tensor(key), other.get_tensor(key)) for key in one.keys())  # noqa: SIM118
    assert lines(output) == lines(whole.output)


def test_another_teacher_is_refused_when_a_run_goes_on(teacher, tmp_path):
    output, other = tmp_path / "run", tmp_path / "other.safetensors"
    fit(taught(teacher), output=output, until=1)
    model = load_checkpoint(teacher)
    with torch.no_grad():
        next(model.head.parameters()).add_(1)
    model.to_checkpoint().save(other)
    for changed in ({"teacher": str(other)}, {"teacher": [teacher, str(other)]}):
        with pytest.raises(
            CheckpointError, match=r"distill\.teacher is not what .* it was sha256 \w{16}, and is sha256"
        ):
            fit(taught(teacher, distill=changed), output=output, resume="yes")
    with pytest.raises(CheckpointError, match=r"distill\.method \(both -> kl\)"):
        fit(taught(None), output=output, resume="yes")
    plain = tmp_path / "plain"
    fit(taught(None), output=plain, until=1)
    with pytest.raises(CheckpointError, match=r"distill\.teacher is not what .* it was none, and is sha256"):
        fit(taught(teacher, distill={"method": "kl"}), output=plain, resume="yes")
    with pytest.raises(CheckpointError, match=r"distill.temperature \(None -> 2.0\)"):
        fit(taught(teacher, distill={"temperature": 2.0}), output=output, resume="yes")


def test_a_checkpoint_holds_no_tensor_of_the_teacher(whole, tmp_path):
    plain = fit(taught(None, train={"iterations": 1}), output=tmp_path / "plain")
    for name in ("last.safetensors", "best.safetensors"):
        with safe_open(whole.output / name, "pt") as one, safe_open(plain.output / name, "pt") as other:
            assert set(one.keys()) == set(other.keys())
    assert "labelled_loss" not in lines(plain.output)[0]


def task_of(config):
    return SegmentationTask(config, Synthetic("train", size=(64, 96)), Synthetic("val", size=(64, 96)))


def batch_of(config, count):
    random = torch.Generator().manual_seed(0)
    size = config.data.crop_size
    images = torch.randint(0, 256, (count, 3, size, size), generator=random, dtype=torch.uint8)
    labels = torch.randint(0, 10, (count, size, size), generator=random, dtype=torch.uint8)
    labels[0, :50] = 255  # the images weigh differently by their labels, and the same for the teacher
    return Batch(images, labels, [f"{n}" for n in range(count)])


@pytest.mark.parametrize("crop", [64, 75])
def test_a_step_is_that_of_the_plain_form_and_its_parts_add_up(teacher, crop):
    """A student at output stride 16 and a teacher at 8, on crops that are multiples of neither, as well."""
    config = taught(teacher, data={"crop_size": crop})
    task, student = task_of(config), segmenter_for(config, Synthetic("train").label_space).eval()
    model, batch = task.begin(student, torch.device("cpu")), batch_of(config, 4)
    total = task.weight_of(batch)
    parameters = list(student.parameters())[:1] + list(student.head.parameters())

    output = student(batch.images, coarse=True).logits
    with torch.no_grad():
        target = F.interpolate(load_checkpoint(teacher)(batch.images, coarse=True).logits, output.shape[2:],
                               mode="bilinear", align_corners=True)  # fmt: skip
    area = output.shape[2] * output.shape[3]
    kl = F.kl_div(output.log_softmax(1), target.softmax(1), reduction="sum") / area
    cwd = (
        F.kl_div((output / 4).flatten(2).log_softmax(2), (target / 4).flatten(2).softmax(2), reduction="sum") * 16 / 10
    )
    full = F.interpolate(output, (crop, crop), mode="bilinear", align_corners=True)
    expected = F.cross_entropy(full, batch.labels.long(), ignore_index=255) + (kl + 3 * cwd) / 4
    gradients = torch.autograd.grad(expected, parameters)

    whole = task.loss(model, batch, total=total, moment=Moment(0))
    torch.testing.assert_close(whole.loss, expected, rtol=1e-4, atol=1e-5)
    assert set(whole.sums) == {"labelled_loss", "kl_loss", "cwd_loss"}
    torch.testing.assert_close(whole.sums["kl_loss"], kl.detach() / 4, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(whole.loss, parameters), gradients, rtol=1e-3, atol=1e-4)

    halves = [Batch(batch.images[part], batch.labels[part], []) for part in (slice(0, 1), slice(1, 4))]
    found = [task.loss(model, half, total=total, moment=Moment(0)) for half in halves]
    torch.testing.assert_close(sum(half.loss for half in found), whole.loss)
    for name, value in whole.sums.items():
        torch.testing.assert_close(sum(half.sums[name] for half in found), value)


def test_a_model_in_half_precision_learns_from_a_teacher_in_float32(teacher):
    config = taught(teacher, distill={"precision": "fp32"})
    task, student = task_of(config), segmenter_for(config, Synthetic("train").label_space).eval()
    model, batch = task.begin(student, torch.device("cpu")), batch_of(config, 4)
    total = task.weight_of(batch)
    exact = task.loss(model, batch, total=total, moment=Moment(0))
    with torch.autocast("cpu", torch.bfloat16):
        rough = task.loss(model, batch, total=total, moment=Moment(0))
    assert rough.loss.dtype == torch.float32
    assert rough.sums["kl_loss"] != exact.sums["kl_loss"]
    torch.testing.assert_close(rough.sums["kl_loss"], exact.sums["kl_loss"], rtol=0.05, atol=0)
    rough.loss.backward()
    assert all(value.grad.isfinite().all() for value in student.head.parameters())


def test_a_head_that_predicts_masks_is_not_taught(teacher):
    config = taught(teacher, model={"head": "mask2former", "family": "mmseg", "output_stride": 32, "aux_head": False})
    student = build_segmenter("resnest14_tiny", head="mask2former", family="mmseg", num_classes=10, output_stride=32,
                              aux_head=False, pixel_decoder="fpn")  # fmt: skip
    with pytest.raises(ConfigError, match="head mask2former predicts masks"):
        task_of(config).begin(student, torch.device("cpu"))


def test_a_run_learns_from_a_teacher_and_from_unlabelled_photos(teacher, tmp_path):
    """The teacher's losses stand beside that of the labels, and are weighted as that is."""
    for index in range(4):
        write_png(tmp_path / "photos" / f"{index}.png", Synthetic("val", size=(64, 96))[index].image)
    config = taught(teacher, train={"unlabelled": str(tmp_path / "photos"), "iterations": 1},
                    semi={"threshold": 0.0, "method": "fixmatch"})  # fmt: skip
    (line,) = lines(fit(config, output=tmp_path / "run").output)
    expected = (line["labelled_loss"] + line["kl_loss"] + line["cwd_loss"] + line["unlabelled_loss"]) / 2
    assert line["loss"] == pytest.approx(expected, rel=1e-5)
    assert line["certain"] == 1


def test_own_losses_and_networks_are_taught_as_well(teacher, tmp_path):
    network = build_segmenter("resnest14_tiny", "fcn", 10, output_stride=32)
    config = taught(teacher, train={"iterations": 1})
    run = fit(config, output=tmp_path / "run", segmenter=network,
              loss=lambda logits, labels: F.cross_entropy(logits, labels, ignore_index=255))  # fmt: skip
    (line,) = lines(run.output)
    assert line["loss"] == pytest.approx(line["labelled_loss"] + line["kl_loss"] + line["cwd_loss"], rel=1e-5)


def test_a_model_comes_nearer_to_its_teacher(teacher, tmp_path):
    """The labels say something else, which is nearly ignored; the rate is small, so that the losses fall steadily."""
    weights = {"kl_weight": 30.0, "cwd_weight": 30.0}
    train = {"iterations": 8, "batch_size": 2, "save_every": 100}
    config = taught(teacher, distill=weights, train=train, optim={"lr": 0.002})
    found = lines(fit(config, output=tmp_path / "run").output)
    for name in ("kl_loss", "cwd_loss"):
        assert sum(line[name] for line in found[-3:]) < 0.8 * sum(line[name] for line in found[:3])
