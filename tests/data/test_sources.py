"""Sources against what they read from, and the cuts."""

import dataclasses
import io

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets
from batches import assert_same_batch, everything
from support import unchecked

from jaxssl.data.canonical import resize
from jaxssl.data.sources import (
    ArraySource,
    FolderSource,
    Source,
    array_source,
    cut,
    in_memory,
    load,
)
from jaxssl.errors import UserError
from jaxssl.randomness import Split

# Cuts.


@pytest.mark.parametrize("n", [1, 7, 100, 1437])
@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.29, 1 / 3, 0.7])
def test_a_position_is_held_out_where_its_multiple_of_the_fraction_passes_an_integer(n, fraction):
    from fractions import Fraction

    exact = {0.02: Fraction(1, 50), 0.1: Fraction(1, 10), 0.29: Fraction(29, 100)}
    share = exact.get(fraction, Fraction(7, 10) if fraction == 0.7 else Fraction(1, 3))
    held = [i for i in range(n) if int((i + 1) * share) > int(i * share)]
    train = cut("train", np.arange(n), fraction, 0)
    assert sorted({*range(n)} - {*held}) == train.tolist()
    if held:
        assert cut("validation", np.arange(n), fraction, 0).tolist() == held


def test_the_published_formula_in_floating_point_gives_the_same_for_usual_fractions():
    i = np.arange(50_000)
    for fraction in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5):
        held = np.floor((i + 1) * fraction) > np.floor(i * fraction)
        np.testing.assert_array_equal(cut("validation", i, fraction, 0), i[held])


def test_fewer_training_examples_are_evenly_spread_over_what_validation_leaves():
    whole = cut("train", np.arange(1000), 0.1, 0)
    few = cut("train", np.arange(1000), 0.1, 90)
    assert len(whole) == 900
    assert len(few) == 90
    assert set(few) <= set(whole)
    assert set(np.diff(np.searchsorted(whole, few))) == {10}


def test_a_set_sorted_by_class_keeps_its_shares():
    labels = np.repeat(np.arange(10), 50)
    for part, count in (("train", 45), ("validation", 5)):
        assert np.bincount(labels[cut(part, np.arange(500), 0.1, 0)]).tolist() == [count] * 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", np.arange(10), 1.0, 0), "validation_fraction=1.0"),
        (("train", np.arange(10), -0.1, 0), "validation_fraction=-0.1"),
        (("validation", np.arange(10), 0.05, 0), "at least 0.1"),
        (("train", np.arange(10), 0.1, 10), "train_examples=10 of 9 that are left of 10 tr"),
        (("train", np.arange(10), 0.0, -1), "train_examples=-1"),
    ],
)
def test_impossible_cuts_are_refused_in_words(arguments, message):
    with pytest.raises(UserError, match=message):
        cut(*arguments)


# Digits.


def test_digits_are_the_embedded_ones_and_the_last_360_are_the_test(data_config):
    raw = sklearn.datasets.load_digits()
    train, test = (load(data_config("digits"), split) for split in ("train", "test"))
    assert isinstance(train, Source)
    assert (len(train), len(test)) == (1437, 360)
    assert (train.original_size, test.original_size) == (1437, 360)
    assert (set(train.splits), set(test.splits)) == ({Split.TRAIN}, {Split.TEST})
    assert train.image_shape == (8, 8, 1)
    assert train.num_classes == 10
    images = np.concatenate([everything(train)["image"], everything(test)["image"]])[..., 0]
    np.testing.assert_array_equal(images, np.floor(raw.images / 16 * 255 + 0.5))
    assert images.max() == 255
    labels = np.concatenate([everything(s)["targets"]["label"] for s in (train, test)])
    np.testing.assert_array_equal(labels, raw.target)
    assert everything(test)["index"][0] == 0
    np.testing.assert_array_equal(everything(test)["original_size"], np.full((360, 2), 8))


def test_digits_validation_keeps_every_class_its_share(data_config):
    # The file repeats the digits in a fixed pattern: every tenth image is a three too often.
    config = data_config("digits", validation_fraction=0.1)
    train, validation = load(config, "train"), load(config, "validation")
    np.testing.assert_array_equal(
        np.sort(np.concatenate([train.positions, validation.positions])), np.arange(1437)
    )
    assert not set(train.positions) & set(validation.positions)
    assert (train.original_size, validation.original_size) == (1437, 1437)
    assert set(validation.splits) == {Split.TRAIN}
    counts = np.bincount(everything(validation)["targets"]["label"])
    whole = np.bincount(sklearn.datasets.load_digits().target[:1437])
    assert np.abs(counts - whole / 10).max() <= 1


def test_rows_of_a_cut_keep_their_image_and_their_original_index(data_config):
    whole = everything(load(data_config("digits"), "train"))
    for split in ("train", "validation"):
        part = everything(load(data_config("digits", validation_fraction=0.2), split))
        np.testing.assert_array_equal(part["image"], whole["image"][part["index"]])
        np.testing.assert_array_equal(
            part["targets"]["label"], whole["targets"]["label"][part["index"]]
        )


# Arrays.


def test_an_array_without_labels_has_no_targets():
    source = array_source("mine", Split.TRAIN, np.zeros((3, 4, 5, 1), np.uint8), {})
    batch = source.gather(np.array([2, 0]), np.array([4, 1]))
    assert batch["targets"] == {}
    assert batch["index"].tolist() == [2, 0]
    assert batch["epoch"].tolist() == [4, 1]
    assert batch["original_size"].tolist() == [[4, 5], [4, 5]]
    assert source.num_classes is None


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (np.zeros((3, 4, 4), np.uint8), {}, r"shape \[3, 4, 4\]"),
        (np.zeros((3, 4, 4, 1), np.float32), {}, "float32"),
        (np.zeros((3, 4, 4, 1), np.uint8), {"label": np.zeros(2, np.int32)}, "2 rows for 3"),
        (np.zeros((2, 4, 4, 1), np.uint8), {"label": np.array([0, 7], np.int32)}, "7"),
        (np.zeros((2, 4, 4, 1), np.uint8), {"label": np.array([-1, 0], np.int32)}, "-1"),
    ],
)
def test_arrays_that_disagree_are_refused_in_words(images, targets, message):
    with pytest.raises(UserError, match=message):
        array_source("mine", Split.TRAIN, images, targets, num_classes=5)


@pytest.mark.parametrize("channels", [1, 2, 3, 7])
def test_arrays_of_any_number_of_channels_with_every_target(channels):
    rng = np.random.default_rng(0)
    targets = {
        "label": rng.integers(0, 5, 3).astype(np.uint8),
        "digit": rng.integers(0, 10, 3),
        "presence": rng.integers(0, 2, (3, 5), np.int16),
        "slots": rng.integers(0, 5, (3, 2)),
        "boxes": rng.uniform(0, 4, (3, 6, 4)),
        "box_labels": rng.integers(-1, 5, (3, 6)),
        "mask": rng.integers(0, 256, (3, 4, 5), np.uint8),
        "weight": rng.uniform(size=3),  # unknown here, and carried through as it is
    }
    images = rng.integers(0, 256, (3, 4, 5, channels), np.uint8)
    source = array_source("mine", Split.TEST, images, targets, num_classes=5)
    assert source.image_shape == (4, 5, channels)
    batch = in_memory(source).take(np.array([2, 0])).gather(np.array([1, 0]))
    np.testing.assert_array_equal(batch["image"], images[[0, 2]])
    assert batch["split"].tolist() == [Split.TEST, Split.TEST]
    assert batch["targets"].keys() == targets.keys()
    dtypes = {"boxes": np.float32, "mask": np.uint8, "weight": np.float64}
    for key, values in batch["targets"].items():
        assert values.dtype == dtypes.get(key, np.int32), key
        np.testing.assert_array_equal(values, targets[key][[0, 2]].astype(values.dtype))


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("label", np.zeros(2), r"'label' of mine is float64 \[2\].* integer values of shape \[N\]"),
        ("label", np.zeros(2, bool), "is bool"),
        ("label", np.array(["a", "b"]), "is <U1"),
        ("label", np.zeros((2, 1), np.int32), r"int32 \[2, 1\]"),
        ("label", np.array(3), "has no rows for 2 images"),
        ("label", np.array([0, 2**32]), r"lies in \[0, 4294967296\], more than int32 holds"),
        ("label", [0.5, 1.0], "float64"),
        ("presence", np.zeros(2, np.int32), r"shape \[N, K\]"),
        ("digit", np.zeros(2, np.float32), "float32"),
        ("boxes", np.zeros((2, 4), np.float32), r"real values of shape \[N, M, 4\]"),
        ("boxes", np.zeros((2, 3, 5), np.float32), r"\[2, 3, 5\]"),
        ("boxes", np.zeros((3, 3, 4), np.float32), "3 rows for 2"),
        ("boxes", np.full((2, 3, 4), 1e300), "no finite numbers of 32 bits"),
        ("boxes", np.full((2, 3, 4), np.nan, np.float32), "no finite numbers of 32 bits"),
        ("boxes", np.zeros((2, 3, 4), np.complex64), "'boxes' of mine is complex64"),
        ("box_labels", np.zeros((2, 3)), "float64"),
        ("mask", np.zeros((2, 4, 5), np.int32), "uint8 values"),
        ("mask", np.zeros((2, 4, 6), np.uint8), r"\[2, 4, 6\]"),
        ("weight", np.zeros(3), "3 rows for 2"),
    ],
)
def test_targets_of_a_wrong_type_or_shape_are_refused_in_words(key, values, message):
    images = np.zeros((2, 4, 5, 1), np.uint8)
    with pytest.raises(UserError, match=message):
        array_source("mine", Split.TRAIN, images, {key: values}, num_classes=5)


def test_lists_serve_as_targets():
    images = np.zeros((3, 4, 4, 1), np.uint8)
    source = array_source("mine", Split.TRAIN, images, {"label": [2, 0, 1]}, num_classes=3)
    assert source.gather(np.arange(3))["targets"]["label"].tolist() == [2, 0, 1]


def test_images_of_another_than_the_declared_shape_are_refused():
    source = array_source("mine", Split.TRAIN, np.zeros((2, 4, 4, 1), np.uint8), {})
    with pytest.raises(UserError, match=r"\[2, 8, 8, 1\] was declared"):
        dataclasses.replace(source, image_shape=(8, 8, 1))


# Folders.


def test_a_folder_lists_classes_of_train_in_sorted_order(data_config, folder):
    train = load(data_config("folder", folder, 8), "train", memory_limit_bytes=0)
    test = load(data_config("folder", folder, 8), "test", memory_limit_bytes=0)
    assert isinstance(train, FolderSource)
    assert train.class_names == test.class_names == ("ant", "bee", "cat")
    assert np.bincount(everything(train)["targets"]["label"]).tolist() == [7, 5, 6]
    assert np.bincount(everything(test)["targets"]["label"]).tolist() == [2, 0, 2]
    assert (set(train.splits), set(test.splits)) == ({Split.TRAIN}, {Split.VALIDATION})
    assert train.image_shape == (8, 8, 3)
    files = [f"{folder}/train/ant/{number}.png" for number in range(7)]
    assert list(train.files[:7]) == files


def test_folder_records_are_the_resized_files_in_rgb(data_config, folder):
    source = load(data_config("folder", folder, 8), "train", memory_limit_bytes=0)
    with PIL.Image.open(folder / "train" / "bee" / "1.png") as file:
        expected, size = np.asarray(resize(file, 8, 8)), (file.height, file.width)
    record = source.gather(np.array([8]))
    np.testing.assert_array_equal(record["image"][0], expected)
    assert tuple(record["original_size"][0]) == size
    assert record["targets"]["label"].tolist() == [1]
    assert record["index"].tolist() == [8]
    np.testing.assert_array_equal(source.gather(np.array([3, 8]))["image"][1], expected)


def test_a_small_folder_in_memory_is_the_folder(data_config, folder):
    config = data_config("folder", folder, 8, validation_fraction=0.2)
    for split in ("train", "validation", "test"):
        kept = load(config, split)
        lazy = load(config, split, memory_limit_bytes=0)
        assert isinstance(kept, ArraySource)
        assert isinstance(lazy, FolderSource)
        assert_same_batch(everything(kept), everything(lazy))
        assert kept.original_size == lazy.original_size
    assert load(config, "validation").original_size == 18


def test_grey_palette_and_transparent_files_become_rgb(data_config, tmp_path):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    PIL.Image.fromarray(pixels).save(folder / "grey.png")
    PIL.Image.fromarray(pixels).convert("P").save(folder / "palette.png")
    PIL.Image.fromarray(np.dstack([pixels] * 3 + [pixels * 0])).save(folder / "transparent.png")
    config = data_config("folder", tmp_path, 8, background=(9, 80, 200))
    images = everything(load(config, "train"))["image"]
    np.testing.assert_array_equal(images[:2], np.broadcast_to(pixels[:, :, None], (2, 8, 8, 3)))
    np.testing.assert_array_equal(images[2], np.broadcast_to([9, 80, 200], (8, 8, 3)))


def test_a_folder_with_validation_and_test_has_all_three(data_config, tmp_path):
    for part in ("train", "val", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / part / "a" / "0.jpg")
    config = data_config("folder", tmp_path, 8)
    splits = [load(config, s).splits[0] for s in ("train", "validation", "test")]
    assert splits == [Split.TRAIN, Split.VALIDATION, Split.TEST]


def test_bad_folders_are_refused_in_words(data_config, tmp_path):
    config = data_config("folder", tmp_path, 8)
    with pytest.raises(UserError, match="has no class sub-folders"):
        load(config, "train")
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no image files"):
        load(config, "train")
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "train" / "a" / "0.jpg")
    with pytest.raises(UserError, match="has no test split"):
        load(config, "test")
    with pytest.raises(UserError, match="no validation split of its own"):
        load(config, "validation")
    with pytest.raises(UserError, match="'holdout' is unknown"):
        load(config, "holdout")
    with pytest.raises(UserError, match="image_size=0"):
        load(data_config("folder", tmp_path, 0), "train")
    (tmp_path / "test" / "b").mkdir(parents=True)
    with pytest.raises(UserError, match="has class 'b'"):
        load(config, "test")


@pytest.mark.parametrize("memory_limit_bytes", [0, 2**31])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_an_unreadable_file_is_named(data_config, tmp_path, damage, memory_limit_bytes):
    (tmp_path / "train" / "a").mkdir(parents=True)
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    PIL.Image.fromarray(noise).save(whole, "JPEG")
    content = {"truncated": whole.getvalue()[:-800], "empty": b"", "text": b"no image"}[damage]
    (tmp_path / "train" / "a" / "broken.jpg").write_bytes(content)
    config = data_config("folder", tmp_path, 8)
    with pytest.raises(UserError, match=r"broken\.jpg is not a readable image"):
        everything(load(config, "train", memory_limit_bytes=memory_limit_bytes))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_grey_images_of_more_than_8_bits_are_refused(data_config, tmp_path, dtype):
    (tmp_path / "train" / "a").mkdir(parents=True)
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(dtype)
    PIL.Image.fromarray(ramp).save(tmp_path / "train" / "a" / "deep.tif")
    with pytest.raises(
        UserError,
        match=r"deep\.tif has (uint16|int32|float32) values, which 8 bits .* else convert it",
    ):
        load(data_config("folder", tmp_path, 8), "train")


# TFDS; more in test_sources_tfds.py and test_own_tfds.py.


COMMAND = "tfds build {} --data_dir={} --file_format=array_record"
NAMES = (
    "mnist cifar10 cifar100 stl10 imagenet2012 coco/2017 coco voc/2007 voc/2012 oxford_iiit_pet "
    "tf_flowers"
)


@pytest.mark.parametrize("name", NAMES.split())
def test_a_missing_tfds_set_names_the_command_that_prepares_it(
    data_config, tmp_path, monkeypatch, name
):
    with pytest.raises(UserError) as raised:
        load(data_config(name, tmp_path / "here", 8), "train")
    assert COMMAND.format(name, tmp_path / "here") in str(raised.value)
    assert ("downloads/manual" in str(raised.value)) == (name == "imagenet2012")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "there"))
    with pytest.raises(UserError) as raised:
        load(data_config(name, image_size=8), "pretrain")
    assert COMMAND.format(name, tmp_path / "there") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["nosuchset", "no such set", "mnist:9.9.9"])
def test_an_unknown_name_is_refused_in_words(data_config, tmp_path, name):
    with pytest.raises(UserError, match=r"correct --config\.data\.name"):
        load(data_config(name, tmp_path), "train")


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_real_tfds_images_are_those_of_the_reader(data_config, real_tfds, name):
    import tensorflow_datasets as tfds

    config = data_config(name, real_tfds, validation_fraction=0.1, train_examples=300)
    source = load(config, "train")
    records = tfds.data_source(name, split="train", data_dir=real_tfds, download=False)
    batch = everything(source)
    for row in (0, 1, 150, 299):
        record = records[int(source.positions[row])]
        np.testing.assert_array_equal(batch["image"][row], record["image"])
        assert batch["targets"]["label"][row] == record["label"]
    assert source.original_size == {"cifar10": 50_000, "mnist": 60_000}[name]
    assert source.image_shape == {"cifar10": (32, 32, 3), "mnist": (28, 28, 1)}[name]
    assert len(source) == 300
    lazy = load(config, "train", memory_limit_bytes=0)
    assert_same_batch(batch, everything(lazy))


def test_real_cifar10_parts(data_config, real_tfds, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(real_tfds))
    config = data_config("cifar10", validation_fraction=0.1)
    train = load(config, "train", memory_limit_bytes=0)
    validation, test = load(config, "validation"), load(config, "test")
    assert (len(train), len(validation), len(test)) == (45_000, 5_000, 10_000)
    assert not set(train.positions) & set(validation.positions)
    assert test.class_names[:2] == ("airplane", "automobile")
    assert np.bincount(everything(test)["targets"]["label"]).tolist() == [1000] * 10
    # Records are shuffled when the set is written, so the cut is as good as a draw: chi-squared
    # with 9 degrees of freedom, whose 99.9th percentile is 27.9.
    counts = np.bincount(everything(validation)["targets"]["label"], minlength=10)
    assert np.sum((counts - 500) ** 2 / 500) < 27.9
    assert set(test.splits) == {Split.TEST}


def test_gather_checks_its_rows():
    source = array_source("mine", Split.TRAIN, np.zeros((3, 4, 4, 1), np.uint8), {})
    with pytest.raises(IndexError):
        unchecked(ArraySource.gather)(source, np.array([3]))
