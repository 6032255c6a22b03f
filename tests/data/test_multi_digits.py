"""MultiDigits against compositions made one image at a time from the same draws."""

import concurrent.futures
import itertools

import numpy as np
import PIL.Image
import pytest
from compositions import (
    assert_uniform,
    canvases,
    colour_images,
    first_digits,
    many,
    raw,
    squares,
    unlabelled,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.common import data_group
from jaxssl.data import digests
from jaxssl.data.examples import identity
from jaxssl.data.multi_digits import single_digit
from jaxssl.data.sources import load
from jaxssl.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return first_digits()


def composition(source, digits, row, epoch):
    """One item in plain loops: its image, and the label in each slot."""
    words = raw(source, row, epoch, stream=0)
    canvas = [[0] * source.canvas for _ in range(source.canvas)]
    free = list(range((source.canvas // source.sizes[0]) ** 2))
    labels = []
    for slot, size in enumerate(source.sizes):
        which, where = words[2 * slot] % len(digits), words[2 * slot + 1]
        labels.append(int(digits.targets["label"][which]))
        image = PIL.Image.fromarray(digits.images[which, :, :, 0])
        image = np.asarray(image.resize((size, size), PIL.Image.Resampling.BILINEAR)).tolist()
        if source.placement == "random":
            span = source.canvas - size + 1
            top, left = divmod(where % (span * span), span)
        else:
            chosen = where % (len(free) - slot) + slot
            free[slot], free[chosen] = free[chosen], free[slot]
            top, left = (size * cell for cell in divmod(free[slot], source.canvas // size))
        for y in range(size):
            for x in range(size):
                below, above = canvas[top + y][left + x], image[y][x]
                both = {"max": max(below, above), "sum": min(below + above, 255)}
                canvas[top + y][left + x] = both[source.combine]
    return canvas, labels


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from([1, 2, 3, 16]),
    st.sampled_from(["random", "grid"]),
    st.sampled_from(["max", "sum"]),
    st.sampled_from([4, 5, 8, 20]),
    st.sampled_from([40, 80]),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_images_and_targets_are_those_of_the_draws(
    digits, count, placement, combine, size, canvas, seed, data
):
    several = placement == "random" and data.draw(st.booleans())
    sizes = tuple(size - slot % 3 for slot in range(count)) if several else (size,)
    if placement == "grid" and count > (canvas // size) ** 2:
        with pytest.raises(UserError, match="is more than the"):
            canvases(digits, count, sizes, placement, combine, seed, canvas)
        return
    source = canvases(digits, count, sizes, placement, combine, seed, canvas)
    row, epoch = data.draw(st.integers(0, len(source) - 1)), data.draw(st.integers(0, 1000))
    batch = source.gather(np.array([row]), np.array([epoch]))
    image, labels = composition(source, digits, row, epoch)
    assert source.sizes == (sizes if several else sizes * count)
    np.testing.assert_array_equal(batch["image"][0, :, :, 0], image)
    assert batch["targets"]["slots"][0].tolist() == labels
    assert np.flatnonzero(batch["targets"]["presence"][0]).tolist() == sorted(set(labels))
    assert batch["targets"].get("label", np.array([])).tolist() == (labels if count == 1 else [])
    assert source.num_classes == (10 if count == 1 else None)


def test_random_corners_are_uniform_over_all_that_fit():
    base = squares(examples=200)
    moving = many(canvases(base, count=1, sizes=(4,), canvas=9), 3600)["image"][..., 0]
    fixed = single_digit(base, canvas=9, size=4, seed=7).gather(np.arange(200))["image"][..., 0]
    for filled in (moving > 0, fixed > 0):
        assert (filled.sum((1, 2)) == 16).all()
        assert_uniform(filled.any(2).argmax(1) * 6 + filled.any(1).argmax(1), 36)


def test_digits_are_drawn_uniformly_with_replacement_and_each_slot_by_itself():
    slots = many(canvases(squares(examples=8), count=2, sizes=(4,)), 4000)["targets"]["slots"]
    assert_uniform(slots[:, 0] * 8 + slots[:, 1], 64)


def test_random_digits_overlap_at_the_expected_rate():
    draws, size, span = 4000, 8, 25
    images = many(canvases(squares(size), count=2, sizes=(8,)), draws)["image"]
    overlapping = ((images > 0).sum((1, 2, 3)) < 2 * size * size).mean()
    # Two corners uniform over span values are less than a side apart on one axis.
    near = sum(span - abs(gap) for gap in range(1 - size, size)) / span**2
    error = np.sqrt(near**2 * (1 - near**2) / draws)
    assert abs(overlapping - near**2) < 3 * error
    assert error < 0.05 * near**2


@pytest.mark.parametrize("count", [1, 2, 9, 16])
def test_digits_in_a_grid_never_overlap(count):
    source = canvases(squares(8, examples=150), count=count, placement="grid", combine="sum")
    batch = many(source, 600)
    cells = batch["image"].reshape(600, 4, 8, 4, 8).transpose(0, 1, 3, 2, 4).reshape(600, 16, 64)
    assert (cells == cells[:, :, :1]).all()
    greys = np.sort(cells[:, :, 0], axis=1)[:, 16 - count :]
    np.testing.assert_array_equal(greys, np.sort(batch["targets"]["slots"] + 55, axis=1))
    if count < 16:
        assert_uniform(np.nonzero(cells[:, :, 0])[1], 16)


def test_slots_of_a_grid_take_the_cells_in_every_order():
    source = canvases(squares(examples=200), count=4, sizes=(4,), placement="grid", canvas=8)
    batch = many(source, 4000)
    found = batch["image"][:, ::4, ::4, 0].reshape(-1, 1, 4) == batch["targets"]["slots"][
        ..., None
    ] + np.uint8(55)
    different = found.sum((1, 2)) == 4
    assert different.mean() > 0.9
    orders = {order: i for i, order in enumerate(itertools.permutations(range(4)))}
    cells = found[different].argmax(2)
    assert_uniform(np.array([orders[tuple(row)] for row in cells.tolist()]), 24)


@pytest.mark.parametrize("placement", ["random", "grid"])
def test_a_run_with_more_digits_keeps_those_of_a_run_with_fewer(digits, placement):
    few, more = (many(canvases(digits, count, placement=placement), 50) for count in (2, 5))
    np.testing.assert_array_equal(more["targets"]["slots"][:, :2], few["targets"]["slots"])
    assert (more["image"] >= few["image"]).all()


def test_max_and_clipped_sum():
    for combine, expected in (("max", 200), ("sum", 255)):
        base = squares(examples=146).take(np.array([145]))
        source = canvases(base, count=2, sizes=(4,), combine=combine, canvas=4)
        assert (source.gather(np.arange(1))["image"] == expected).all()


def test_a_run_of_one_digit_that_began_before_it_had_a_label_goes_on(digits):
    one = canvases(digits, count=1)
    assert identity(one)["classes_sha256"] == digests.of_json([None, digits.class_names])


def test_threads_that_resize_the_same_digits_at_once_agree(digits):
    parts = np.split(np.tile(np.arange(len(digits)), 4), 40)
    expected = canvases(digits, count=2, sizes=(20, 31)).gather(np.arange(len(digits)))
    source = canvases(digits, count=2, sizes=(20, 31))
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for rows, batch in zip(parts, threads.map(source.gather, parts), strict=True):
            np.testing.assert_array_equal(batch["image"], expected["image"][rows])


def test_a_single_digit_is_the_digit_of_its_position_with_its_label(digits):
    cut = digits.take(np.arange(20, 60))
    source = single_digit(cut, canvas=30, size=13, seed=5)
    assert source.num_classes == 10
    batch = source.gather(np.arange(40))
    np.testing.assert_array_equal(batch["targets"]["label"], cut.targets["label"])
    for row in range(40):
        top, left = divmod(raw(source, row, 0, stream=1)[0] % 18**2, 18)
        image = PIL.Image.fromarray(cut.images[row, :, :, 0])
        expected = PIL.Image.new("L", (30, 30))
        expected.paste(image.resize((13, 13), PIL.Image.Resampling.BILINEAR), (left, top))
        np.testing.assert_array_equal(batch["image"][row, :, :, 0], np.asarray(expected))


# Bad input.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count=0"),
        ({"count": 17, "sizes": (2,)}, "count=17"),
        ({"sizes": (8, 9)}, r"sizes=\(8, 9\) for --config.data.compose.count=3"),
        ({"sizes": ()}, r"sizes=\(\) for --config.data.compose.count=3"),
        ({"sizes": (33,)}, "compose.sizes: digits of size=33 do not fit a canvas of 32"),
        ({"sizes": (0,)}, "size=0"),
        ({"placement": "ring"}, "compose.placement=ring is unknown: choose one of grid, random"),
        ({"combine": "mean"}, "compose.combine=mean is unknown: choose one of max, sum"),
        (
            {"placement": "grid", "sizes": (9,)},
            "compose.placement=grid cannot divide",
        ),
        ({"placement": "grid", "sizes": (8, 8, 4)}, "placement=grid cannot divide"),
        ({"placement": "grid", "sizes": (32,)}, "compose.count=3 is more than the 1 cell of 32"),
        ({"base": colour_images()}, "3 channels: --config.data.compose.digits must be square with"),
        ({"base": unlabelled()}, "grey has no labels"),
        ({"base": squares().take(np.arange(0))}, "squares has no examples"),
    ],
)
def test_what_multi_digits_refuses(digits, changes, message):
    with pytest.raises(UserError, match=message):
        canvases(**{"base": digits, **changes})


def test_what_single_digits_refuse(digits):
    with pytest.raises(UserError, match="evaluation_size: digits of size=33 do not fit"):
        single_digit(digits, canvas=32, size=33, seed=0)
    with pytest.raises(UserError, match="grey has no labels"):
        single_digit(unlabelled(), canvas=32, size=8, seed=0)


# Real images.


def test_real_mnist_on_a_canvas(real_tfds):
    data = data_group()
    data.update(name="mnist", data_dir=str(real_tfds), validation_fraction=0.0, train_examples=100)
    mnist = load(data, "train")
    source = canvases(mnist, count=4, sizes=(28,), placement="grid", canvas=112)
    image, labels = composition(source, mnist, 11, 2)
    batch = source.gather(np.array([11]), np.array([2]))
    np.testing.assert_array_equal(batch["image"][0, :, :, 0], image)
    assert batch["targets"]["slots"][0].tolist() == labels
