"""Small sets to compose, and what tests of compositions ask of them."""

import numpy as np
import scipy.stats

from configs.common import data_group
from jaxssl.data.composed import digit_on_image
from jaxssl.data.examples import array_source
from jaxssl.data.multi_digits import multi_digits
from jaxssl.data.sources import load
from jaxssl.randomness import Purpose, Split, host_bits


def first_digits(count=200):
    data = data_group()
    data.update(name="digits", validation_fraction=0.0, train_examples=count)
    return load(data, "train")


def squares(size=4, examples=1, split=Split.TRAIN):
    """Example i is a square of grey 55 + i and of class i: its pixels show where it lies."""
    grey = np.arange(55, 55 + examples).astype(np.uint8)[:, None, None, None]
    images = np.tile(grey, (1, size, size, 1))
    labels = np.arange(examples, dtype=np.int32)
    return array_source("squares", split, images, {"label": labels}, num_classes=examples)


def many(source, draws):
    """So many draws of an item, over all rows and as many epochs as it takes."""
    epochs, rows = np.divmod(np.arange(draws), len(source))
    return source.gather(rows, epochs)


def assert_uniform(outcomes, n):
    """Chi-square on integers in [0, n); one seed in a thousand would fail by chance."""
    counts = np.bincount(outcomes, minlength=n)
    assert len(counts) == n
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def canvases(base, count=3, sizes=(8,), placement="random", combine="max", seed=7, canvas=32):
    return multi_digits(
        base,
        canvas=canvas,
        count=count,
        sizes=sizes,
        placement=placement,
        combine=combine,
        seed=seed,
    )


def raw(source, row, epoch, stream):
    """The item's own words, from a generator that has nothing but its key."""
    index, split = int(source.positions[row]), Split(source.splits[row])
    bits = host_bits(source.seed, Purpose.COMPOSITION, split, epoch, index, stream)
    return [int(word) for word in bits.random_raw(64)]


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert left["targets"].keys() == right["targets"].keys()
    for key in set(left) - {"targets"}:
        assert left[key].dtype == right[key].dtype
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)
    for key, values in left["targets"].items():
        np.testing.assert_array_equal(values, right["targets"][key], err_msg=key)


def part(batch, rows):
    def pick(values):
        return {k: v[rows] for k, v in values.items()} if isinstance(values, dict) else values[rows]

    return {key: pick(values) for key, values in batch.items()}


def colour_images(n=60, height=32, width=32, split=Split.TEST):
    images = np.random.default_rng(0).integers(0, 256, (n, height, width, 3), np.uint8)
    labels = np.arange(n, dtype=np.int32) % 4
    return array_source("colours", split, images, {"label": labels}, num_classes=4)


def overlaid(base, digits, digit_size=8, unique_digits=50, seed=7):
    return digit_on_image(
        base, digits, digit_size=digit_size, unique_digits=unique_digits, seed=seed
    )


def unlabelled(size=8):
    return array_source("grey", Split.TRAIN, np.zeros((3, size, size, 1), np.uint8), {})
