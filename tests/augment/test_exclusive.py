"""Crops that exclude each other."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_boxes import (
    FEW,
    SAMPLERS,
    SEEDS,
    SIZES,
    assert_fair,
    assert_inside,
    assert_same_distribution,
    draw,
    sides,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quick_compilation import quick_jit

from jaxssl.augment import spatial
from jaxssl.augment.resample import random_crop_box, resized_crop


def touched(box, size):
    """Per axis, the first and the last pixel that `resized_crop` reads: edges to .001 pixel."""
    first, last = np.floor(box[:, :2] + 1e-3), np.ceil(box[:, 2:] - 1e-3) - 1
    return np.clip(first, 0, np.subtract(size, 1)), last


def assert_exclusive(size, gap, min_side, box1, box2):
    assert_inside(size, box1, box2)
    for box in (box1, box2):
        height, width = sides(box).T
        assert np.abs(height - width).max() <= 1e-6 * max(size)
        least = min_side * min(size) - (1 if gap * max(size) < 1 else 1e-4)
        assert sides(box).min() >= least
    apart = np.maximum(box1[:, :2] - box2[:, 2:], box2[:, :2] - box1[:, 2:])
    assert (apart.max(axis=1) > 0 if gap > 0 else apart.max(axis=1) >= 0).all()
    # Along one axis at least they are apart by the whole band.
    assert ((apart - gap * np.array(size)).max(axis=1) >= -1e-4).all()
    (first1, last1), (first2, last2) = touched(box1, size), touched(box2, size)
    assert ((last1 < first2) | (last2 < first1)).any(axis=1).all()


@FEW
@given(SIZES, st.floats(0, 0.95), st.floats(0.02, 1), SEEDS)
@example((32, 32), 0.0, 1.0, 0)
@example((29, 40), 0.0, 1.0, 0)
@example((32, 32), 1e-6, 1.0, 0)
@example((448, 448), 1e-3, 1.0, 0)
@example((29, 40), 0.02, 0.7, 0)
@example((32, 32), 0.3, 1.0, 0)
def test_exclusive_crops_never_touch(size, gap, t, seed):
    min_side = t * (1 - gap) / 2
    spatial.check_exclusive(gap, min_side)
    boxes = draw("exclusive", size, seed=seed, gap=gap, min_side=min_side)
    assert_exclusive(size, gap, min_side, *boxes)


@settings(FEW, max_examples=15)
@given(SIZES, st.floats(0.02, 0.5), SEEDS)
def test_non_overlapping_crops_are_exclusive_ones_without_a_gap(size, min_side, seed):
    spatial.check_non_overlapping(min_side)
    boxes = draw("non_overlapping", size, seed=seed, min_side=min_side)
    assert_exclusive(size, 0.0, min_side, *boxes)
    same = draw("exclusive", size, seed=seed, gap=0.0, min_side=min_side)
    np.testing.assert_array_equal(boxes, same)


def exclusive_reference(rng, size, gap, min_side, n):
    """The sampler from its definition: [n, 2, 4], pixels."""
    boxes, smallest = np.empty((n, 2, 4)), min_side * min(size)
    for i, axis in enumerate(rng.integers(2, size=n)):
        length, across = size[axis], size[1 - axis]
        low, high = smallest, length - gap * length - smallest
        if gap * length < 1:
            edge = rng.integers(math.ceil(low), math.floor(high) + 1)
        else:
            edge = rng.uniform(low, high)
        regions = [(0, edge), (edge + gap * length, length)]
        if rng.integers(2):
            regions.reverse()
        for crop, (start, stop) in enumerate(regions):
            side = rng.uniform(smallest, min(stop - start, across))
            corner = [rng.uniform(start, stop - side), rng.uniform(0, across - side)]
            corner = np.array(corner if axis == 0 else corner[::-1])
            boxes[i, crop] = *corner, *(corner + side)
    return boxes


@pytest.mark.parametrize(
    ("size", "gap", "min_side"),
    [((448, 448), 0.2, 0.1), ((32, 32), 0.0, 0.2), ((29, 40), 0.1, 0.3)],
)
def test_exclusive_against_a_reference_sampler(size, gap, min_side):
    n = 4000
    expected = exclusive_reference(np.random.default_rng(1), size, gap, min_side, n)
    boxes = draw("exclusive", size, n=n, gap=gap, min_side=min_side)
    for crop, box in enumerate(boxes):
        for edge in range(4):
            assert_same_distribution(box[:, edge], expected[:, crop, edge])
        assert_same_distribution(sides(box)[:, 0], sides(expected[:, crop])[:, 0])
    distance = np.linalg.norm(boxes[0] - boxes[1], axis=1)
    assert_same_distribution(distance, np.linalg.norm(expected[:, 0] - expected[:, 1], axis=1))


def test_exclusive_axis_and_order_are_fair():
    # Halves of the image: the axis and who is first can be read off.
    box1, box2 = draw("exclusive", (32, 32), n=4000, gap=0.5, min_side=0.25)
    lies_before, lies_after = box1[:, 2:] <= box2[:, :2] - 16, box2[:, 2:] <= box1[:, :2] - 16
    apart = lies_before | lies_after
    assert apart.any(axis=1).all()
    clear = ~apart.all(axis=1)
    stacked, first = apart[clear, 0], lies_before[clear].any(axis=1)
    assert_fair(stacked)
    assert_fair(first)
    assert_fair(stacked == first)


def test_thin_bands_start_on_any_pixel_edge_of_the_range():
    # Squares of no less than 14 pixels: the edge is 14, ..., 18, and the first crop ends by it.
    box1, box2 = draw("exclusive", (32, 32), n=4000, gap=0.0, min_side=14 / 32)
    apart = np.maximum(box1[:, :2] - box2[:, 2:], box2[:, :2] - box1[:, 2:])
    axis = apart.argmax(axis=1)[:, None]
    stop = np.take_along_axis(np.minimum(box1[:, 2:], box2[:, 2:]), axis, 1)
    start = np.take_along_axis(np.maximum(box1[:, :2], box2[:, :2]), axis, 1)
    edges = {k for k in range(13, 20) if ((stop <= k) & (start >= k)).any()}
    assert edges == {14, 15, 16, 17, 18}


def test_odd_halves_are_a_pixel_apart_in_size():
    box1, box2 = draw("non_overlapping", (29, 29), min_side=0.5)
    assert_exclusive((29, 29), 0.0, 0.5, box1, box2)
    seen = np.sort(np.stack([sides(box1)[:, 0], sides(box2)[:, 0]]), axis=0)
    np.testing.assert_allclose(seen[0], 14, atol=1e-5)
    assert seen[1].min() >= 14.5
    assert seen[1].max() <= 15


@pytest.mark.parametrize("gap", [0.0, 0.01, 0.1])
def test_crops_that_exclude_each_other_read_no_pixel_in_common(gap):
    boxes = draw("exclusive", (32, 32), n=64, gap=gap, min_side=0.1)
    image = jnp.full((32, 32, 1), 0.5)

    @quick_jit
    @jax.vmap
    def read(box):
        def crop(image):
            return resized_crop(image, box, 16, filter="bilinear", antialias=True).sum()

        return jax.grad(crop)(image)[..., 0] > 0

    read1, read2 = (np.asarray(read(jnp.float32(box))) for box in boxes)
    assert read1.any(axis=(1, 2)).all()
    assert read2.any(axis=(1, 2)).all()
    assert not (read1 & read2).any()


@pytest.mark.parametrize("name", ["exclusive", "overlap", "fixed_area", "multi_view"])
def test_images_a_pixel_wide_have_crops_with_an_area(name):
    """As letterboxed pictures are: their sides are known when the crops are drawn alone."""
    numbers = {
        "exclusive": [
            {"gap": g, "min_side": s} for g in (0.0, 0.1, 0.4, 0.9) for s in (1e-4, 0.05)
        ],
        "overlap": [{"overlap": 0.3}],
        "fixed_area": [{"overlap": 0.3, "area": 0.5}],
        "multi_view": [{}],
    }[name]

    @quick_jit
    @jax.vmap
    def boxes(key, size, numbers):
        if name == "multi_view":
            extreme = {"scale": (0.08, 1.0), "ratio": (3.0, 4.0), "subpixel": False}
            return (random_crop_box(key, size[0], size[1], **extreme),)
        return SAMPLERS[name](key, size[0], size[1], **numbers)

    sizes = np.array([(1, 16), (16, 1), (1, 2), (2, 1), (2, 2), (2, 3)])
    keys = jax.random.split(jax.random.key(0), 32 * len(sizes))
    sizes = np.tile(sizes, (32, 1))
    for chosen in numbers:
        spread = {k: np.full(len(keys), v, np.float32) for k, v in chosen.items()}
        pair = [np.float64(box) for box in boxes(keys, sizes, spread)]
        assert_inside(sizes, *pair)
        if name == "exclusive":
            (first1, last1), (first2, last2) = (touched(box, sizes) for box in pair)
            assert ((last1 < first2) | (last2 < first1)).any(axis=1).all()
