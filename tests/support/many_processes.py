"""Trains in two forked processes over gloo, so that tests pay for the imports once.

python tests/many_processes.py FOLDER PHOTOS makes these run folders, of two processes each where nothing is said:

ddp, fsdp                       are left alone
fsdp_resumed                    is stopped after three steps, and continued by other processes
taught_ddp, taught_fsdp         are short, with a teacher
classifier, classifier_resumed  are of a classifier; the second one dies before its last validation
semi_fsdp, semi_ema             learn from unlabelled photos; semi_one by one process, semi_ema_resumed in two parts
masks_ddp, masks_fsdp           are of Mask2Former; masks_one by one process
"""

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import torch._dynamo  # which torch imports when an optimiser is built: seconds that each child would spend
import torch.distributed.fsdp
import torch.distributed.tensor
from campaigns.free_port import free_port

import resnest_seg.training.distributed
from resnest_seg.config import (
    ClassFolderConfig,
    ClassifierConfig,
    ClassifyConfig,
    DataConfig,
    DistillConfig,
    EvalConfig,
    LoopConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
    SemiConfig,
    TrainConfig,
)
from resnest_seg.data.datasets import Sample, SegmentationDataset
from resnest_seg.labels import LabelSpace
from resnest_seg.models import heads
from resnest_seg.models.loading import build_segmenter, classifier_for
from resnest_seg.teachers.unlabelled import find_photos
from resnest_seg.training.classification import ClassFolder, ClassificationTask
from resnest_seg.training.tasks import SegmentationTask
from resnest_seg.training.trainer import Trainer
from support import fake_data
from support.small_models import SMALL_MASK2FORMER

CONFIG = RunConfig(
    model=ModelConfig(encoder="resnest14_tiny", head="fcn", output_stride=32),
    data=DataConfig(base_size=56, crop_size=32, workers=0),
    optim=OptimConfig(lr=0.02, reference_batch=None, head_lr_factor=3, freeze="bn,head_bn"),
    train=TrainConfig(epochs=2, batch_size=4, ema=0.5, keep=9, log_every=1, trackers="none"),
    eval=EvalConfig(sheet=0),
)
"""Four steps of four images, batch norm frozen, no dropout: then only the order of sums tells the ways apart."""


TEACHER = "teacher.safetensors"


class Uneven(SegmentationDataset):
    """Eight pictures, of which most of some and nothing of others is ignored."""

    label_space, split = LabelSpace.numbered(3, name="three"), "train"

    def __len__(self):
        return 8

    def __getitem__(self, index):
        random = np.random.default_rng(index)
        image = random.integers(0, 256, (40, 56, 3), dtype=np.uint8)
        labels = random.integers(0, 3, (40, 56), dtype=np.uint8)
        labels[: 5 * index] = 255
        return Sample(image, labels, f"picture {index}")


def train(output, *, until=None, resume=False, semi=None, taught=False, freeze=CONFIG.optim.freeze, **changes):
    """One run, which learns from photos where `semi` says how, and from `TEACHER`; returns its trainer."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = dataclasses.replace(
        CONFIG,
        train=dataclasses.replace(CONFIG.train, **changes),
        optim=dataclasses.replace(CONFIG.optim, freeze=freeze),
        semi=semi or CONFIG.semi,
        eval=CONFIG.eval if semi is None else dataclasses.replace(CONFIG.eval, limit=2),
    )
    if taught:
        teacher = (str(output.parent / TEACHER),)
        data = dataclasses.replace(CONFIG.data, crop_size=64)  # maps of more than one place
        config = dataclasses.replace(config, data=data, distill=DistillConfig(teacher, method="both"))
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=3, output_stride=32)
    for module in segmenter.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
            module.p = 0.0  # its masks depend on how the batch is divided
    if semi is not None:
        with torch.no_grad():  # so that it is certain of some pixels
            segmenter.head.conv5[-1].weight *= 10
    data = Uneven()
    photos = None if semi is None else find_photos(config.train.unlabelled, train=data, validation=data)
    task = SegmentationTask(config, data, data, photos=photos)
    trainer = Trainer(config, segmenter=segmenter, task=task, output=output, resume=resume)
    trainer.fit(until=until)
    return trainer


def classify(output, *, dies=False, resume=False):
    """A run of a classifier on three colours of noise, whose batch norm keeps statistics for each process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    root = output.parent / "colours"
    config = PretrainConfig(
        model=ClassifierConfig(encoder="resnest14_tiny"),
        data=ClassFolderConfig(dataset="colours", crop_size=32, workers=0),
        optim=OptimConfig(lr=0.05, reference_batch=None),
        train=LoopConfig(epochs=4, batch_size=8, validate_every=2, log_every=1, trackers="none", sync_bn=False),
        classify=ClassifyConfig(augment="none"),
    )
    task = ClassificationTask(config, ClassFolder(root, "train"), ClassFolder(root, "val"))
    validate = task.validate
    if dies:  # at the end, where the scores are not those of chance
        task.validate = lambda *given, **options: sys.exit(0) if trainer.step == 12 else validate(*given, **options)
    classifier = classifier_for(config, num_classes=3)
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # the last batch alone, of which each process sees another half
    trainer = Trainer(config, segmenter=classifier, task=task, output=output, resume=resume)
    try:
        trainer.fit()
    except SystemExit:
        assert dies


def write_teacher(folder):
    """A random model of the pictures' classes, and of one more, at another output stride."""
    torch.manual_seed(1)
    model = build_segmenter("resnest14_tiny", head="fcn", num_classes=4, output_stride=16, aux_head=False)
    names = ("class 2", "another", "class 0", "class 1")
    model.label_space = LabelSpace.numbered(4, names=names)
    model.to_checkpoint().save(folder / TEACHER)


def write_colours(root, *, validation=4, noise=40):
    """Three classes of noise in three colours: 24 images for training."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", validation)):
        for name, color in (("blue", (30, 40, 200)), ("green", (40, 190, 60)), ("red", (200, 50, 40))):
            for index in range(count):
                photo = np.clip(random.normal(color, noise, (36, 44, 3)), 0, 255).astype(np.uint8)
                fake_data.write(root / split / name / f"{index}.png", photo)


def predict_masks(output, *, parallel="ddp"):
    """Two steps of a head that predicts masks, of images with different numbers of classes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = {"head": "mask2former", "family": "mmseg", "output_stride": 32, "aux_head": False, "pixel_decoder": "fpn"}
    config = dataclasses.replace(
        CONFIG,
        model=ModelConfig(encoder="resnest14_tiny", **network),
        optim=OptimConfig(optimizer="adamw", lr=1e-4, reference_batch=None, clip_norm=0.01, freeze="bn"),
        train=dataclasses.replace(CONFIG.train, epochs=None, iterations=2, ema=0.0, parallel=parallel),
    )
    segmenter, data = build_segmenter("resnest14_tiny", num_classes=3, **network), Uneven()
    Trainer(config, segmenter=segmenter, task=SegmentationTask(config, data, data), output=output).fit()


def in_two(work, output, *, count=2, **options):
    """Run `train`, `classify` or `predict_masks` in two processes that share the batch, or in one that is alone."""
    port = free_port()
    children = []
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            status = 1
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
            if count > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            try:
                work(output, **options)
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(pid)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if any(statuses):
        raise SystemExit(f"{output}: exit codes {statuses}")


def learn_from_photos(folder, photos):
    """Runs without dropout; those of the average keep batch norm's statistics for each process."""
    semi = SemiConfig(threshold=0.4, feature_dropout=0.0)
    some = {"unlabelled": photos, "ema": 0.0, "epochs": None, "iterations": 4}
    in_two(train, folder / "semi_fsdp", semi=semi, parallel="fsdp", **some)
    ema = some | {"semi": dataclasses.replace(semi, teacher="ema"), "ema": 0.5, "freeze": None, "sync_bn": False}
    in_two(train, folder / "semi_ema", **ema)
    in_two(train, folder / "semi_ema_resumed", until=3, **ema)
    in_two(train, folder / "semi_ema_resumed", resume=True, **ema)
    in_two(train, folder / "semi_one", count=1, semi=semi, **some)


def main():
    folder, photos = Path(sys.argv[1]), sys.argv[2]
    learn_from_photos(folder, photos)
    write_colours(folder / "colours", validation=30, noise=120)
    in_two(classify, folder / "classifier")
    in_two(classify, folder / "classifier_resumed", dies=True)
    in_two(classify, folder / "classifier_resumed", resume=True)
    heads.Mask2FormerHead = SMALL_MASK2FORMER
    in_two(predict_masks, folder / "masks_ddp")
    in_two(predict_masks, folder / "masks_one", count=1)
    resnest_seg.training.distributed.UNIT = 30_000  # more than the queries, which are no module that is called
    in_two(predict_masks, folder / "masks_fsdp", parallel="fsdp")
    resnest_seg.training.distributed.UNIT = 5_000  # so that this small net is split into several units
    in_two(train, folder / "ddp")
    in_two(train, folder / "fsdp", parallel="fsdp")
    in_two(train, folder / "fsdp_resumed", parallel="fsdp", until=3)
    in_two(train, folder / "fsdp_resumed", parallel="fsdp", resume=True)
    write_teacher(folder)
    in_two(train, folder / "taught_ddp", taught=True, epochs=1)
    in_two(train, folder / "taught_fsdp", taught=True, epochs=1, parallel="fsdp")


if __name__ == "__main__":
    main()
