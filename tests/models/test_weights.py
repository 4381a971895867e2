"""Reading weight files: every container there is, and nothing that runs code."""

import io
import pickle
import re
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from resnest_seg.errors import CheckpointError
from resnest_seg.models.weight_files import check_finite, read_weights

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.num_batches_tracked": torch.tensor(7)}


def torch_bytes(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__p", ".p").replace("__s", ".s").replace("__t", ".t"), data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("plain.pth", torch_bytes(STATE)),
        ("ordered.pth", torch_bytes(OrderedDict(STATE))),
        ("old.pth", torch_bytes(STATE, _use_new_zipfile_serialization=False)),
        ("mmseg.pth", torch_bytes({"meta": {"CLASSES": ("x", "y"), "iter": 3}, "state_dict": STATE, "optimizer": {}})),
        ("training.pth", torch_bytes({"epoch": 3, "model": {"state_dict": STATE}, "best": 0.5})),
        ("plain.safetensors", save(STATE)),
        ("named_wrong.pth", save(STATE)),
        ("published.zip", zipped(weights__pth=torch_bytes(STATE), README__txt=b"hello")),
        ("safe.zip", zipped(weights__safetensors=save(STATE))),
    ],
)
def test_every_container_gives_its_tensors(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    file = read_weights(tmp_path / name)
    assert set(file.tensors) == set(STATE)
    for key, value in STATE.items():
        assert torch.equal(file.tensors[key], value)


def test_what_lies_beside_the_tensors(tmp_path):
    content = {"meta": {"CLASSES": ("x", "y")}, "state_dict": STATE | {"note": "text"}, "optimizer": {}, "epoch": 3}
    torch.save(content, tmp_path / "mmseg.pth")
    file = read_weights(tmp_path / "mmseg.pth")
    assert file.metadata == {"CLASSES": ("x", "y")}
    assert file.skipped == ("optimizer", "epoch", "note")
    save_file(STATE, tmp_path / "own.safetensors", {"format": "x"})
    assert read_weights(tmp_path / "own.safetensors").metadata == {"format": "x"}


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("container", ["torch", "old torch", "pickle", "zip"])
def test_a_malicious_pickle_does_not_run(container, tmp_path):
    mark, path = tmp_path / "executed", tmp_path / "bomb.pth"
    content = {"state_dict": STATE, "extra": Bomb(mark)}
    data = {
        "torch": lambda: torch_bytes(content),
        "old torch": lambda: torch_bytes(content, _use_new_zipfile_serialization=False),
        "pickle": lambda: pickle.dumps(content),
        "zip": lambda: zipped(weights__pth=torch_bytes(content)),
    }[container]()
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        read_weights(path)
    assert not mark.exists()
    assert "bomb.pth was not loaded: besides tensors it holds objects that would run code" in str(error.value)
    if container == "torch":  # the same file, read without care, does run: the test is no dud
        torch.load(path, weights_only=False)["extra"].close()
        assert mark.exists()


def arrays(**more):
    """A file as detectron2 publishes models: a pickle of numpy's arrays."""
    return {"model": {key: value.numpy() for key, value in STATE.items()}, "__author__": "third_party", **more}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_arrays_is_read(protocol, tmp_path):
    content = arrays(matching_heuristics=True, score=np.float64(0.5))
    content["model"]["big_endian"] = np.arange(3, dtype=">f4")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    file = read_weights(tmp_path / "model.pkl")
    expected = STATE | {"big_endian": torch.arange(3.0)}
    assert file.tensors.keys() == expected.keys()
    for key, value in expected.items():
        assert file.tensors[key].dtype == value.dtype
        assert torch.equal(file.tensors[key], value)
    assert file.skipped == ("__author__", "matching_heuristics", "score")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_malicious_pickle_of_arrays_does_not_run(protocol, tmp_path):
    """Neither beside the arrays nor within one of objects."""
    for number, content in enumerate((arrays(extra=Bomb(tmp_path / "executed")),
                                      {"model": {"a": np.array([Bomb(tmp_path / "executed")], object)}})):  # fmt: skip
        path = tmp_path / f"{number}.pkl"
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(CheckpointError, match=r"objects that would run code when they are read \(\w*io\.open\)"):
            read_weights(path)
        assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("cut", [20, 120, 250, -3])
def test_a_pickle_of_arrays_that_breaks_off_is_one_clear_error(cut, tmp_path):
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(arrays())[:cut])
    with pytest.raises(CheckpointError, match=r"model\.pkl is no checkpoint, or a damaged one"):
        read_weights(tmp_path / "model.pkl")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is no checkpoint, or a damaged one"),
        (b"I am text", "no torch file"),
        (torch_bytes(STATE)[:-200], "damaged"),
        (save(STATE)[:40], "damaged"),
        (torch_bytes([1, 2, 3]), "it holds no tensors under the names of a model, but a list"),
        (torch_bytes({"epoch": 3}), "it holds no tensors under the names of a model, but a dict"),
        (zipped(README__txt=b"no weights"), "should hold one weight file, but holds 0 .none."),
        (zipped(a__pth=b"1", b__pth=b"2"), "should hold one weight file, but holds 2 .a.pth, b.pth."),
        (np.arange(3).tobytes(), "no torch file"),
    ],
)
def test_what_is_no_weight_file_is_one_clear_error(data, says, tmp_path):
    (tmp_path / "file.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=says) as error:
        read_weights(tmp_path / "file.pth")
    assert str(tmp_path / "file.pth") in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="no weight file"):
        read_weights(tmp_path / "nothing.pth")


@pytest.mark.parametrize("old", [False, True])
def test_files_that_end_too_early_are_damaged_and_not_malicious(old, tmp_path):
    """Cut anywhere, a torch file of either format is one clear error."""
    path = tmp_path / "cut.pth"
    state = {f"layer{place}.weight": torch.randn(3, 4) for place in range(40)}
    data = torch_bytes(OrderedDict(state), _use_new_zipfile_serialization=not old)
    for end in np.random.default_rng(0).integers(1, len(data) - 30, 120):
        path.write_bytes(data[:end])
        with pytest.raises(CheckpointError, match=r"is no checkpoint, or a damaged one(:| \(.+\))"):
            read_weights(path)


def test_numbers_of_numpy_are_plain_values(tmp_path):
    """The best score of a training script."""
    torch.save({"epoch": 3, "state_dict": STATE, "best_pred": np.float64(0.5)}, tmp_path / "training.pth")
    assert read_weights(tmp_path / "training.pth").skipped == ("epoch", "best_pred")


def test_what_lies_beside_the_weights_in_a_zip(tmp_path):
    (tmp_path / "w.zip").write_bytes(zipped(w__pth=torch_bytes(STATE), **{"__MACOSX/_w__pth": b"x"}))
    assert set(read_weights(tmp_path / "w.zip").tensors) == set(STATE)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite_are_counted_and_named(value, kind):
    weights = {"a": torch.ones(3, dtype=kind), "b": torch.tensor([1, value, value], dtype=kind), "n": torch.tensor(7)}
    check_finite({"a": weights["a"], "n": weights["n"]})
    with pytest.raises(CheckpointError, match=r"^2 of 3 values of b are not finite"):
        check_finite(weights)
    check_finite(weights, {"a": torch.ones(3)})  # b is not taken
    with pytest.raises(CheckpointError, match=r"^2 of 3 values of b and 1 more tensors are not finite"):
        check_finite(weights | {"c": weights["b"]})


def test_weights_must_fit_into_the_type_of_the_model():
    weights = {"a": torch.tensor([65519.0, 65520.0])}
    check_finite(weights, {"a": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"^1 of 2 values of a are not finite"):
        check_finite(weights, {"a": torch.ones(2, dtype=torch.float16)})


def test_what_is_no_weight_file_is_said_in_words(tmp_path):
    """The pickle reader's own message for text is the number of its first letter that it does not know."""
    for text in ("hello", "text file\n", "e", "PK", "x" * 500):
        (tmp_path / "text.pth").write_text(text)
        with pytest.raises(CheckpointError, match=r"text\.pth is no checkpoint.*[a-z]{4}"):
            read_weights(tmp_path / "text.pth")
        with pytest.raises(CheckpointError) as error:
            read_weights(tmp_path / "text.pth")
        assert not re.search(r"\('?\d*'?\)", str(error.value)), error.value
