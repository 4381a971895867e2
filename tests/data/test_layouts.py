"""Public data sets as their authors lay them out: recognised as they are, or paired by what is suggested."""

import re
import shlex

import numpy as np
import pytest
from PIL import Image

from resnest_seg.config import DataConfig
from resnest_seg.data.build import build_dataset, dataset_for
from resnest_seg.data.folder import FolderDataset
from resnest_seg.data.layouts import Pattern, given, pair, suggest, visible
from resnest_seg.errors import ConfigError, DatasetError

SCENES = ("0001TP_006690", "0001TP_008550", "0016E5_07959", "Seq05VD_f00000")
NUMBERS = [f"{number}" for number in range(4)]
VOC = ("2007_000032", "2008_000008", "2009_000001")


def split(pattern, names, words):
    """Files of each split; a name has the split's number in front, so that no two splits share a photo."""
    return [pattern.format(split=word, name=f"{place}{name}") for place, word in enumerate(words) for name in names]


PUBLIC = {
    # name: (photos, masks in their order, other files, recognised, splits)
    "Kvasir-SEG": (["images/{}.jpg"], ["masks/{}.jpg"], ["kavsir_bboxes.json"], "lossy", ()),
    "images and masks": (["images/{}.jpg"], ["masks/{}.png"], [], "images and masks", ()),
    "images and labels": (["images/{}.jpg"], ["labels/{}.png"], [], "images and labels", ()),
    "Pascal VOC": (
        ["VOCdevkit/VOC2012/JPEGImages/{}.jpg"],
        ["VOCdevkit/VOC2012/SegmentationClass/{}.png"],
        ["VOCdevkit/VOC2012/SegmentationObject/{}.png"],
        "Pascal VOC",
        (),
    ),
    "mmsegmentation": (["img_dir/train/{}.jpg", "img_dir/val/{}.jpg"], ["ann_dir/train/{}.png", "ann_dir/val/{}.png"], [],
                       "mmsegmentation", ("train", "val")),
    "Roboflow": (
        ["train/{}_jpg.rf.5a.jpg", "valid/{}_jpg.rf.5a.jpg", "test/{}_jpg.rf.5a.jpg"],
        ["train/{}_jpg.rf.5a_mask.png", "valid/{}_jpg.rf.5a_mask.png", "test/{}_jpg.rf.5a_mask.png"],
        [], "masks beside photos", ("train", "val", "test"),
    ),
    "suffix _label": (["{}.tif"], ["{}_label.tif"], [], "masks beside photos", ()),
    "suffix _gt in a folder": (["images/{}.jpg"], ["masks/{}_gt.png"], [], "images and masks, ending _gt", ()),
    "IDD Lite": (
        ["leftImg8bit/train/0/{}_image.jpg", "leftImg8bit/val/119/{}_image.jpg"],
        ["gtFine/train/0/{}_label.png", "gtFine/val/119/{}_label.png"],
        ["gtFine/train/0/{}_inst_label.png", "gtFine/val/119/{}_inst_label.png", "leftImg8bit/test/5/{}_image.jpg"],
        "Indian Driving Dataset Lite", ("train", "val"),
    ),
    "Cityscapes": (
        ["leftImg8bit/train/ulm/ulm_{}_000019_leftImg8bit.png", "leftImg8bit/val/bonn/bonn_{}_000019_leftImg8bit.png"],
        ["gtFine/train/ulm/ulm_{}_000019_gtFine_labelIds.png", "gtFine/val/bonn/bonn_{}_000019_gtFine_labelIds.png"],
        ["gtFine/train/ulm/ulm_{}_000019_gtFine_color.png", "gtFine/train/ulm/ulm_{}_000019_gtFine_instanceIds.png"],
        "Cityscapes", ("train", "val"),
    ),
    "Mapillary": (["training/images/{}.jpg", "validation/images/{}.jpg"], ["training/labels/{}.png",
                  "validation/labels/{}.png"], ["testing/images/{}.jpg", "training/instances/{}.png"],
                  "images and labels by split", ("train", "val")),
    "KITTI": (["training/image_2/{}_10.png"], ["training/semantic/{}_10.png"],
              ["training/semantic_rgb/{}_10.png", "training/instance/{}_10.png", "testing/image_2/{}_10.png"],
              "KITTI semantics", ("train", "test")),
    "LoveDA": (["Train/Rural/images_png/{}.png", "Train/Urban/images_png/1{}.png", "Val/Rural/images_png/2{}.png"],
               ["Train/Rural/masks_png/{}.png", "Train/Urban/masks_png/1{}.png", "Val/Rural/masks_png/2{}.png"], [],
               "LoveDA", ("train", "val")),
    "Oxford pets": (["images/Abyssinian_{}.jpg"], ["annotations/trimaps/Abyssinian_{}.png"],
                    ["annotations/trimaps/._Abyssinian_{}.png", "annotations/xmls/Abyssinian_{}.xml"],
                    "Oxford-IIIT pets", ()),
    "SegNet's CamVid": (["train/{}.png", "val/{}.png"], ["trainannot/{}.png", "valannot/{}.png"], [], "SegNet's CamVid",
                        ("train", "val")),
    # not recognised: the patterns that the message suggests pair them
    "CamVid": (["701_StillsRaw_full/0001TP_{}.png"], ["LabeledApproved_full/0001TP_{}_L.png"], [], None, ()),
    "Carvana": (["train/fff9{}_01.jpg"], ["train_masks/fff9{}_01_mask.gif"], ["test/0a{}_01.jpg"], None, ()),
    "DRIVE": (["training/images/2{}_training.tif", "test/images/0{}_test.tif"],
              ["training/1st_manual/2{}_manual1.gif", "test/1st_manual/0{}_manual1.gif"], [], None, ("train", "test")),
    "CHASE": (["Image_{}L.jpg"], ["Image_{}L_1stHO.png"], [], None, ()),
    "ISPRS Potsdam": (["2_Ortho_RGB/top_potsdam_{}_10_RGB.tif"], ["5_Labels_all/top_potsdam_{}_10_label.tif"], [], None, ()),
    "CVPPP": (["A1/plant{}_rgb.png"], ["A1/plant{}_label.png"], ["A1/plant{}_centers.png"], None, ()),
    "DeepGlobe": (["train/{}_sat.jpg"], ["train/{}_mask.png"], ["valid/9{}_sat.jpg"], None, ()),
    "SUIM": (["train_val/images/d_r_{}_.jpg", "TEST/images/d_r_9{}_.jpg"], ["train_val/masks/d_r_{}_.bmp",
             "TEST/masks/d_r_9{}_.bmp"], [], None, ()),
    "Massachusetts": (["png/train/{}_15.png", "png/val/2{}_15.png"], ["png/train_labels/{}_15.png",
                      "png/val_labels/2{}_15.png"], [], None, ("train", "val")),
    "ISIC": (["ISIC2018_Task1-2_Training_Input/ISIC_00{}.jpg"],
             ["ISIC2018_Task1_Training_GroundTruth/ISIC_00{}_segmentation.png"], [], None, ()),
    "SpaceNet-like": (["AOI/PS-RGB/SN_AOI_2_PS-RGB_img{}.tif"], ["AOI/masks/SN_AOI_2_geojson_buildings_img{}.tif"], [],
                      None, ()),
    "WoodScape-like": (["rgb_images/{}_FV.png"], ["semantic_annotations/gtLabels/{}_FV.png"],
                       ["semantic_annotations/rgbLabels/{}_FV.png"], None, ()),
}  # fmt: skip


def write(path, *, mask=False, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix not in (".jpg", ".png", ".tif", ".gif", ".bmp"):
        path.write_text("{}")
        return
    random = np.random.default_rng(number)
    shape = (6, 8) if mask else (6, 8, 3)
    Image.fromarray(random.integers(0, 3 if mask else 256, shape, dtype=np.uint8)).save(path)


def make(root, public, scenes=12):
    photos, masks, others, *_ = public
    for number in range(scenes):
        for pattern in photos + others:
            write(root / pattern.format(f"{number:06d}"), number=number)
        for pattern in masks:
            write(root / pattern.format(f"{number:06d}"), mask=True, number=number)
    truth = {
        photo.format(f"{number:06d}"): mask.format(f"{number:06d}")
        for photo, mask in zip(photos, masks, strict=True)
        for number in range(scenes)
    }
    return root, truth
