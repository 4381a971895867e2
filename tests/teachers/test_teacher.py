"""Teachers of every kind: what they say about images, on which places, and for which classes."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import small_onnx
from support.small_models import noise, small_segmenter

from resnest_seg.config import DataConfig, DistillConfig
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.labels import LabelSpace
from resnest_seg.models.loading import build_segmenter, load_checkpoint
from resnest_seg.teachers.distillation import Distillation, shared_classes
from resnest_seg.teachers.teacher import Grid, Reply, Teacher, at_places, open_teachers, teachers_identity

ABC = LabelSpace.numbered(3, names=["a", "b", "c"], name="letters")
CPU = torch.device("cpu")


def save(path, *, names=("a", "b", "c"), seed=0, stride=8, **options):
    """A model of resnest14_tiny with classes of these names; returns its path."""
    torch.manual_seed(seed)
    task = options.get("task", "multiclass")
    count = 1 if task == "binary" else len(names)
    segmenter = build_segmenter("resnest14_tiny", "fcn", count, output_stride=stride, aux_head=False, **options)
    if names is not None:
        segmenter.label_space = LabelSpace.numbered(len(names), names=names).for_task(task, positive=names[-1:])
    for module in segmenter.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after training
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    segmenter.to_checkpoint().save(path)
    return str(path)


def opened(*names, channels=3, task="multiclass", data=DataConfig(), **options):  # noqa: B008
    config = DistillConfig(teacher=names, **options)
    return open_teachers(config, data, channels=channels, task=task, device=CPU, precision="fp32")


def pixels(count=2, height=64, width=64, channels=3):
    return torch.from_numpy(noise(count, channels, height, width))


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    return save(tmp_path_factory.mktemp("teacher") / "letters.safetensors")


def test_a_checkpoint_gives_its_coarse_logits(letters):
    (teacher,) = opened(letters)
    images, model = pixels(), load_checkpoint(letters)
    reply = teacher.ask(images)
    with torch.no_grad():
        expected = model(images, coarse=True).logits
    assert reply.grid == Grid(8, 8, True, (64, 64))
    found = reply.at(reply.grid)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # fused
    assert not found.requires_grad
    finer = reply.at(Grid(64, 64, False, (64, 64)))
    torch.testing.assert_close(finer, F.interpolate(found, (64, 64), mode="bilinear", align_corners=True))


def test_a_teacher_is_the_same_in_any_batch_mode_and_precision_around_it(letters):
    (teacher,) = opened(letters)
    images = pixels()
    before = teacher.ask(images).at(Grid(8, 8, True, (64, 64)))
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16):
        again = teacher.ask(images).at(Grid(8, 8, True, (64, 64)))
    assert torch.equal(before, again)
    assert before.dtype == torch.float32
    (half,) = opened(letters, precision="bf16")
    coarse = half.ask(images).at(Grid(8, 8, True, (64, 64)))
    assert not torch.equal(coarse, before)
    torch.testing.assert_close(coarse, before, rtol=0.1, atol=0.1 * before.abs().max().item())


@pytest.mark.long
@pytest.mark.slow
def test_an_exported_teacher_says_what_its_checkpoint_says(letters, tmp_path):
    from resnest_seg.export.graph import ExportOptions, info_of
    from resnest_seg.export.onnx import write_onnx

    path, model = tmp_path / "letters [ä], 2.onnx", load_checkpoint(letters)
    write_onnx(model, info_of(model, ExportOptions("uint8", "nchw", "logits", "float32")), path, ())
    images, grid = pixels(3), Grid(8, 8, True, (64, 64))
    (torch_one,), (file,) = opened(letters), opened(str(path))
    expected, found = torch_one.ask(images).at(grid), file.ask(images).at(grid)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    assert teachers_identity(DistillConfig(teacher=(letters, str(path)))).count(",") == 1


@pytest.mark.slow
def test_a_file_of_whole_numbers_teaches_a_model_of_floats(tmp_path):
    """Crops are floats where pixels without data hold means: they are rounded, as in a prediction."""
    from resnest_seg.export.graph import ExportOptions, info_of
    from resnest_seg.export.onnx import write_onnx

    model = small_segmenter(channels=4)
    data = DataConfig(bands=(1, 2, 3, 4), pixel_mean=(120.0,) * 4, pixel_std=(60.0,) * 4)
    model.take_statistics(data)
    model.config, model.label_space = dataclasses.replace(model.config, data=data), ABC
    write_onnx(model, info_of(model, ExportOptions("uint16", "nchw", "logits", "float32")), tmp_path / "b.onnx", ())
    (teacher,) = opened(str(tmp_path / "b.onnx"), channels=4, data=data)
    whole, grid = pixels(channels=4), Grid(8, 8, True, (64, 64))
    expected = teacher.ask(whole.to(torch.uint16)).at(grid)
    assert torch.equal(teacher.ask(whole.float() + 0.3).at(grid), expected)
    with pytest.raises(ConfigError, match=r"b.onnx takes uint16 bands, and the image has values from -"):
        teacher.ask(whole.float() - 300).at(grid)


def test_the_logarithms_of_probabilities_stand_for_logits(tmp_path):
    small_onnx.write(tmp_path / "model.onnx")
    small_onnx.write(tmp_path / "softmax.onnx", output="softmax")
    images, grid = pixels(2, 24, 40).float(), Grid(24, 40, True, (24, 40))
    plain, soft = (opened(str(tmp_path / name))[0].ask(images).at(grid) for name in ("model.onnx", "softmax.onnx"))
    torch.testing.assert_close(soft.exp(), plain.softmax(1).clamp(min=1e-38), rtol=1e-4, atol=1e-5)


def test_a_file_runs_a_few_images_at_a_time_and_only_when_it_is_asked_for_places(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    small_onnx.write(path)
    monkeypatch.setattr("resnest_seg.teachers.teacher.CPU_PIXELS", 2 * 24 * 40)
    (teacher,) = opened(str(path))
    calls, run = [], teacher.backend.network.logits_fn
    object.__setattr__(teacher.backend.network, "logits_fn", lambda images: (calls.append(len(images)), run(images))[1])
    images = pixels(5, 24, 40).float()
    reply = teacher.ask(images)
    assert calls == []
    whole = Grid(24, 40, True, (24, 40))
    torch.testing.assert_close(reply.at(whole), small_onnx.convolution(images), rtol=1e-4, atol=1e-4)
    assert calls == [2, 2, 1]
    coarse = reply.at(Grid(3, 5, False, (24, 40)))
    full = small_onnx.convolution(images)
    middle = torch.stack([full[:, :, y::8, x::8] for y in (3, 4) for x in (3, 4)]).mean(dim=0)
    torch.testing.assert_close(coarse, middle, rtol=1e-4, atol=1e-4)


def test_masks_teach_by_the_logarithms_of_their_scores_also_on_padded_images(tmp_path):
    torch.manual_seed(0)
    model = build_segmenter("resnest14_tiny", head="mask2former", family="mmseg", num_classes=3, output_stride=32,
                            aux_head=False, pixel_decoder="fpn")  # fmt: skip
    model.label_space = ABC
    model.to_checkpoint().save(tmp_path / "masks.safetensors")
    model.eval()
    (teacher,) = opened(str(tmp_path / "masks.safetensors"))
    for size in ((64, 64), (60, 33)):
        images = pixels(2, *size)
        reply = teacher.ask(images)
        assert reply.grid == Grid(16, 16, False, (64, 64))
        padded = F.pad(images.float() - model.pixel_mean, (0, 64 - size[1], 0, 64 - size[0])) + model.pixel_mean
        with torch.no_grad():
            expected = model(padded, coarse=True).logits
        torch.testing.assert_close(reply.at(reply.grid), expected, rtol=1e-3, atol=1e-3)


class Named:
    """A teacher as the matching of classes sees it."""

    def __init__(self, names, count=None):
        self.name, self.classes = "some.onnx", count or len(names)
        self.label_space = None if names is None else LabelSpace.numbered(len(names), names=names)


def test_classes_are_matched_by_name():
    found = shared_classes(ABC, [Named(["c", "x", "a", "b"]), Named(["b", "c", "y"])])
    assert found == ([1, 2], [[3, 0], [0, 1]], ["a"])
    assert shared_classes(ABC, [Named(None, 3)]) == ([0, 1, 2], [[0, 1, 2]], [])


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (Named(["x", "y"]), "share no class.*The data has a, b, c; some.onnx: x, y"),
        (Named(["a", "y"]), "share only the class a"),
        (Named(None, 4), "does not say which classes its 4 logits are, and the data has 3"),
    ],
)
def test_a_teacher_of_other_classes_is_refused(teacher, words):
    with pytest.raises(ConfigError, match=words):
        shared_classes(ABC, [teacher])


def saying(logits, names, *, grid):
    """A teacher that says the same about everything."""
    backend = type("Scripted", (), {"label_space": LabelSpace.numbered(len(names), names=names), "description": "x"})()
    return Teacher("scripted", backend, len(names), lambda images: Reply(grid, lambda to: at_places(logits, grid, to)))


def test_losses_compare_the_shared_classes_among_themselves():
    """A teacher of more classes in another order, one that lacks a class: softmax over what both have."""
    random = torch.Generator().manual_seed(0)
    grid = Grid(6, 6, True, (48, 48))
    logits, first, second = (2 * torch.randn(2, count, 6, 6, generator=random) for count in (3, 4, 2))
    teachers = [saying(first, ["c", "x", "a", "b"], grid=grid), saying(second, ["b", "c"], grid=grid)]
    images = torch.zeros(2, 3, 48, 48)
    for taught, own, theirs in (
        (teachers[:1], logits, [first[:, [2, 3, 0]]]),
        (teachers, logits[:, 1:], [first[:, [3, 0]], second]),
    ):
        leaf = own.clone()
        log_p, q = leaf.log_softmax(1), torch.stack([each.softmax(1) for each in theirs]).mean(0)
        expected_kl = F.kl_div(log_p, q, reduction="sum") / 36 / 8
        flat, soft = own.flatten(2) / 4, torch.stack([(each.flatten(2) / 4).softmax(2) for each in theirs]).mean(0)
        expected_cwd = 16 * F.kl_div(flat.log_softmax(2), soft, reduction="sum") / own.shape[1] / 8
        losses = Distillation(
            DistillConfig(teacher=("x",), method="both", kl_weight=2.0), taught, ABC, align_corners=True
        )
        found = losses.ask(images).losses(logits, images=8)
        torch.testing.assert_close(found["kl_loss"], 2 * expected_kl)
        torch.testing.assert_close(found["cwd_loss"], 3 * expected_cwd)


def test_maps_are_compared_at_the_places_of_the_coarser():
    random = torch.Generator().manual_seed(0)
    fine, coarse = torch.randn(1, 3, 12, 12, generator=random), torch.randn(1, 3, 6, 6, generator=random)
    for own, theirs in ((fine, coarse), (coarse, fine)):
        grid = Grid(*theirs.shape[2:], False, (48, 48))
        losses = Distillation(
            DistillConfig(teacher=("x",)), [saying(theirs, ["a", "b", "c"], grid=grid)], ABC, align_corners=False
        )
        leaf = own.clone().requires_grad_()
        found = losses.ask(torch.zeros(1, 3, 48, 48)).losses(leaf, images=1)
        plain = own.clone().requires_grad_()
        # Between centres of twice as many parts lie the means of neighbours.
        student, teacher = (F.avg_pool2d(each, each.shape[2] // 6) for each in (plain, theirs))
        expected = F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="sum") / 36
        torch.testing.assert_close(found["kl_loss"], expected)
        found["kl_loss"].backward()
        expected.backward()
        torch.testing.assert_close(leaf.grad, plain.grad)


def test_binary_models_teach_binary_ones(tmp_path):
    path = save(tmp_path / "binary.safetensors", names=("b", "car"), task="binary")
    (teacher,) = opened(path, task="binary")
    space = LabelSpace.numbered(2, names=["rest", "car"]).for_task("binary", positive=["car"])
    losses = Distillation(DistillConfig(teacher=(path,), method="both"), [teacher], space, align_corners=True)
    images = pixels()
    logits = torch.zeros(2, 1, 8, 8)
    found = losses.ask(images).losses(logits, images=2)
    z = teacher.ask(images).at(Grid(8, 8, True, (64, 64)))
    q = z.sigmoid()
    expected = (q * (q / 0.5).log() + (1 - q) * ((1 - q) / 0.5).log()).mean()
    torch.testing.assert_close(found["kl_loss"], expected)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"task": "binary"}, "is a multiclass model, and model.task is binary"),
        ({"channels": 4}, "takes images of 3 channels, and those of this run have 4"),
        (
            {"data": DataConfig(bands=(1, 2, 3), pixel_mean=(900.0, 800.0, 700.0), pixel_std=(1.0, 1.0, 1.0))},
            r"takes photos \(8-bit RGB\), and the images of this run are bands \(1, 2, 3\)",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_the_images_is_refused(letters, how, words):
    with pytest.raises(ConfigError, match=words):
        opened(letters, **how)


def test_a_teacher_of_bands_takes_the_same_bands_only(tmp_path):
    path = tmp_path / "bands.safetensors"
    model = build_segmenter("resnest14_tiny", "fcn", 3, in_channels=4)
    statistics = {"pixel_mean": (9.0,) * 4, "pixel_std": (2.0,) * 4}
    data = DataConfig(bands=(4, 3, 2, 8), **statistics)
    model.config = dataclasses.replace(model.config, data=data)
    model.label_space = ABC
    model.to_checkpoint().save(path)
    assert opened(str(path), channels=4, data=data)
    with pytest.raises(
        ConfigError, match=r"takes the bands \(4, 3, 2, 8\), and this run has data.bands \(1, 2, 3, 4\)"
    ):
        opened(str(path), channels=4, data=dataclasses.replace(data, bands=(1, 2, 3, 4)))


def test_a_teacher_that_gives_labels_only_is_refused(tmp_path):
    small_onnx.write(tmp_path / "labels.onnx", output="labels")
    with pytest.raises(ConfigError, match="it gives labels only, no scores"):
        opened(str(tmp_path / "labels.onnx"))


def test_a_precision_belongs_to_checkpoints(tmp_path):
    small_onnx.write(tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match=r"runs as it was exported: leave distill\.precision bf16 out"):
        opened(str(tmp_path / "model.onnx"), precision="bf16")


def test_a_network_of_ones_own_teaches_as_a_file(tmp_path):
    path = tmp_path / "own.safetensors"
    segmenter = small_segmenter(ABC)
    config = dataclasses.replace(segmenter.config.model, encoder="custom")
    segmenter.config = dataclasses.replace(segmenter.config, model=config)
    segmenter.to_checkpoint().save(path)
    with pytest.raises(CheckpointError, match=r"export it \(`.*export_seg.* --checkpoint .*own.safetensors --model"):
        opened(str(path))


def test_a_teacher_that_is_missing_or_damaged_is_named(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    for name in (tmp_path / "no such run", tmp_path / "broken.onnx"):
        with pytest.raises(CheckpointError, match=name.name):
            opened(str(name))


def test_a_teacher_whose_logits_are_no_numbers_is_named(tmp_path):
    path = save(tmp_path / "overflows.safetensors")
    model = load_checkpoint(path)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.fill_(3e38)
    model.to_checkpoint().save(path)
    (teacher,) = opened(path)
    with pytest.raises(
        CheckpointError, match=r"distill.teacher .*overflows.safetensors: the model's logits are not all"
    ):
        teacher.ask(pixels())


def test_the_identity_of_teachers_is_their_content_in_order(letters, tmp_path):
    other, copy = save(tmp_path / "other.safetensors", seed=1), tmp_path / "run" / "best.safetensors"
    copy.parent.mkdir()
    copy.write_bytes(Path(letters).read_bytes())
    one, moved, two, turned = (
        teachers_identity(DistillConfig(teacher=names))
        for names in ((letters,), (str(copy.parent),), (letters, other), (other, letters))
    )
    assert one == moved
    assert len({one, two, turned}) == 3
    assert teachers_identity(DistillConfig()) == ""


def test_the_identity_of_an_openvino_model_is_that_of_its_weights_as_well(tmp_path):
    (tmp_path / "model.xml").write_bytes(b"network")
    found = set()
    for weights in (b"one", b"another"):
        (tmp_path / "model.bin").write_bytes(weights)
        found.add(teachers_identity(DistillConfig(teacher=(str(tmp_path / "model.xml"),))))
    assert len(found) == 2
