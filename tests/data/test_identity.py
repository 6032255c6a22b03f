"""What tells one set from another: its content, and not where it lies."""

import dataclasses
import json
import os
import shutil

import numpy as np
import PIL.Image
import pytest

from jaxssl.data.composed import digit_on_image
from jaxssl.data.examples import array_source, identity, identity_differences
from jaxssl.data.sources import load
from jaxssl.errors import UserError
from jaxssl.randomness import Split

LIMITS = pytest.mark.parametrize("memory_limit_bytes", [0, 2**31])


def of(data_config, root, memory_limit_bytes, split="train"):
    config = data_config("folder", root, 8, validation_fraction=0.25)
    return identity(load(config, split, memory_limit_bytes=memory_limit_bytes))


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


@LIMITS
def test_location_is_no_part_of_it(data_config, folder, copy, monkeypatch, memory_limit_bytes):
    before = of(data_config, folder, memory_limit_bytes)
    json.dumps(before)
    monkeypatch.chdir(copy)
    (copy.parent / "linked").symlink_to(copy)
    places = (f"{folder}/", f"{folder}/train/..", str(copy), ".", "../linked")
    for root in places:
        after = of(data_config, root, memory_limit_bytes)
        assert identity_differences(before, after) == [], root
    assert of(data_config, copy, memory_limit_bytes)["name"] == "copy/train"


def move(root):
    (root / "train" / "cat" / "0.png").rename(root / "train" / "bee" / "9.png")


def rename_class(root):
    (root / "train" / "cat").rename(root / "train" / "cow")
    (root / "val" / "cat").rename(root / "val" / "cow")


def add_pixels(root):
    PIL.Image.new("RGB", (40, 40)).save(root / "train" / "ant" / "0.png")


def remove(root):
    (root / "train" / "ant" / "0.png").unlink()


def swap(root):
    one, other = (root / "train" / "ant" / f"{n}.png" for n in (0, 1))
    one.rename(root / "x.png")
    other.rename(one)
    (root / "x.png").rename(other)


@LIMITS
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (move, "the labels, or other targets, are not the same"),
        (rename_class, "the names of the classes are not the same"),
        (add_pixels, "the images' content is not the same"),
        (swap, "the images' content is not the same"),
        (remove, "18 images before any cut then, 17 images before any cut now"),
    ],
)
def test_content_is(data_config, copy, memory_limit_bytes, change, said):
    before = of(data_config, copy, memory_limit_bytes)
    change(copy)
    told = identity_differences(before, of(data_config, copy, memory_limit_bytes))
    assert said in told
    assert not any("sha256" in clause for clause in told)
    if change is remove:  # what follows from it is not said
        assert told == [said, "14 images then, 13 images now"]


def test_a_renamed_file_differs_where_files_are_not_read(data_config, copy):
    before = of(data_config, copy, 0)
    (copy / "train" / "ant" / "6.png").rename(copy / "train" / "ant" / "7.png")
    told = identity_differences(before, of(data_config, copy, 0))
    assert told == ["the names of the files are not the same"]


def test_a_file_that_is_gone_is_named(data_config, copy):
    source = load(data_config("folder", copy, 8), "train", memory_limit_bytes=0)
    os.remove(copy / "train" / "ant" / "3.png")
    with pytest.raises(UserError, match=r"ant/3\.png could not be read \(No such file"):
        identity(source)


def test_arrays_differ_by_pixels_and_labels():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5, 4, 4, 3), np.uint8), np.arange(5)

    def identify(images, labels, **fields):
        source = array_source("mine", Split.TRAIN, images, {"label": labels}, num_classes=5)
        return identity(dataclasses.replace(source, **fields))

    before = identify(images, labels)
    assert identity_differences(before, identify(images.copy(), labels, name="other")) == []
    changed = images.copy()
    changed[4, 3, 3, 2] ^= 1
    (told,) = identity_differences(before, identify(changed, labels))
    assert told == "the images' content is not the same"
    (told,) = identity_differences(before, identify(images, labels[::-1]))
    assert told == "the labels, or other targets, are not the same"
    (told,) = identity_differences(before, identify(images, labels, class_names=tuple("abcde")))
    assert told == "the names of the classes are not the same"


def test_composed_sets_have_the_identity_of_their_parts(data_config, folder):
    base = load(data_config("folder", folder, 40), "train")
    pool = load(data_config("digits", train_examples=20), "train")
    settings = {"digit_size": 8, "unique_digits": 20, "seed": 0}
    before = identity(digit_on_image(base, pool, **settings))
    other = dataclasses.replace(pool, images=255 - pool.images)
    (told,) = identity_differences(before, identity(digit_on_image(base, other, **settings)))
    assert told == "the digits' content is not the same"
    other = dataclasses.replace(base, images=255 - base.images)
    (told,) = identity_differences(before, identity(digit_on_image(other, pool, **settings)))
    assert told == "the images' content is not the same"
