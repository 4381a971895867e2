"""Averages of weights, against means by hand, and batch norms counted anew, against the definition."""

import copy
import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.small_models import OneConvolution, noise, save_scenes_model, small_segmenter

from resnest_seg import LabelSpace, PairDataset
from resnest_seg.cli import average
from resnest_seg.combining.averages import average_checkpoints, best_states, newest_states, recompute_batch_norms
from resnest_seg.config import OptimConfig, TrainConfig
from resnest_seg.data.loader import load_batches, training_batches
from resnest_seg.data.transforms import TrainTransform
from resnest_seg.errors import CheckpointError, ConfigError, DatasetError
from resnest_seg.models.checkpoint import Checkpoint
from resnest_seg.models.loading import load_checkpoint

SPACE = LabelSpace.numbered(3, names=["sky", "road", "car"])


def member(seed):
    segmenter = small_segmenter(SPACE)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in segmenter.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=random)
    segmenter.encoder.norm.num_batches_tracked.fill_(seed)
    return segmenter


def saved(path, segmenter):
    segmenter.to_checkpoint().save(path)
    return path


def test_the_average_of_one_is_itself_and_of_equal_states_is_the_state(tmp_path):
    paths = [saved(tmp_path / f"{number}.safetensors", member(1)) for number in range(3)]
    want = Checkpoint.load(paths[0]).weights
    for some in (paths[:1], paths[:2], paths):
        found = average_checkpoints(some).weights
        assert found.keys() == want.keys()
        assert all(torch.equal(found[key], want[key]) and found[key].dtype == want[key].dtype for key in want)


def test_an_average_is_the_mean_of_each_weight_and_names_its_members(tmp_path):
    paths = [saved(tmp_path / f"{seed}.safetensors", member(seed)) for seed in (1, 2, 3)]
    found, weights = average_checkpoints(paths), [Checkpoint.load(path).weights for path in paths]
    for key, value in found.weights.items():
        if value.is_floating_point():
            mean = np.mean([each[key].numpy().astype(np.float64) for each in weights], axis=0)
            assert np.array_equal(value.numpy(), mean.astype(np.float32)), key
    assert found.weights["encoder.norm.num_batches_tracked"] == 1
    assert found.origin == {
        "average_of": [{"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in paths]
    }
    found.save(tmp_path / "mean.safetensors")
    assert Checkpoint.load(tmp_path / "mean.safetensors").origin == found.origin
    assert found.training is None


def test_mean_thresholds_are_such_as_evaluations_count(tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, threshold in zip(paths, (0.463, 0.466), strict=True):
        segmenter = small_segmenter(SPACE.for_task("multilabel"), classes=3)
        segmenter.take_task("multilabel")
        segmenter.thresholds.fill_(threshold)
        saved(path, segmenter)
    for some, steps in ((paths, (464, 465)), (paths[:1], (463,))):
        found = average_checkpoints(some).weights["thresholds"]
        assert any(torch.equal(found, torch.full((3,), step / 1000)) for step in steps)


def test_what_cannot_be_averaged_is_refused_by_what_differs(tmp_path):
    first = saved(tmp_path / "a.safetensors", member(1))
    plain = Checkpoint.load(first)
    model = plain.config.model

    def refused(**changes):
        dataclasses.replace(plain, **changes).save(tmp_path / "b.safetensors")
        with pytest.raises(CheckpointError) as caught:
            average_checkpoints([first, tmp_path / "b.safetensors"])
        return str(caught.value)

    def other(**changes):
        return dataclasses.replace(plain.config, model=dataclasses.replace(model, **changes))

    assert refused(config=other(head="pspnet")) == (
        f"{tmp_path / 'b.safetensors'} cannot be averaged with {first}: its network is another one, model.head is "
        "'pspnet' and not 'fcn'."
    )
    assert "model.output_stride is 16 and not 8" in refused(config=other(output_stride=16))
    data = dataclasses.replace(plain.config.data, bands=(3, 2, 1))
    bands = refused(config=dataclasses.replace(plain.config, data=data))
    assert "data.bands and data.nodata are ((3, 2, 1), None) and not (None, None)" in bands
    space = LabelSpace.numbered(3, names=["sky", "car", "road"])
    assert "class 1 is 'car' and not 'road'" in refused(label_space=space)
    assert "it has 4 classes and not 3" in refused(label_space=LabelSpace.numbered(4, names=[*SPACE.names, "d"]))
    weights = dict(plain.weights)
    mean = weights["pixel_mean"] + 1
    assert "normalises pixels otherwise (pixel_mean)" in refused(weights=weights | {"pixel_mean": mean})
    assert "only one of them has extra" in refused(weights=weights | {"extra": torch.zeros(1)})
    bias = [key for key in weights if "bias" in key][-1]
    assert f"{bias} has the shape [9]" in refused(weights=weights | {bias: torch.zeros(9)})
    assert average_checkpoints([first, saved(tmp_path / "c.safetensors", member(2))])
    with pytest.raises(ConfigError, match="no checkpoint to average"):
        average_checkpoints([])


def trainable(*, freeze=None, batch=3):
    segmenter = member(1)
    train, optim = TrainConfig(batch_size=2 * batch, accumulation=2), OptimConfig(freeze=freeze)
    segmenter.config = dataclasses.replace(segmenter.config, seed=5, train=train, optim=optim)
    return segmenter


def photos(count=8):
    pairs = [(noise(60, 70, 3, seed=seed), noise(60, 70, seed=seed) % 3) for seed in range(count)]
    return PairDataset(pairs, SPACE, split="train")


def by_hand(segmenter, dataset, batches):
    """Means over batches of each norm's input: its mean, and its variance with n - 1."""
    config, seen = segmenter.config, {}
    twin = copy.deepcopy(segmenter).train()
    for name, module in twin.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_pre_hook(
                lambda module, inputs, name=name: seen.setdefault(name, []).append(inputs[0].detach().double())
            )
    order = training_batches(len(dataset), seed=5, batch_size=3, steps=range(batches))
    with torch.no_grad():
        for batch in load_batches(dataset, order, transform=TrainTransform.from_config(config.data), seed=5):
            twin(batch.images)
    return {
        name: (
            torch.stack([x.mean(dim=(0, 2, 3)) for x in inputs]).mean(dim=0),
            torch.stack([x.transpose(0, 1).flatten(1).var(dim=1, correction=1) for x in inputs]).mean(dim=0),
        )
        for name, inputs in seen.items()
    }


@pytest.mark.parametrize(("images", "batches"), [(None, 2), (5, 1)])
def test_batch_norms_are_counted_anew_by_the_definition(images, batches):
    segmenter, dataset = trainable(), photos()
    want = by_hand(segmenter, dataset, batches)
    others = {key: value.clone() for key, value in segmenter.state_dict().items() if "running" not in key}
    assert recompute_batch_norms(segmenter, dataset, images=images) == 3 * batches
    assert len(want) > 2
    for name, (mean, var) in want.items():
        norm = segmenter.get_submodule(name)
        assert torch.allclose(norm.running_mean.double(), mean, atol=1e-5)
        assert torch.allclose(norm.running_var.double(), var, rtol=1e-4)
        assert norm.momentum == 0.1
        assert norm.num_batches_tracked == batches
    now = segmenter.state_dict()
    assert all(torch.equal(now[key], value) for key, value in others.items() if "num_batches" not in key)
    assert not segmenter.training
    again = trainable()
    before = torch.get_rng_state()
    recompute_batch_norms(again, dataset, images=images)
    assert all(torch.equal(value, now[key]) for key, value in again.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_without_batch_norms_has_none_to_count():
    segmenter = trainable()
    norms = [name for name, module in segmenter.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for name in norms:
        segmenter.set_submodule(name, torch.nn.Identity())
    assert norms
    assert recompute_batch_norms(segmenter, photos()) == 0


def test_what_the_run_froze_keeps_its_statistics():
    segmenter, dataset = trainable(freeze="bn"), photos()
    before = {key: value.clone() for key, value in segmenter.state_dict().items() if "running" in key}
    recompute_batch_norms(segmenter, dataset)
    now = segmenter.state_dict()
    kept = {key for key in before if torch.equal(before[key], now[key])}
    assert kept == {key for key in before if key.startswith("encoder.")}
    want = trainable(freeze="bn").train()
    want.encoder.eval()  # the heads see features that are normalised as before
    assert isinstance(want.encoder, OneConvolution)
    inputs = []
    norm = next(name for name, module in want.head.named_modules() if isinstance(module, torch.nn.BatchNorm2d))
    want.head.get_submodule(norm).register_forward_pre_hook(lambda module, given: inputs.append(given[0].detach()))
    order = training_batches(8, seed=5, batch_size=3, steps=range(2))
    with torch.no_grad():
        for batch in load_batches(dataset, order, transform=TrainTransform.from_config(want.config.data), seed=5):
            want(batch.images)
    mean = torch.stack([x.mean(dim=(0, 2, 3)) for x in inputs]).mean(dim=0)
    assert torch.allclose(segmenter.head.get_submodule(norm).running_mean, mean, atol=1e-5)


def test_dropout_is_drawn_by_the_seed_of_the_run():
    found = []
    for seed in (1, 2):
        segmenter = trainable()
        segmenter.encoder.pool = torch.nn.Sequential(torch.nn.Dropout(0.5), segmenter.encoder.pool)
        torch.manual_seed(seed)
        recompute_batch_norms(segmenter, photos())
        found.append(segmenter.state_dict())
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_after_an_error_the_model_is_as_before():
    class Damaged(PairDataset):
        def __getitem__(self, index):
            if index == 5:
                raise DatasetError("a damaged photo")
            return super().__getitem__(index)

    pairs = [(noise(60, 70, 3, seed=seed), noise(60, 70, seed=seed) % 3) for seed in range(8)]
    segmenter = trainable().eval()
    before = copy.deepcopy(segmenter)
    with pytest.raises(DatasetError, match="a damaged photo"):
        recompute_batch_norms(segmenter, Damaged(pairs, SPACE, split="train"), images=8)
    assert all(torch.equal(value, before.state_dict()[key]) for key, value in segmenter.state_dict().items())
    assert not any(module.training for module in segmenter.modules())
    assert {module.momentum for module in segmenter.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {0.1}


def test_too_few_samples_have_no_statistics():
    with pytest.raises(ConfigError, match="need batches of two images or more, not 1 of 1"):
        recompute_batch_norms(trainable(), photos(1))


def test_a_run_that_keeps_fewer_states_says_how_to_keep_more(tmp_path):
    for name in ("last", "step_00000001", "step_00000003"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    assert [path.stem for path in newest_states(tmp_path, 2)] == ["last", "step_00000003"]
    with pytest.raises(CheckpointError, match=r"holds 3 states, and 4 are asked for.*--train.keep 4"):
        newest_states(tmp_path, 4)
    with pytest.raises(CheckpointError, match="holds no state of a run"):
        newest_states(tmp_path / "none", 1)


def test_the_best_states_are_those_whose_weights_scored_best(tmp_path):
    """Of steps 2, 4, 6, 8 and 9, the last of which was not validated, and 8 only as an average better than 2."""
    for step, name in ((2, None), (4, None), (6, None), (8, None), (9, "last")):
        metadata = {"training": json.dumps({"step": step})}
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name or f'step_{step:08d}'}.safetensors", metadata)
    lines = [{"kind": "validation", "step": step, "mean_iou": score} for step, score in ((1, 0.9), (2, 0.5), (4, 0.6))]
    lines += [
        {"kind": "train", "step": 6, "loss": 1.0},
        {"kind": "validation", "mean_iou": 0.9},
        {"kind": "validation", "step": 6, "mean_iou": 0.6},
    ]
    lines += [{"kind": "validation", "step": 8, "mean_iou": 0.8, "average/mean_iou": 0.8, "weights/mean_iou": 0.4}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [path.stem[-1] for path in best_states(tmp_path, 4)] == ["6", "4", "2", "8"]
    with pytest.raises(CheckpointError, match=r"holds 4 validated states among its 5, and 5 are asked for"):
        best_states(tmp_path, 5)


@pytest.mark.slow
def test_the_verb_writes_a_checkpoint_like_any_other(tmp_path, capsys):
    for name in ("a", "b ü [1]"):
        (tmp_path / name).mkdir()
    file = save_scenes_model(tmp_path / "a")
    checkpoint = Checkpoint.load(file)
    random = torch.Generator().manual_seed(0)
    moved = {key: value + 0.01 * torch.randn(value.shape, generator=random) if value.is_floating_point()
             and not key.startswith("pixel") and "running" not in key else value
             for key, value in checkpoint.weights.items()}  # fmt: skip
    dataclasses.replace(checkpoint, weights=moved).save(tmp_path / "b ü [1]" / "best.safetensors")
    words = [str(tmp_path / "a"), str(tmp_path / "b ü [1]"), "--output", str(tmp_path / "mean.safetensors")]
    assert average.main([*words, "--images", "4", "--workers", "0", "--device", "cpu"]) == 0
    assert "batch norms recomputed on 4 images" in capsys.readouterr().err
    mean, plain = load_checkpoint(tmp_path / "mean.safetensors"), average_checkpoints([file, words[1]])
    for key, value in mean.state_dict().items():
        assert torch.equal(value, plain.weights[key]) == ("running" not in key and "num_batches" not in key), key
    origin = Checkpoint.load(tmp_path / "mean.safetensors").origin
    assert origin["batch_norms_of_images"] == 4
    assert len(origin["average_of"]) == 2
    assert average.main([words[0], "--no-recompute"]) == 0
    written = Checkpoint.load(tmp_path / "a" / "average.safetensors").weights
    assert all(torch.equal(value, checkpoint.weights[key]) for key, value in written.items())
    for more, problem in (
        ([words[0], "--no-recompute"], "already exists"),
        ([*words[:2]], "--output is missing"),
        ([*words, "--best", "2", "--overwrite"], "--best takes the states of one run folder"),
        ([*words, "--best", "2", "--last", "2"], "--last and --best choose states by age and by score"),
        ([*words, "--last", "2", "--overwrite"], "--last takes the states of one run folder"),
        ([str(tmp_path / "gone"), "--best", "2"], "no run folder .*gone: --best takes"),
        ([*words, "--images", "4", "--no-recompute"], "leave one of them out"),
        ([words[0], words[0], *words[2:], "--overwrite"], "is named twice"),
        ([words[0], "--output", str(file), "--overwrite"], "best.safetensors"),
    ):
        with pytest.raises(ConfigError, match=problem):
            average.main(more)
