"""Sets prepared by TFDS that the papers use."""

import io
import pickle

import numpy as np
import PIL.Image
import pytest
from batches import assert_same_batch, everything
from prepared import features_of, grey, plain, png, prepare_tfds

from jaxssl.data.imagenet100 import IMAGENET100
from jaxssl.data.sources import ArraySource, TfdsSource, load, pretraining_split
from jaxssl.errors import UserError
from jaxssl.randomness import Split


def assert_kept_is_lazy(config, split):
    kept, lazy = load(config, split), load(config, split, memory_limit_bytes=0)
    assert isinstance(kept, ArraySource)
    assert isinstance(lazy, TfdsSource)
    assert_same_batch(everything(kept), everything(lazy))
    again = pickle.loads(pickle.dumps(lazy))  # as worker processes get it
    assert_same_batch(everything(kept), everything(again))


# STL-10.


@pytest.fixture(scope="module")
def stl10(tmp_path_factory):
    """10 labelled training images, 4 for testing and 7 unlabelled ones."""
    root = tmp_path_factory.mktemp("stl10")

    def some(count, start, label):
        return [{"image": plain(start + i, 96, 96), "label": label(i)} for i in range(count)]

    splits = {
        "train": some(10, 0, lambda i: i),
        "test": some(4, 100, lambda i: i),
        "unlabelled": some(7, 200, lambda i: -1),
    }
    prepare_tfds(root, "stl10", features_of("stl10"), splits)
    return root


def test_stl10_pretrains_on_train_and_unlabelled(data_config, stl10):
    config = data_config("stl10", stl10)
    assert pretraining_split(config) == "pretrain"
    source = load(config, "pretrain")
    assert source.image_shape == (96, 96, 3)
    assert (len(source), source.original_size) == (17, 17)
    assert (source.num_classes, source.class_names) == (None, None)
    batch = everything(source)
    assert batch["targets"] == {}
    # An image draws the same whether it is trained on or probed.
    assert batch["split"].tolist() == [Split.TRAIN] * 10 + [Split.UNLABELLED] * 7
    np.testing.assert_array_equal(batch["index"], np.arange(17))
    train = load(config, "train")
    assert grey(source)[:10] == grey(train)
    assert sorted(grey(source)[10:]) == list(range(200, 207))
    assert train.num_classes == 10
    assert sorted(everything(train)["targets"]["label"]) == list(range(10))
    assert set(load(config, "test").splits) == {Split.TEST}
    assert_kept_is_lazy(config, "pretrain")


def test_stl10_never_pretrains_on_its_validation_part(data_config, stl10):
    config = data_config("stl10", stl10, validation_fraction=0.2, train_examples=4)
    validation = load(config, "validation").positions.tolist()
    assert validation == [4, 9]
    train = load(config, "train").positions.tolist()
    assert len(train) == 4
    assert load(config, "pretrain").positions.tolist() == train + list(range(10, 17))


# COCO.


def coco_features():
    """TFDS's builder of COCO cannot be made without TensorFlow; these are its features."""
    import tensorflow_datasets as tfds

    features = tfds.features
    return {
        "image": features.Image(encoding_format="jpeg"),
        "image/filename": features.Text(),
        "image/id": np.int64,
        "objects": features.Sequence(
            {
                "id": np.int64,
                "area": np.int64,
                "bbox": features.BBoxFeature(),
                "label": features.ClassLabel(names=[f"thing {i}" for i in range(80)]),
                "is_crowd": np.bool_,
            }
        ),
    }


def coco_scene(value, boxes, crowd=()):
    import tensorflow_datasets as tfds

    objects = [
        {
            "id": i,
            "area": 1,
            "bbox": tfds.features.BBox(*map(float, box)),
            "label": 10 * value + i % 10,
            "is_crowd": i in crowd,
        }
        for i, box in enumerate(boxes)
    ]
    file = io.BytesIO()
    PIL.Image.new("RGB", (20, 10), (value,) * 3).save(file, "JPEG")
    return {
        "image": file.getvalue(),
        "image/filename": f"{value}.jpg",
        "image/id": value,
        "objects": objects,
    }


def test_coco_scenes_and_their_boxes(data_config, tmp_path):
    whole, left, middle = (0, 0, 1, 1), (0, 0, 1, 0.125), (0.25, 0.375, 0.75, 0.5)
    scenes = [
        coco_scene(0, []),
        coco_scene(1, [left, middle]),
        coco_scene(2, [middle, whole, whole], crowd=[1]),
        coco_scene(3, [whole]),
    ]
    splits = {"train": scenes, "validation": scenes[:1], "test": scenes[:1] * 2}
    prepare_tfds(tmp_path, "coco/2017", coco_features(), splits, "1.1.0")
    config = data_config("coco/2017", tmp_path, 5)
    source = load(config, "train")
    assert source.num_classes is None
    assert source.class_names[:2] == ("thing 0", "thing 1")
    assert pretraining_split(config) == "train"
    batch = everything(source)
    assert batch["targets"].keys() == {"boxes", "box_labels"}
    found = {}
    for row, value in enumerate(batch["image"][:, 0, 0, 0]):
        labels = batch["targets"]["box_labels"][row]
        boxes = batch["targets"]["boxes"][row]
        assert (labels.shape, boxes.shape) == ((128,), (128, 4))
        count = int(np.sum(labels >= 0))
        assert (labels[count:] == -1).all()
        assert (boxes[count:] == 0).all()
        found[int(value)] = (labels[:count].tolist(), boxes[:count].tolist())
    # 10 x 20 to 5 x 5: scale 2, of the columns 5 .. 15; the left eighth is lost.
    moved, all_of_it = [1.25, 1.25, 3.75, 2.5], [0, 0, 5, 5]
    assert found == {
        0: ([], []),
        1: ([11], [moved]),
        2: ([20, 22], [moved, all_of_it]),
        3: ([30], [all_of_it]),
    }
    assert len(load(config, "test")) == 1
    assert set(load(config, "test").splits) == {Split.VALIDATION}
    assert_kept_is_lazy(config, "train")


def test_more_boxes_than_there_is_room_for_are_refused(data_config, tmp_path):
    scenes = {"train": [coco_scene(0, [(0, 0, 1, 1)] * 129)]}
    prepare_tfds(tmp_path, "coco/2017", coco_features(), scenes, "1.1.0")
    with pytest.raises(UserError, match="record 0 of coco/2017 has 129 boxes, more than 128"):
        load(data_config("coco/2017", tmp_path, 5), "train")


# PASCAL VOC.


def voc_example(value, labels):
    import tensorflow_datasets as tfds

    objects = [
        {
            "label": label,
            "bbox": tfds.features.BBox(0.0, 0.25, 1.0, 0.75),
            "pose": "left",
            "is_truncated": False,
            "is_difficult": True,
        }
        for label in labels
    ]
    return {
        "image": plain(value),
        "image/filename": f"{value}.jpg",
        "objects": objects,
        "labels": sorted(set(labels)),
        "labels_no_difficult": [],
    }


@pytest.mark.parametrize(("year", "tested_on"), [("2007", "test"), ("2012", "validation")])
def test_voc_and_its_boxes(data_config, tmp_path, year, tested_on):
    labels = {0: ["cat", "dog"], 1: [], 2: ["person"]}
    examples = [voc_example(value, names) for value, names in labels.items()]
    splits = {
        "train": examples,
        "validation": [voc_example(5, ["sheep"])],
        "test": [voc_example(6, ["sofa"] if year == "2007" else [])],
    }
    name = f"voc/{year}"
    prepare_tfds(tmp_path, name, features_of(name), splits, "5.0.0")
    config = data_config(name, tmp_path, 5)
    source = load(config, "train")
    assert len(source.class_names) == 20
    batch = everything(source)
    for row, value in enumerate(grey(source)):
        numbers = batch["targets"]["box_labels"][row]
        assert [source.class_names[n] for n in numbers[numbers >= 0]] == labels[value]
        boxes = batch["targets"]["boxes"][row, : len(labels[value])]
        assert boxes.tolist() == [[0, 0, 5, 5]] * len(labels[value])
    test = load(config, "test")
    assert grey(test) == [{"test": 6, "validation": 5}[tested_on]]
    assert set(test.splits) == {{"test": Split.TEST, "validation": Split.VALIDATION}[tested_on]}
    assert_kept_is_lazy(config, "train")


# Oxford-IIIT Pet.


def test_pets_their_trimaps_and_heads(data_config, tmp_path):
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)
    trimaps = rng.integers(1, 4, (3, 10, 20), np.uint8)
    trimaps[0, 0, 5] = 0  # not used by the set, so no class

    def pet(value, head):
        return {
            "image": plain(value),
            "label": 30 + value,
            "species": value % 2,
            "file_name": f"{value}.jpg",
            "segmentation_mask": png(trimaps[value]),
            "head_bbox": tfds.features.BBox(*map(float, head)),
        }

    splits = {
        "train": [pet(0, (0.2, 0.5, 0.6, 0.7)), pet(1, (0, 0, 1, 1))],
        "test": [pet(2, (0, 0, 0, 0))],
    }
    prepare_tfds(tmp_path, "oxford_iiit_pet", features_of("oxford_iiit_pet"), splits, "4.0.0")
    config = data_config("oxford_iiit_pet", tmp_path, 10)
    source = load(config, "train")
    assert (source.num_classes, source.class_names[30]) == (37, "scottish_terrier")
    batch = everything(source)
    assert batch["targets"].keys() == {"label", "mask", "boxes", "box_labels"}
    order = np.argsort(grey(source))
    targets = {key: values[order] for key, values in batch["targets"].items()}
    assert targets["label"].tolist() == [30, 31]
    np.testing.assert_array_equal(targets["mask"], trimaps[:2, :, 5:15] - np.uint8(1))
    assert targets["mask"][0, 0, 0] == 255
    np.testing.assert_allclose(targets["boxes"][:, 0], [[2, 5, 6, 9], [0, 0, 10, 10]], atol=1e-5)
    assert targets["box_labels"].tolist() == [[0], [1]]
    test = everything(load(config, "test"))["targets"]
    assert (test["boxes"].tolist(), test["box_labels"].tolist()) == ([[[0] * 4]], [[-1]])
    assert_kept_is_lazy(config, "train")


# tf_flowers, with its train split alone.


def test_flowers_have_the_test_part_that_is_cut_for_them(data_config, tmp_path):
    flowers = [{"image": plain(i), "label": i % 5} for i in range(20)]
    prepare_tfds(tmp_path, "tf_flowers", features_of("tf_flowers"), {"train": flowers}, "3.0.1")
    config = data_config("tf_flowers", tmp_path, 8, test_fraction=0.2, validation_fraction=0.25)
    parts = {split: load(config, split) for split in ("train", "validation", "test")}
    assert parts["test"].positions.tolist() == [4, 9, 14, 19]
    assert parts["validation"].positions.tolist() == [3, 8, 13, 18]
    seen = sorted(value for part in parts.values() for value in grey(part))
    assert seen == list(range(20))
    assert parts["test"].class_names[0] == "dandelion"
    assert everything(parts["test"])["split"].tolist() == [Split.TRAIN] * 4
    with pytest.raises(UserError, match=r"set --config\.data\.test_fraction"):
        load(data_config("tf_flowers", tmp_path, 8), "test")


# ImageNet.


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """One image of every 20th class, and validation and unlabelled test images."""
    root = tmp_path_factory.mktemp("imagenet")
    features = features_of("imagenet2012")

    def example(value, label):
        return {"image": plain(value), "label": label, "file_name": f"{value}.JPEG"}

    splits = {
        "train": [example(i, 20 * i) for i in range(50)],
        "validation": [example(60, 0), example(61, 20)],
        "test": [example(70, -1)],
    }
    prepare_tfds(root, "imagenet2012", features, splits, "5.1.0")
    return root, features["label"].names


def test_imagenet_is_resized_and_tested_on_its_validation_split(data_config, imagenet):
    root, names = imagenet
    config = data_config("imagenet2012", root, 16)
    source = load(config, "train")
    assert (source.image_shape, len(source)) == ((16, 16, 3), 50)
    assert source.class_names == tuple(names)
    assert sorted(grey(load(config, "test"))) == [60, 61]
    np.testing.assert_array_equal(
        everything(source)["targets"]["label"], 20 * np.array(grey(source))
    )


@pytest.mark.parametrize("memory_limit_bytes", [0, 2**31])
def test_the_imagenet100_classes_of_imagenet(data_config, imagenet, memory_limit_bytes):
    root, names = imagenet
    whole = load(data_config("imagenet2012", root, 16), "train")
    config = data_config("imagenet2012", root, 16, classes="imagenet100")
    source = load(config, "train", memory_limit_bytes=memory_limit_bytes)
    assert (source.num_classes, source.class_names) == (100, IMAGENET100)
    assert source.original_size == 50
    values = [v for v in grey(whole) if names[20 * v] in IMAGENET100]
    assert 0 < len(values) < 50
    assert grey(source) == values
    labels = everything(source)["targets"]["label"]
    assert labels.dtype == np.int32
    assert [IMAGENET100[label] for label in labels] == [names[20 * v] for v in values]
    assert [grey(whole)[p] for p in source.positions] == values


# Unreadable records.
