"""Arrays in .npy files, and arrays of odd layouts."""

import os
import pickle

import numpy as np
import pytest
from batches import assert_same_batch, everything

from jaxssl.data.examples import array_source, identity, identity_differences
from jaxssl.data.npy import HASHED_ROWS, NpySource
from jaxssl.data.sources import load
from jaxssl.errors import UserError
from jaxssl.randomness import Split


@pytest.fixture
def bands(tmp_path):
    """13 bands of 16 bits: 12 images of 3 classes, and 4 of the first two for testing."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 10_000, (16, 20, 18, 13)).astype(np.uint16)
    np.save(tmp_path / "train_images.npy", images[:12])
    np.save(tmp_path / "train_labels.npy", np.arange(12) % 3)
    np.save(tmp_path / "val_images.npy", images[12:])
    np.save(tmp_path / "val_labels.npy", np.arange(4) % 2)
    np.save(tmp_path / "extra.npy", np.zeros(1))
    return tmp_path, images


def test_arrays_of_many_deep_bands(data_config, bands):
    root, images = bands
    config = data_config("npy", root, scale=(0, 8000), validation_fraction=0.25)
    kept, lazy = load(config, "train"), load(config, "train", memory_limit_bytes=0)
    assert isinstance(lazy, NpySource)
    assert_same_batch(everything(kept), everything(lazy))
    assert_same_batch(everything(kept), everything(pickle.loads(pickle.dumps(lazy))))
    assert len(pickle.dumps(lazy)) < 10_000  # without the images
    assert lazy.image_shape == (20, 18, 13)
    assert (lazy.num_classes, lazy.original_size) == (3, 12)
    assert lazy.passed_over == {".npy": 1}
    assert lazy.canonical is None
    batch = everything(lazy)
    expected = np.rint(np.minimum(images[lazy.positions] / 8000, 1) * 255)
    np.testing.assert_array_equal(batch["image"], expected)
    assert batch["targets"]["label"].tolist() == (lazy.positions % 3).tolist()
    test = load(config, "test")
    assert (len(test), test.num_classes, set(test.splits)) == (4, 3, {Split.VALIDATION})
    assert len(load(config, "validation")) == 3


def test_other_pixels_of_the_same_shape_are_another_set(data_config, tmp_path):
    """Told by some rows; a run that began before they were noted goes on."""
    images = np.random.default_rng(0).integers(0, 256, (HASHED_ROWS + 50, 2, 2, 1), np.uint8)
    path = tmp_path / "train_images.npy"
    np.save(path, images)
    source = load(data_config("npy", tmp_path), "train", memory_limit_bytes=0)
    before = identity(source)
    older = {key: value for key, value in before.items() if key != "rows_sha256"}
    assert identity_differences(older, before) == []
    empty = identity(source.take(np.arange(0)))
    images[0] += 1
    np.save(path, images)
    os.utime(path, ns=(1, 1))  # whatever the clock's resolution
    now = identity(load(data_config("npy", tmp_path), "train", memory_limit_bytes=0))
    assert identity_differences(before, now) == ["the images' content is not the same"]
    assert identity_differences(older, now) == []
    assert identity(source.take(np.arange(0))) == empty


def test_arrays_of_8_bits_need_no_scale_and_may_lack_labels(data_config, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    np.save(tmp_path / "train_images.npy", images)
    config = data_config("npy", tmp_path)
    source = load(config, "train", memory_limit_bytes=0)
    np.testing.assert_array_equal(everything(source)["image"], images)
    assert everything(source)["targets"] == {}
    before = identity(source)
    np.save(tmp_path / "train_images.npy", np.concatenate([images, images]))
    assert len(load(config, "train")) == 6
    assert identity(load(config, "train", memory_limit_bytes=0)) != before


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({}, {}, r"has no train_images\.npy"),
        ({"train_images": np.zeros((2, 8, 8, 3), np.uint16)}, {}, r"uint16 .*data\.scale=\(low,h"),
        ({"train_images": np.zeros((2, 8, 8, 3), np.uint8)}, {"scale": (0, 9)}, "8 bits a channel"),
        ({"train_images": np.full((2, 8, 8, 3), np.nan)}, {"scale": (0, 1)}, "holds NaN"),
        ({"train_images": np.zeros((2, 8, 8), np.uint8)}, {}, r"shape \[2, 8, 8\]"),
        ({"train_images": np.zeros((2, 3, 8, 8), np.uint8)}, {}, r"looks like \[N, C, H, W\]"),
        ({"train_images": np.zeros((2, 8, 8, 3), bool)}, {}, "holds bool values"),
        ({"train_images": np.zeros((2, 8, 8, 3), complex)}, {"scale": (0, 1)}, "holds complex"),
        ({"train_images": np.array([None, 1])}, {}, r"is no \.npy file of numbers"),
        (
            {"train_images": np.zeros((2, 8, 8, 3), np.uint8), "train_labels": np.zeros(3, int)},
            {},
            "3 rows for 2 images",
        ),
        (
            {"train_images": np.zeros((2, 8, 8, 3), np.uint8), "train_labels": np.zeros(2)},
            {},
            r"'label' of .*train_labels\.npy is float64",
        ),
        (
            {"train_images": np.zeros((2, 8, 8, 3), np.uint8), "train_labels": np.array([0, 2])},
            {},
            "has 2 classes numbered from 0 to 2: number them from 0 without gaps",
        ),
        (
            {f"{part}_images": np.zeros((2, 8, 8, 3), np.uint8) for part in ("val", "validation")},
            {},
            r"both validation_images\.npy and val_images\.npy",
        ),
    ],
)
def test_other_arrays_are_refused_in_words(data_config, tmp_path, files, options, message):
    for name, array in files.items():
        np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(UserError, match=message):
        load(data_config("npy", tmp_path, **options), "train")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\3\4", "several"])
def test_a_file_that_is_no_array_is_refused(data_config, tmp_path, content):
    path = tmp_path / "train_images.npy"
    with open(path, "wb") as file:
        if content == "several":
            np.savez(file, images=np.zeros((2, 4, 4, 3), np.uint8))
        else:
            file.write(content)
    with pytest.raises(UserError, match=r"train_images\.npy is no \.npy file of numbers"):
        load(data_config("npy", tmp_path), "train")


def test_labels_of_test_that_train_lacks_are_refused(data_config, bands):
    root, _ = bands
    np.save(root / "val_labels.npy", np.array([0, 1, 2, 3]))
    with pytest.raises(UserError, match=r"val_labels\.npy lie in \[0, 3\] but it declares 3"):
        load(data_config("npy", root, scale=(0, 1)), "test")


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 1, 28, 28), (2, 3, 32, 48), (2, 13, 64, 64)])
def test_channels_first_is_refused_in_words(shape):
    with pytest.raises(UserError, match=r"looks like \[N, C, H, W\]: .*transpose\(0, 2, 3, 1\)"):
        array_source("mine", Split.TRAIN, np.zeros(shape, np.uint8), {})


@pytest.mark.parametrize(
    "shape", [(2, 16, 16, 13), (2, 64, 64, 32), (2, 1, 1, 20), (2, 3, 3, 3), (2, 3, 5, 4)]
)
def test_many_bands_are_not(shape):
    assert array_source("mine", Split.TRAIN, np.zeros(shape, np.uint8), {}).image_shape == shape[1:]


def test_a_list_of_images_is_refused_in_words():
    images = [np.zeros((4, 4, 3), np.uint8)] * 2
    with pytest.raises(UserError, match=r"images of mine are a list: .*numpy\.stack\(images\)"):
        array_source("mine", Split.TRAIN, images, {})
