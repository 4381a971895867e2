"""`data.samples`: the training split is what a list names."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

import resnest_seg
from resnest_seg.cli import average
from resnest_seg.cli import eval as evaluation
from resnest_seg.cli.parsing.options import open_dataset
from resnest_seg.config import DataConfig, RunConfig
from resnest_seg.data.build import dataset_for, named_samples
from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.io.visualize import write_png

LISTS = Path(__file__).parents[2] / "datasets" / "lists"
NAMES = ["a/x.png", "a/y [1].png", "b/x.png", "b/größe 2.png", "b/#z.png"]


class Named(resnest_seg.PairDataset):
    def __init__(self, names=NAMES):
        image = np.zeros((2, 3, 3), np.uint8)
        super().__init__([(image, image[..., 0])] * len(names), ["one", "two"])
        self.names = names

    def sample_name(self, index):
        return self.names[index]


def listed(tmp_path, text, dataset=None):
    path = tmp_path / "some names.txt"
    path.write_text(text, encoding="utf-8")
    return named_samples(dataset or Named(), path)


def test_names_and_unique_stems_choose_samples_in_the_order_of_the_data_set(tmp_path):
    part = listed(tmp_path, "\ufeff# four of five\n\ngröße 2\n  b/x.png \ny [1]\n  # end\nb/#z.png\n")
    assert [part.sample_name(index) for index in range(len(part))] == NAMES[1:]
    again = listed(tmp_path, "b/#z.png\ny [1]\nb/größe 2.png\nb/x.png\n")
    assert again.identity() == part.identity()
    assert listed(tmp_path, "b/x.png\n").identity() != part.identity()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("y [1]\n\nzebra\n", "line 3: the train split has no sample zebra"),
        ("größe 3\n", "line 1: the train split has no sample größe 3. Did you mean größe 2?"),
        ("# x\nx\n", "line 2: x may be a/x.png and b/x.png: give the whole name"),
        ("a/y [1].png\ny [1]\n", r"line 2: a/y [1].png is in line 1 already"),
        ("# nothing\n\n", "names no sample: one a line, such as a/x.png"),
    ],
)
def test_a_list_that_can_hardly_be_meant_is_refused(tmp_path, text, said):
    with pytest.raises(DatasetError) as caught:
        listed(tmp_path, text)
    assert said in str(caught.value)
    assert "some names.txt" in str(caught.value)


def test_a_list_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"data.samples .*none.txt cannot be read: No such file"):
        named_samples(Named(), tmp_path / "none.txt")


def three_samples(tmp_path):
    """The data of a run on two of three samples."""
    for split in ("train", "val"):
        for folder in ("images", "masks"):
            (tmp_path / folder / split).mkdir(parents=True)
            for name in ("1", "2", "3"):
                shape = (4, 4) if folder == "masks" else (4, 4, 3)
                write_png(tmp_path / folder / split / f"{name}.png", np.full(shape, int(name) - 1, np.uint8))
    (tmp_path / "names.txt").write_text("3\n1\n", encoding="utf-8")
    return DataConfig(dataset="folder", root=str(tmp_path), samples=str(tmp_path / "names.txt"))


def test_only_the_training_split_of_a_config_follows_the_list(tmp_path):
    data = three_samples(tmp_path)
    train, val = (dataset_for(data, split) for split in ("train", "val"))
    assert [int(sample.labels[0, 0]) for sample in (train[0], train[1])] == [0, 2]
    assert (len(train), len(val)) == (2, 3)


@pytest.mark.parametrize(
    "parse", [lambda words: average.parse(["x", *words]), lambda words: evaluation.parse(["--checkpoint", "x", *words])]
)
def test_what_a_checkpoint_was_trained_on_is_what_the_list_names(parse, tmp_path, capsys):
    """For the batch norms of an average, an evaluation on the training split, and whatever opens data by options."""
    data = three_samples(tmp_path / "a folder")
    (tmp_path / "link").symlink_to(tmp_path / "a folder")

    def names(*words, split="train"):
        dataset = open_dataset(parse(words), data, None, name="folder", split=split)
        return [Path(dataset.sample_name(index)).stem for index in range(len(dataset))], capsys.readouterr().err

    found, said = names()
    assert found == ["1", "3"]
    assert said == f"train split: the 2 samples that the run's data.samples names, {data.samples}\n"
    assert names("--data.root", str(tmp_path / "link"))[0] == ["1", "3"]  # the data have moved
    assert names("--dataset", "folder") == (["1", "2", "3"], "")
    assert names(split="val") == (["1", "2", "3"], "")
    Path(data.samples).unlink()
    with pytest.raises(DatasetError, match=r"a list: data.samples .*names.txt cannot be read.* --dataset folder\."):
        names()


def test_a_training_split_of_ones_own_takes_no_list(tmp_path):
    config = RunConfig.from_dict({"data": {"samples": str(tmp_path / "names.txt")}})
    with pytest.raises(ConfigError, match=r"data\.samples chooses among the samples .*Subset"):
        resnest_seg.fit(config, train=Named(), validation=Named())
    with pytest.raises(ConfigError, match=r"data\.samples chooses"):
        resnest_seg.fit_folds(config, 2, train=Named(), validation=Named())


@pytest.mark.parametrize(("share", "count"), [("1_16", 23), ("1_8", 46)])
def test_the_lists_of_camvid_are_drawn_by_hash(real_data, share, count):
    if not (real_data / "camvid").is_dir():
        pytest.skip("CamVid is not here")
    path = LISTS / f"camvid_{share}.txt"
    whole = resnest_seg.CamVid(real_data / "camvid", "train")
    stems = [Path(whole.sample_name(index)).stem for index in range(len(whole))]
    chosen = sorted(stems, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:count]
    part = named_samples(whole, path)
    assert {Path(part.sample_name(index)).stem for index in range(len(part))} == set(chosen)
    assert len(part) == count


def test_the_smaller_list_of_camvid_is_within_the_larger():
    small, large = (set((LISTS / f"camvid_{share}.txt").read_text().splitlines()[1:]) for share in ("1_16", "1_8"))
    assert small < large
