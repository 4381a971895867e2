"""The file format: what goes in comes out, and nothing else gets in."""

import json
import pickle

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from support.small_models import small_segmenter

from resnest_seg.config import ModelConfig, RunConfig
from resnest_seg.errors import CheckpointError
from resnest_seg.models.checkpoint import BEST, LAST, Checkpoint, TrainingState, content_hash, find_checkpoint
from resnest_seg.models.loading import build_segmenter, load_checkpoint, load_fitting
from resnest_seg.models.segmenter import Segmenter
from resnest_seg.models.weight_files import read_weights


@pytest.fixture
def config():
    return RunConfig(model=ModelConfig(encoder="resnest14_tiny", head="fcn", output_stride=16))


@pytest.fixture
def saved(tmp_path, config, tiny_space):
    torch.manual_seed(0)
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=3, output_stride=16)
    state = TrainingState({"step": 7, "best_mean_iou": 0.25}, {"optimizer.0.momentum_buffer": torch.randn(3, 4)})
    path = tmp_path / LAST
    Checkpoint(config, tiny_space, segmenter.state_dict(), state).save(path)
    return path, segmenter, state


def test_a_checkpoint_survives_the_way_through_its_file(saved, config, tiny_space):
    path, segmenter, state = saved
    checkpoint = Checkpoint.load(path)
    assert checkpoint.config == config
    assert checkpoint.label_space == tiny_space
    assert checkpoint.training.values == state.values
    assert torch.equal(checkpoint.training.tensors["optimizer.0.momentum_buffer"],
                       state.tensors["optimizer.0.momentum_buffer"])  # fmt: skip
    for key, value in segmenter.state_dict().items():
        assert torch.equal(checkpoint.weights[key], value)
    loaded = load_checkpoint(path)
    assert not loaded.training
    assert loaded.config == config
    assert loaded.label_space == tiny_space
    images = torch.randint(0, 256, (1, 3, 33, 47), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(loaded(images).logits, segmenter.eval()(images).logits)


def test_a_run_folder_means_its_best_checkpoint(saved, tmp_path):
    path, _, _ = saved
    assert find_checkpoint(tmp_path) == path
    (tmp_path / BEST).write_bytes(path.read_bytes())
    assert find_checkpoint(tmp_path) == tmp_path / BEST


SAYS = {
    "foreign": "the metadata that name the network are missing",
    "pickle": "objects that would run code when they are read",
}


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize(
    "kind", ["empty", "text", "truncated", "foreign", "pickle", "broken config", "unknown key", "list", "colours"]
)
def test_what_is_no_checkpoint_is_refused_by_name(saved, kind):
    path, _, _ = saved
    data = path.read_bytes()
    metadata = {"format": "resnest_seg/1", "config": "{}", "label_space": "{"}
    tensors = {key: value.clone() for key, value in load_file(path).items()}
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("I am a checkpoint")
        case "truncated":
            path.write_bytes(data[: len(data) // 2])
        case "foreign":
            save_file(tensors, path)
        case "pickle":
            path.write_bytes(pickle.dumps(Bomb()))
        case "broken config":
            save_file(tensors, path, metadata)
        case "list":
            save_file(tensors, path, metadata | {"config": "[1]", "label_space": "{}"})
        case "colours":
            space = {"name": "x", "names": ["a"], "colors": [[1, 2]], "raw_ids": [1], "ignored_raw_ids": []}
            save_file(tensors, path, metadata | {"label_space": json.dumps(space)})
        case "unknown key":
            save_file(tensors, path, metadata | {"config": json.dumps({"model": {"wings": 2}}), "label_space": "{}"})
    with pytest.raises(CheckpointError, match=SAYS.get(kind, "is no checkpoint, or a damaged one")) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)


def test_an_encoder_of_the_future_is_named_with_its_file(saved, tiny_space, tmp_path):
    _, segmenter, _ = saved
    config = RunConfig(model=ModelConfig(encoder="resnest999"))
    Checkpoint(config, tiny_space, segmenter.state_dict()).save(tmp_path / "new.safetensors")
    with pytest.raises(CheckpointError, match=r"new.safetensors needs what .* unknown encoder 'resnest999'"):
        load_checkpoint(tmp_path / "new.safetensors")


LOADERS = {
    "load_checkpoint": load_checkpoint,
    "from_pretrained": Segmenter.from_pretrained,
    "weights": lambda path: load_fitting(fresh(), path),
    "encoder weights": lambda path: fresh(encoder_weights=str(path)),
    "resume": Checkpoint.load,
}


def fresh(**options):
    return build_segmenter("resnest14_tiny", head="fcn", num_classes=3, output_stride=16, **options)


def flip(path, key):
    """Change one byte of a tensor, and nothing else."""
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    start, end = json.loads(data[8 : 8 + length])[key]["data_offsets"]
    data[8 + length + (start + end) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("loader", LOADERS)
def test_another_version_of_the_format_is_refused_wherever_it_is_loaded(loader, saved):
    path, _, _ = saved
    save_file({key: value.clone() for key, value in load_file(path).items()}, path, {"format": "resnest_seg/99"})
    with pytest.raises(CheckpointError, match=r"last\.safetensors .*'resnest_seg/99' instead of 'resnest_seg/1'"):
        LOADERS[loader](path)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("old", [False, True])
def test_damage_is_detected_in_what_is_read(loader, old, saved):
    """A state of an older version has one hash of everything, so all of it is verified."""
    path, _, _ = saved
    if old:
        as_of_older_versions(path)
    LOADERS[loader](path)
    whole = path.read_bytes()
    flip(path, "model.encoder.layer2.0.conv1.weight")
    with pytest.raises(CheckpointError, match=r"last\.safetensors is damaged"):
        LOADERS[loader](path)
    path.write_bytes(whole)
    flip(path, "optimizer.0.momentum_buffer")
    if loader == "resume" or old:
        with pytest.raises(CheckpointError, match=r"last\.safetensors is damaged"):
            LOADERS[loader](path)
    else:  # it is not read
        LOADERS[loader](path)


def as_of_older_versions(path):
    file = read_weights(path)
    tensors = {key: value.clone() for key, value in file.tensors.items()}
    metadata = {key: value for key, value in file.metadata.items() if not key.endswith("sha256")}
    save_file(tensors, path, metadata | {"sha256": content_hash(tensors, metadata)})


@pytest.mark.parametrize("change", [{"training": '{"step": 8}'}, {"num_classes": "4"}])
def test_changed_metadata_are_damage(change, saved):
    path, _, _ = saved
    file = read_weights(path)
    save_file({key: value.clone() for key, value in file.tensors.items()}, path, {**file.metadata, **change})
    for load in (Checkpoint.load, load_checkpoint):
        with pytest.raises(CheckpointError, match=r"last\.safetensors is damaged"):
            load(path)


def test_the_training_state_is_taken_only_where_it_is_asked_for(saved):
    path, segmenter, _ = saved
    checkpoint = Checkpoint.load(path, training=False)
    assert checkpoint.training is None
    assert set(checkpoint.weights) == set(segmenter.state_dict())


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or run folder"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is no run folder, or a run that has not saved yet"):
        load_checkpoint(tmp_path)


def test_weights_that_do_not_fit_are_named(saved, config, tiny_space, tmp_path):
    _, segmenter, _ = saved
    weights = segmenter.state_dict()
    weights["head.conv5.4.bias"] = torch.zeros(19)
    del weights["encoder.bn1.weight"]
    weights["encoder.extra"] = torch.zeros(1)
    Checkpoint(config, tiny_space, weights).save(tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "bad.safetensors")
    for part in ("1 missing, first encoder.bn1.weight", "1 unexpected, first encoder.extra",
                 "1 of another shape, first head.conv5.4.bias [19] instead of [3]"):  # fmt: skip
        assert part in str(error.value)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_failed_save_keeps_the_old_file(error, saved, config, tiny_space, monkeypatch):
    path, segmenter, _ = saved
    before = path.read_bytes()

    def full_disk(tensors, file, metadata):
        file.write_bytes(b"half")
        raise error

    monkeypatch.setattr("resnest_seg.models.checkpoint.save_file", full_disk)
    with pytest.raises(CheckpointError, match=r"last.safetensors cannot be written: .*No space left"):
        Checkpoint(config, tiny_space, segmenter.state_dict()).save(path)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1


def test_a_layer_under_two_names_is_saved_under_both(tmp_path):
    """safetensors refuses tensors that share memory."""
    segmenter = small_segmenter()
    segmenter.aux_head = segmenter.head
    segmenter.to_checkpoint().save(tmp_path / "a.safetensors")
    weights = Checkpoint.load(tmp_path / "a.safetensors").weights
    names = [key for key in weights if key.startswith("head.")]
    assert names
    for key in names:
        assert torch.equal(weights[key], weights[f"aux_{key}"])
        assert torch.equal(weights[key], segmenter.state_dict()[key])
