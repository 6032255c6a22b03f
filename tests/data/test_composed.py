"""Composed sets: what holds for all of them, digits on images, saturation."""

import dataclasses
import itertools

import numpy as np
import PIL.Image
import pytest
from compositions import (
    assert_same,
    assert_uniform,
    canvases,
    colour_images,
    first_digits,
    overlaid,
    part,
    raw,
    squares,
)

from configs.common import data_group
from configs.pretrain import digit_on_image as recipe
from jaxssl.data import sources
from jaxssl.data.composed import saturation
from jaxssl.data.examples import ArraySource, Source, array_source
from jaxssl.data.multi_digits import single_digit
from jaxssl.data.pipeline import eval_batches, train_batches
from jaxssl.data.sources import load
from jaxssl.errors import UserError
from jaxssl.randomness import Purpose, Split, host_bits


@pytest.fixture(scope="module")
def digits():
    return first_digits()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OneByOne(ArraySource):
    """What the pipeline reads record by record; it hands out its own memory, for runs of rows."""

    vectorised: bool = dataclasses.field(default=False, init=False)

    def gather(self, rows, epochs=None):
        run = (np.diff(rows) == 1).all()
        images = self.images[rows[0] : rows[-1] + 1] if run else self.images[rows]
        return {**ArraySource.gather(self, rows, epochs), "image": images}


def one_by_one(source):
    fields = (field.name for field in dataclasses.fields(source) if field.init)
    return OneByOne(**{name: getattr(source, name) for name in fields})


# What holds for every composed set.


def composed(digits):
    return {
        "random": canvases(digits, count=4, sizes=(6, 8, 8, 13)),
        "grid": canvases(digits, count=5, placement="grid", combine="sum"),
        "single": single_digit(digits, canvas=20, size=11, seed=7),
        "overlay": overlaid(colour_images(), digits),
    }


NAMES = ["random", "grid", "single", "overlay"]


@pytest.mark.parametrize("name", NAMES)
def test_an_item_depends_on_its_position_and_epoch_alone(digits, name):
    source, again = composed(digits)[name], composed(digits)[name]
    assert isinstance(source, Source)
    rng = np.random.default_rng(1)
    rows, epochs = rng.integers(0, len(source), 40), rng.integers(0, 3, 40)
    whole = source.gather(rows, epochs)
    assert whole["image"].shape == (40, *source.image_shape)
    assert whole["image"].dtype == np.uint8
    np.testing.assert_array_equal(whole["index"], source.positions[rows])
    np.testing.assert_array_equal(whole["epoch"], epochs)
    np.testing.assert_array_equal(whole["split"], source.splits[rows])
    for some in (np.arange(40)[::-1], np.array([3]), rng.permutation(40)[:17]):
        assert_same(part(whole, some), again.gather(rows[some], epochs[some]))


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_leaves_the_items_as_they_were(digits, name):
    source = composed(digits)[name]
    kept = np.array([1, 5, 6, 40])
    cut = source.take(kept)
    assert len(cut) == 4
    np.testing.assert_array_equal(cut.positions, source.positions[kept])
    assert_same(cut.gather(np.arange(4)), source.gather(kept))


@pytest.mark.parametrize("name", NAMES)
def test_no_epochs_are_epoch_0_and_only_compositions_change_with_the_epoch(digits, name):
    source, rows = composed(digits)[name], np.arange(30)
    first = source.gather(rows, np.zeros(30, np.int32))
    assert_same(first, source.gather(rows))
    second = source.gather(rows, np.ones(30, np.int32))
    changed = (first["image"] != second["image"]).any((1, 2, 3))
    assert changed.all() if name in ("random", "grid") else not changed.any()


def test_seeds_and_splits_and_sets_draw_by_themselves():
    def images(split=Split.TRAIN, seed=7, make=canvases):
        base = squares(split=split, examples=30)
        source = (
            canvases(base, count=1, sizes=(4,), seed=seed)
            if make is canvases
            else single_digit(base, canvas=32, size=4, seed=seed)
        )
        return source.gather(np.arange(30))["image"]

    for other in (images(seed=8), images(split=Split.TEST), images(make=single_digit)):
        assert (images() != other).any((1, 2, 3)).mean() > 0.9
    saturated = [
        saturation(examples=30, side=1, bits=20, split=split, seed=seed).images.tobytes()
        for split, seed in ((Split.TRAIN, 7), (Split.TEST, 7), (Split.TRAIN, 8))
    ]
    assert len(set(saturated)) == 3


def test_batches_of_the_pipeline_are_the_items_of_their_epochs(digits):
    source = canvases(digits)
    setting = {"batch_size": 64, "process_index": 0, "process_count": 1, "prefetch": 0}
    batches = list(train_batches(source, data_seed=3, start_step=2, num_steps=5, **setting))
    assert {int(epoch) for batch in batches for epoch in batch["epoch"]} == {0, 1}
    for batch in batches:
        rows = np.searchsorted(source.positions, batch["index"])
        assert_same(batch, source.gather(rows, batch["epoch"]))
    evaluated = list(eval_batches(single_digit(digits, canvas=12, size=8, seed=1), **setting))
    assert sum(int(batch["mask"].sum()) for batch in evaluated) == len(digits)


# DigitOnImage.


def test_the_nine_corners_of_a_224_pixel_image():
    black = array_source("black", Split.TRAIN, np.zeros((2, 224, 224, 3), np.uint8), {})
    batch = overlaid(black, squares(28), digit_size=28, unique_digits=1).gather(np.arange(2))
    expected = np.zeros((224, 224), np.uint8)
    for top, left in itertools.product((33, 100, 168), repeat=2):
        expected[top : top + 28, left : left + 28] = 55
    for image, channel in itertools.product(range(2), range(3)):
        np.testing.assert_array_equal(batch["image"][image, :, :, channel], expected)
    assert list(batch["targets"]) == ["digit"]


def test_images_keep_what_is_brighter_than_their_digit(digits):
    base = colour_images(height=36, width=40)
    before = base.images.copy()
    source = overlaid(one_by_one(base), digits, digit_size=9, unique_digits=50)
    batch = source.gather(np.arange(60))
    np.testing.assert_array_equal(batch["targets"]["label"], base.targets["label"])
    np.testing.assert_array_equal(base.images, before)
    for row in range(60):
        which = raw(source, row, 0, stream=2)[0] % 50
        assert batch["targets"]["digit"][row] == digits.targets["label"][which]
        digit = PIL.Image.fromarray(digits.images[which, :, :, 0])
        digit = np.asarray(digit.resize((9, 9), PIL.Image.Resampling.BILINEAR))[..., None]
        expected = base.images[row].copy()
        for top, left in itertools.product((5, 16, 27), (6, 18, 30)):
            here = expected[top : top + 9, left : left + 9]
            here[:] = np.where(digit > here, digit, here)
        np.testing.assert_array_equal(batch["image"][row], expected)


def test_only_the_first_k_digits_are_used_and_all_alike():
    base = array_source("black", Split.TRAIN, np.zeros((3000, 8, 8, 1), np.uint8), {})
    source = overlaid(base, squares(2, examples=16), digit_size=2, unique_digits=10)
    batch = source.gather(np.arange(3000))
    assert_uniform(batch["targets"]["digit"], 10)
    np.testing.assert_array_equal(batch["image"][:, 3, 3, 0], batch["targets"]["digit"] + 55)


def test_digits_on_images_that_are_read_one_by_one(digits):
    base = colour_images(n=6)
    source = overlaid(one_by_one(base), digits)
    assert not source.vectorised
    setting = {"batch_size": 4, "process_index": 0, "process_count": 1, "prefetch": 0}
    batches = list(train_batches(source, data_seed=0, start_step=0, num_steps=3, **setting))
    assert len(batches) == 3
    for batch in batches:
        assert_same(batch, overlaid(base, digits).gather(batch["index"], batch["epoch"]))


# Saturation.


def test_saturation_images_are_the_bits_of_integers_keyed_by_the_index():
    source = saturation(examples=50, side=3, bits=20, split=Split.TRAIN, seed=7)
    batch = source.gather(np.arange(50))
    assert batch["image"].shape == (50, 3, 3, 20)
    assert batch["targets"] == {}
    assert (batch["image"] == batch["image"][:, :1, :1]).all()
    for row, channels in enumerate(batch["image"][:, 0, 0].tolist()):
        bits = host_bits(7, Purpose.COMPOSITION, Split.TRAIN, 0, row, 3)
        integer = int(bits.random_raw()) % 2**20
        assert channels == [255 * (integer // 2**bit % 2) for bit in range(20)]
    fewer = saturation(examples=50, side=3, bits=5, split=Split.TRAIN, seed=7)
    np.testing.assert_array_equal(fewer.images, source.images[..., :5])
    assert_same(source.take(np.array([4, 9])).gather(np.arange(2)), source.gather(np.array([4, 9])))
    assert (
        saturation(examples=9, side=1, bits=64, split=Split.TRAIN, seed=7).images % 255 == 0
    ).all()


def test_saturation_integers_are_uniform_and_collide_as_often_as_they_should():
    source = saturation(examples=2000, side=1, bits=10, split=Split.TRAIN, seed=7)
    integers = (source.images[:, 0, 0] // 255).astype(int) @ 2 ** np.arange(10)
    assert_uniform(integers // 16, 64)
    assert_uniform(integers % 64, 64)
    empty = (1 - 2**-10) ** 2000
    both_empty = (1 - 2**-9) ** 2000
    variance = 1024 * empty + 1024 * 1023 * both_empty - (1024 * empty) ** 2
    assert abs(len(set(integers.tolist())) - 1024 * (1 - empty)) < 3 * np.sqrt(variance)


# Bad input.


def test_what_the_other_sets_refuse(digits):
    for count in (0, 201):
        with pytest.raises(UserError, match=f"unique_digits={count} of digits: .* 1 to its 200"):
            overlaid(colour_images(), digits, unique_digits=count)
    for size in (0, 9):
        with pytest.raises(UserError, match=f"nine digits of {size} pixels .* from 1 to 8"):
            overlaid(colour_images(), digits, digit_size=size)
    overlaid(colour_images(), digits, digit_size=8)
    with pytest.raises(UserError, match="from 1 to 2"):
        overlaid(colour_images(height=8), digits, digit_size=3)
    for changes in ({"examples": 0}, {"side": 0}, {"bits": 0}, {"bits": 65}):
        arguments = {"examples": 2, "side": 1, "bits": 3, **changes}
        with pytest.raises(UserError, match="make no saturation set"):
            saturation(**arguments, split=Split.TRAIN, seed=0)


def composed_config(data_config, recipe, arguments, **changes):
    config = data_config(**{"name": recipe.get_config(arguments).data.name, **changes})
    config.compose = recipe.get_config(arguments).data.compose
    return config


def test_sets_of_sets_of_sets_and_sets_without_settings_are_refused(data_config):
    config = composed_config(data_config, recipe, "base=digits,digits=digits")
    config.compose.base = "multi_digits"
    with pytest.raises(UserError, match=r"--config\.data\.compose\.base=multi_digits is composed"):
        load(config, "train")
    config.update(name="digit_on_image", compose={**config.compose, "base": "digits", "seed": -1})
    with pytest.raises(UserError, match=r"data\.compose\.seed=-1 is out of range"):
        load(config, "train")
    config.name = "multi_digits"
    with pytest.raises(UserError, match=r"lacks canvas, count.* configs/pretrain/multi_digits.py"):
        load(config, "train")
    with pytest.raises(UserError, match=r"lacks base, digits.* configs/pretrain/digit_on_image.py"):
        load(data_config("digit_on_image"), "train")


def test_a_list_of_classes_is_the_images_alone(data_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sources.CLASS_LISTS, "two", ("ant", "cat"))
    for name in ("ant", "bee", "cat"):
        (tmp_path / "train" / name).mkdir(parents=True)
        PIL.Image.new("RGB", (32, 32)).save(tmp_path / "train" / name / "0.png")
    config = composed_config(data_config, recipe, "base=folder,digits=digits,digit_size=8")
    config.update(data_dir=str(tmp_path), classes="two", image_size=32)
    source = load(config, "train")
    assert source.class_names == ("ant", "cat")
    assert source.digit_classes == 10


# Real images.


def test_real_mnist_on_real_cifar10(real_tfds):
    data = data_group()
    data.update(data_dir=str(real_tfds), validation_fraction=0.0, train_examples=100)
    data.name = "mnist"
    mnist = load(data, "train")
    data.name = "cifar10"
    cifar = load(data, "train")
    overlay = overlaid(cifar, mnist, unique_digits=16).gather(np.arange(100))
    changed = (overlay["image"] != cifar.images).any((0, 3))
    covered = np.zeros((32, 32), bool)
    for top, left in itertools.product((4, 14, 24), repeat=2):
        covered[top : top + 8, left : left + 8] = True
    assert not (changed & ~covered).any()
    assert (changed & covered).sum() > 0.5 * covered.sum()
