"""Folders as users keep them, the cuts that they need, and files that cannot be read."""

import json
import logging

import numpy as np
import PIL.Image
import pytest
from batches import assert_same_batch, everything

from jaxssl.data.canonical import resize
from jaxssl.data.imagenet100 import IMAGENET100
from jaxssl.data.sources import FolderSource, load, pretraining_split
from jaxssl.errors import UserError
from jaxssl.randomness import Split


def save(path, size=(9, 9), value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size[::-1], (value,) * 3).save(path)


def assert_kept_is_lazy(config, split="train"):
    kept, lazy = load(config, split), load(config, split, memory_limit_bytes=0)
    assert isinstance(lazy, FolderSource)
    assert_same_batch(everything(kept), everything(lazy))
    rows = np.array([1, 0])
    assert_same_batch(kept.take(rows).gather(rows), lazy.take(rows).gather(rows))


# A test part where there is none.


def test_a_test_part_is_cut_from_a_set_with_only_a_train_split(data_config, folder, tmp_path):
    root = tmp_path
    (root / "train").symlink_to(folder / "train")
    config = data_config("folder", root, 8, test_fraction=1 / 3, validation_fraction=0.25)
    parts = {s: load(config, s) for s in ("train", "validation", "test")}
    # Of 18, entry i goes iff the multiple of 1/3 passes an integer: 2, 5, 8 ...
    assert parts["test"].positions.tolist() == list(range(2, 18, 3))
    rest = [i for i in range(18) if i % 3 != 2]
    assert parts["validation"].positions.tolist() == rest[3::4]
    assert parts["train"].positions.tolist() == [i for n, i in enumerate(rest) if n % 4 != 3]
    for part in parts.values():
        assert set(part.splits) == {Split.TRAIN}
        assert part.original_size == 18
    few = data_config("folder", root, 8, test_fraction=1 / 3, train_examples=6)
    np.testing.assert_array_equal(load(few, "test").positions, parts["test"].positions)
    assert len(load(few, "train")) == len(load(few, "pretrain")) == 6
    with pytest.raises(UserError, match=r"set --config\.data\.test_fraction"):
        load(data_config("folder", root, 8), "test")
    with pytest.raises(UserError, match=r"test_fraction=1\.0 must be a share"):
        load(data_config("folder", root, 8, test_fraction=1.0), "train")
    with pytest.raises(UserError, match=r"test_fraction=0\.05 of 18 .* at least 0\.056"):
        load(data_config("folder", root, 8, test_fraction=0.05), "test")


def test_a_published_test_split_is_left_alone(data_config, folder):
    plain, cut = (data_config("folder", folder, 8, test_fraction=f) for f in (0.0, 0.3))
    for split in ("train", "pretrain", "test"):
        assert_same_batch(everything(load(plain, split)), everything(load(cut, split)))
    assert pretraining_split(cut) == "train"


# Images without labels.


@pytest.mark.parametrize("top", ["", "train"])
def test_images_without_labels_at_any_depth(data_config, tmp_path, top):
    names = ["b.png", "a/z.JPG", "a/c/d.webp", "a b/x.png"]
    for value, name in enumerate(names):
        save(tmp_path / top / name, (9, 12), 40 * value)
    for name in (".hidden/e.png", "a/.f.png"):
        save(tmp_path / top / name)
    (tmp_path / top / "notes.txt").write_text("no image")
    config = data_config("images", tmp_path, 8)
    source = load(config, "train", memory_limit_bytes=0)
    found = [str(file).removeprefix(f"{tmp_path / top}/") for file in source.files]
    assert found == ["a/c/d.webp", "a/z.JPG", "a b/x.png", "b.png"]
    batch = everything(source)
    assert batch["targets"] == {}
    assert (source.num_classes, source.class_names) == (None, None)
    np.testing.assert_allclose(batch["image"][:, 4, 4, 0], [80, 40, 120, 0], atol=3)
    assert batch["original_size"].tolist() == [[9, 12]] * 4
    assert_kept_is_lazy(config)


def test_splits_of_images_without_labels(data_config, tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        for number in range(count):
            save(tmp_path / part / f"{number}.png")
    config = data_config("images", tmp_path, 8)
    assert [len(load(config, s)) for s in ("pretrain", "train", "test")] == [3, 3, 2]
    assert set(load(config, "test").splits) == {Split.VALIDATION}
    (tmp_path / "train").rename(tmp_path / "other")
    with pytest.raises(UserError, match=r"has val/ but no train/"):
        load(config, "train")


@pytest.mark.parametrize("name", ["images", "folder", "coco_folder", "mask_folder"])
def test_empty_and_missing_folders_are_refused_in_words(data_config, tmp_path, name):
    for folder in (tmp_path, tmp_path / "none", ""):
        with pytest.raises(UserError, match=r"data_dir|it must have train/"):
            load(data_config(name, folder, 8), "train")


# COCO's JSON.


CATEGORIES = [{"id": 90, "name": "cat"}, {"id": 3, "name": "ant"}, {"id": 7, "name": "bee"}]


def annotation(image, category, box, **more):
    return {"image_id": image, "category_id": category, "bbox": box, **more}


@pytest.fixture
def coco(tmp_path):
    """Images of 16 x 32, 16 x 16 and 32 x 16 pixels, listed out of order, and one not listed."""
    sizes = {"b.png": (16, 32), "a.png": (16, 16), "sub/c.png": (32, 16)}
    for name, size in sizes.items():
        save(tmp_path / "train" / name, size)
    save(tmp_path / "train" / "unlisted.png")
    identities = {"b.png": 11, "a.png": 30, "sub/c.png": "five"}
    content = {
        "images": [
            {"id": identities[name], "file_name": name, "height": size[0], "width": size[1]}
            for name, size in sizes.items()
        ],
        "categories": CATEGORIES,
        "annotations": [
            annotation(11, 90, [8, 0, 8, 4]),  # canonical x 0 .. 4, y 0 .. 2
            annotation(30, 3, [2, 4, 6, 8], iscrowd=0),
            annotation(11, 3, [0, 0, 8, 16]),  # outside the central part
            annotation(11, 7, [0, 0, 32, 16]),
            annotation(30, 7, [0, 0, 16, 16], iscrowd=1),
        ],
    }
    (tmp_path / "instances_train.json").write_text(json.dumps(content))
    return tmp_path, content


def test_boxes_of_a_coco_folder(data_config, coco):
    root, content = coco
    config = data_config("coco_folder", root, 8)
    source = load(config, "train")
    assert source.class_names == ("ant", "bee", "cat")
    assert source.num_classes is None
    batch = everything(source)
    assert batch["original_size"].tolist() == [[16, 16], [16, 32], [32, 16]]
    targets = batch["targets"]
    assert targets.keys() == {"boxes", "box_labels"}
    assert (targets["boxes"].dtype, targets["box_labels"].dtype) == (np.float32, np.int32)
    assert targets["box_labels"].tolist() == [[0, -1], [2, 1], [-1, -1]]
    none = [0, 0, 0, 0]
    assert targets["boxes"].tolist() == [
        [[2, 1, 6, 4], none],
        [[0, 0, 2, 4], [0, 0, 8, 8]],
        [none, none],
    ]
    assert_kept_is_lazy(config)
    with pytest.raises(UserError, match="no test split"):
        load(config, "test")
    (root / "val").mkdir()
    save(root / "val" / "d.png")
    content = {**content, "images": [{"id": 1, "file_name": "d.png", "height": 9, "width": 9}]}
    (root / "instances_val.json").write_text(json.dumps({**content, "annotations": []}))
    test = everything(load(config, "test"))
    assert test["targets"]["box_labels"].tolist() == [[-1]]
    assert test["split"].tolist() == [Split.VALIDATION]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, r"annotation without id of image id 11 with image_id 11, which images"),
        ({"categories": None}, "not COCO's JSON"),
        (
            {"categories": CATEGORIES[:2]},
            "image id 11 with category_id 7, which categories does not",
        ),
        ({"annotations": [{"image_id": 11, "category_id": 3}]}, "number 0 of the list, that lacks"),
        ({"annotations": [annotation(11, 3, [0, 0, 1])]}, r"bbox \[0, 0, 1\]: ids must"),
        ({"annotations": [annotation(11, 3, [0, 0, "a", 1])]}, r"bbox .*'a'.*correct or"),
        ({"images": [], "annotations": []}, "holds no image files"),
    ],
)
def test_other_json_is_refused_in_words(data_config, coco, change, message):
    root, content = coco
    (root / "instances_train.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError, match=message):
        load(data_config("coco_folder", root, 8), "train")


def test_a_coco_folder_that_does_not_agree_is_refused_in_words(data_config, coco):
    root, content = coco
    config = data_config("coco_folder", root, 8)
    save(root / "train" / "a.png", (16, 17))
    with pytest.raises(UserError, match=r"a\.png is 16 x 17 pixels, .* says 16 x 16"):
        load(config, "train")
    (root / "train" / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png could not be read \(No such file"):
        load(config, "train")
    (root / "val").mkdir()
    other = {**content, "categories": [{"id": 3, "name": "dog"}], "annotations": []}
    (root / "instances_val.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"instances_val\.json has other categories"):
        load(config, "test")
    (root / "instances_train.json").write_text("{")
    with pytest.raises(UserError, match=r"instances_train\.json is not JSON"):
        load(config, "train")
    (root / "instances_train.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="image_size=0"):
        load(data_config("coco_folder", root), "train")


# Masks.


@pytest.fixture
def masks(tmp_path):
    """Two images of 10 x 20 in train, one of them in a sub-folder, and their masks."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name in ("one", "sub/two"):
        save(tmp_path / "train" / "images" / f"{name}.jpg", (10, 20))
        arrays[name] = rng.integers(0, 12, (10, 20), np.uint8)
        arrays[name][4, 7] = 255
        path = tmp_path / "train" / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(arrays[name]).save(path)
    PIL.Image.fromarray(arrays["one"]).save(tmp_path / "train" / "masks" / "spare.png")
    return tmp_path, arrays


def test_masks_of_a_mask_folder(data_config, masks):
    root, arrays = masks
    config = data_config("mask_folder", root, 10)
    batch = everything(load(config, "train"))
    assert batch["targets"].keys() == {"mask"}
    expected = np.stack([arrays["one"][:, 5:15], arrays["sub/two"][:, 5:15]])
    np.testing.assert_array_equal(batch["targets"]["mask"], expected)
    assert batch["targets"]["mask"].dtype == np.uint8
    assert (batch["targets"]["mask"][:, 4, 2] == 255).all()
    assert_kept_is_lazy(config)
    (root / "train" / "masks" / "sub" / "two.png").unlink()
    with pytest.raises(UserError, match=r"no mask for 1 image of .*, the first being two\.jpg"):
        load(config, "train")


def test_one_mask_may_serve_two_pictures_but_not_two_masks_one(data_config, masks):
    root, arrays = masks
    (root / "train" / "masks" / "sub" / "two.png").unlink()
    (root / "train" / "masks" / "sub" / "two.png").symlink_to(root / "train/masks/one.png")
    batch = everything(load(data_config("mask_folder", root, 10), "train"))
    np.testing.assert_array_equal(batch["targets"]["mask"][1], arrays["one"][:, 5:15])
    (root / "train" / "images" / "sub" / "two.jpg").unlink()
    (root / "train" / "images" / "sub" / "two.jpg").symlink_to(root / "train/images/one.jpg")
    with pytest.raises(UserError, match=r"one\.jpg and .*two\.jpg are one picture, .* two masks"):
        load(data_config("mask_folder", root, 10), "train")


def test_bad_masks_are_refused_in_words_or_skipped(data_config, masks):
    root, _ = masks
    config = data_config("mask_folder", root, 10)
    mask = root / "train" / "masks" / "one.png"
    PIL.Image.new("L", (20, 11)).save(mask)
    with pytest.raises(UserError, match=r"one\.png is a mask of 11 x 20 .* image has 10 x 20"):
        load(config, "train")
    PIL.Image.new("RGB", (20, 10)).save(mask)
    with pytest.raises(UserError, match=r"one\.png is a mask of mode RGB"):
        load(config, "train")
    mask.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"one\.png is not a readable image"):
        load(config, "train")
    skipping = data_config("mask_folder", root, 10, unreadable="skip")
    assert load(skipping, "train").positions.tolist() == [1]


# Some classes alone.


def test_imagenet100_is_a_hundred_sorted_names():
    assert len(set(IMAGENET100)) == 100
    assert list(IMAGENET100) == sorted(IMAGENET100)
    # The first three and the last of the published file, which is not sorted.
    assert {"n02869837", "n01749939", "n02488291", "n02090622"} <= set(IMAGENET100)


def test_the_imagenet100_classes_of_a_folder(data_config, tmp_path):
    names = sorted([*IMAGENET100, "n00000001", "n02000000", "n99999999"])
    for number, name in enumerate(names):
        save(tmp_path / "train" / name / "0.png", value=number)
        save(tmp_path / "train" / name / "1.png", value=number)
    config = data_config("folder", tmp_path, 8, classes="imagenet100")
    source = load(config, "train")
    assert (source.num_classes, source.class_names) == (100, IMAGENET100)
    assert source.original_size == 206
    batch = everything(source)
    np.testing.assert_array_equal(batch["targets"]["label"], np.repeat(np.arange(100), 2))
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"] // 2)
    assert [names[i] for i in batch["index"][::2] // 2] == list(IMAGENET100)
    validation = load(
        data_config("folder", tmp_path, 8, classes="imagenet100", validation_fraction=0.5),
        "validation",
    )
    np.testing.assert_array_equal(everything(validation)["targets"]["label"], np.arange(100))


def test_classes_that_a_set_lacks_are_refused_in_words(data_config, folder):
    for name in ("digits", "folder", "images"):
        with pytest.raises(UserError, match="lacks 100 of its 100 classes, such as 'n01558993'"):
            load(data_config(name, folder, 8, classes="imagenet100"), "train")
    with pytest.raises(UserError, match=r"--config\.data\.classes=imagenet10 is unknown"):
        load(data_config("folder", folder, 8, classes="imagenet10"), "train")


# Unreadable files.


@pytest.mark.parametrize("memory_limit_bytes", [0, 2**31])
def test_unreadable_files_are_left_out_and_counted(
    data_config, tmp_path, caplog, memory_limit_bytes
):
    for number in range(10):
        save(tmp_path / "train" / "a" / f"{number}.png", value=number)
    for number in (3, 8):
        (tmp_path / "train" / "a" / f"{number}.png").write_bytes(b"no image")
    refuse, skip = (
        data_config("folder", tmp_path, 8, unreadable=u, validation_fraction=0.2)
        for u in ("refuse", "skip")
    )
    with pytest.raises(
        UserError, match=r"a/3\.png is not a readable .*--config\.data\.unreadable=skip"
    ):
        everything(load(refuse, "train", memory_limit_bytes=memory_limit_bytes))
    with caplog.at_level(logging.WARNING):
        source = load(skip, "train", memory_limit_bytes=memory_limit_bytes)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning == (
        f"left out as unreadable: 2 of 8 images of {tmp_path.name}/train, the first being "
        f"{tmp_path}/train/a/3.png (its content is of no kind that Pillow reads)"
    )
    # The cut is made first: position 4 and 9 are validation's whatever can be read.
    assert source.positions.tolist() == [0, 1, 2, 5, 6, 7]
    assert source.original_size == 10
    batch = everything(source)
    np.testing.assert_array_equal(batch["image"][:, 4, 4, 0], batch["index"])
    validation = load(skip, "validation", memory_limit_bytes=memory_limit_bytes)
    assert validation.positions.tolist() == [4, 9]


def test_a_set_without_any_readable_file_is_refused(data_config, tmp_path):
    for number in range(2):
        save(tmp_path / "train" / "a" / f"{number}.png")
        (tmp_path / "train" / "a" / f"{number}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"of 2 images of .* none can be read, the .*0\.png"):
        load(data_config("folder", tmp_path, 8, unreadable="skip"), "train")
    with pytest.raises(UserError, match=r"--config\.data\.unreadable=ignore is unknown"):
        load(data_config("folder", tmp_path, 8, unreadable="ignore"), "train")


# The real ones, where they are.


def test_real_boxes_and_masks(data_config, real_folders):
    boxes = load(data_config("coco_folder", real_folders / "coco128", 128), "train")
    targets = everything(boxes)["targets"]
    real = targets["box_labels"] >= 0
    assert (len(boxes), len(boxes.class_names)) == (128, 80)
    assert 700 < real.sum() < 929  # 929 boxes, of which the central crop loses some
    assert targets["boxes"].max() <= 128
    assert (targets["boxes"][~real] == 0).all()
    masks = load(data_config("mask_folder", real_folders / "camvid", 90), "validation")
    batch = everything(masks)
    assert batch["targets"]["mask"].shape == (101, 90, 90)
    sky, road = (batch["targets"]["mask"] == c for c in (0, 3))
    rows = np.arange(90)[None, :, None]
    assert (sky * rows).sum() / sky.sum() < 45 < (road * rows).sum() / road.sum()
    with PIL.Image.open(boxes_file := real_folders / "camvid/val/images/0016E5_07959.jpg") as file:
        expected = np.asarray(resize(file, 90, 90))
    row = [f.name for f in sorted(boxes_file.parent.iterdir())].index(boxes_file.name)
    np.testing.assert_array_equal(batch["image"][row], expected)
