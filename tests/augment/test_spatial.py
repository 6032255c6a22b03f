"""Crops that overlap by given areas, patches, and what no two crops can meet."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_boxes import (
    EXACT,
    FEW,
    SAMPLERS,
    SEEDS,
    SIZES,
    area,
    assert_fair,
    assert_inside,
    assert_same_distribution,
    compiled,
    draw,
    shared,
    sides,
)
from hypothesis import example, given
from hypothesis import strategies as st
from quick_compilation import quick_jit
from scipy import stats

from jaxssl.augment import spatial

# --- exact overlap


@FEW
@given(SIZES, st.floats(0.001, 0.999), SEEDS)
@example((448, 448), 0.001, 0)
@example((29, 40), 0.999, 0)
@example((32, 32), 1.0, 0)
def test_overlap_is_exact_and_inside(size, overlap, seed):
    box1, box2 = draw("overlap", size, seed=seed, overlap=overlap)
    assert_inside(size, box1, box2)
    assert np.abs(shared(box1, box2) / math.prod(size) - overlap).max() <= EXACT


def overlap_reference(rng, r, n):
    """The sampler from its definition, by rejection, in the unit square: [n, crop, edge, axis]."""
    kappa = np.exp(rng.uniform(np.log(max(3 / 4, r)), np.log(min(4 / 3, 1 / r)), n))
    common = np.stack([np.sqrt(r / kappa), np.sqrt(r * kappa)], axis=1)
    boxes = np.empty((n, 2, 2, 2))
    for i in range(n):
        for axis in range(2):
            o = common[i, axis]
            a = b = 1.0
            while a + b > 1 + o:
                a, b = rng.uniform(o, 1, 2)
            crop = rng.integers(2)
            start = rng.uniform(0, 1 - (a + b - o))
            boxes[i, crop, :, axis] = start, start + a
            boxes[i, 1 - crop, :, axis] = start + a - o, start + a - o + b
    return boxes


@pytest.mark.parametrize("r", [0.1, 0.5, 0.9])
def test_overlap_against_a_reference_sampler(r):
    expected = overlap_reference(np.random.default_rng(0), r, 4000)
    assert np.ptp(shared(*expected.reshape(-1, 2, 4).swapaxes(0, 1)) - r) < 1e-12
    pair = draw("overlap", (448, 448), n=4000, overlap=r)
    for crop, box in enumerate(pair):
        box = (box / 448).reshape(-1, 2, 2)
        for edge in range(2):
            for axis in range(2):
                assert_same_distribution(box[:, edge, axis], expected[:, crop, edge, axis])
        area1 = np.prod(box[:, 1] - box[:, 0], axis=1)
        area2 = np.prod(expected[:, crop, 1] - expected[:, crop, 0], axis=1)
        assert_same_distribution(area1, area2)
        error = np.sqrt((area1.var() + area2.var()) / 4000)
        assert abs(area1.mean() - area2.mean()) < 4 * error
    common = (np.minimum(*pair)[:, 2:] - np.maximum(*pair)[:, :2]) / 448
    kappa = np.log(common[:, 1] / common[:, 0])
    low, high = math.log(max(3 / 4, r)), math.log(min(4 / 3, 1 / r))
    assert stats.kstest((kappa - low) / (high - low), "uniform").pvalue > 1e-3
    # Joint: a larger first crop leaves less room for the second.
    width1, width2 = (sides(box)[:, 1] for box in pair)
    ends = expected[:, :, 1, 1] - expected[:, :, 0, 1]
    assert np.corrcoef(width1, width2)[0, 1] == pytest.approx(np.corrcoef(ends.T)[0, 1], abs=0.06)


@pytest.mark.parametrize(
    ("r", "mean"), [(0.1, 0.30), (0.2, 0.40), (0.3, 0.49), (0.5, 0.65), (0.7, 0.80), (0.9, 0.93)]
)
def test_mean_area_of_the_overlapping_crops(r, mean):
    areas = [area(box) / 448**2 for box in draw("overlap", (448, 448), n=4000, overlap=r)]
    for seen in areas:
        assert abs(seen.mean() - mean) < 0.005 + 3 * seen.std() / math.sqrt(4000)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("overlap", {"overlap": 0.3}), ("fixed_area", {"overlap": 0.2, "area": 0.4})],
)
def test_who_is_first_is_fair_and_independent(name, numbers):
    box1, box2 = draw(name, (448, 448), n=4000, **numbers)
    first = box1[:, :2] + box1[:, 2:] < box2[:, :2] + box2[:, 2:]
    for axis in range(2):
        assert_fair(first[:, axis])
        was_first = first[:, axis]
        assert_same_distribution(area(box1)[was_first], area(box1)[~was_first])
        assert_same_distribution(sides(box1)[was_first, axis], sides(box1)[~was_first, axis])
    assert_fair(first[:, 0] == first[:, 1])


# --- both areas fixed


@FEW
@given(SIZES, st.floats(0.002, 1), st.floats(0, 1), SEEDS)
@example((32, 32), 0.5, 0.0, 0)
@example((32, 32), 0.25, 1.0, 0)
@example((32, 32), 1.0, 0.0, 0)
def test_fixed_areas_and_overlap_are_exact_and_inside(size, crop_area, t, seed):
    least = max(2 * crop_area - 1, 1e-3)
    overlap = least + t * (crop_area - least)
    spatial.check_fixed_area(overlap, crop_area)
    box1, box2 = draw("fixed_area", size, seed=seed, overlap=overlap, area=crop_area)
    assert_inside(size, box1, box2)
    assert np.abs(shared(box1, box2) / math.prod(size) - overlap).max() <= EXACT
    for box in (box1, box2):
        assert np.abs(area(box) / math.prod(size) - crop_area).max() <= EXACT


@pytest.mark.parametrize("crop_area", [0.4, 0.5, 0.5005, 0.54, 0.7, 0.9])
@pytest.mark.parametrize("spare", [0.0, 1e-4, 1e-2])
def test_fixed_areas_are_exact_at_the_edge_of_what_is_feasible(crop_area, spare):
    overlap = max(2 * crop_area - 1 + spare, 1e-3)
    boxes = draw("fixed_area", (448, 448), n=4000, overlap=overlap, area=crop_area)
    assert np.abs(shared(*boxes) / 448**2 - overlap).max() <= EXACT
    assert max(np.abs(area(box) / 448**2 - crop_area).max() for box in boxes) <= EXACT


def log_aspects(boxes):
    return [np.log(sides(box)[:, 1] / sides(box)[:, 0]) for box in boxes]


def test_free_aspects_are_independent_and_log_uniform():
    boxes = draw("fixed_area", (448, 448), n=4000, overlap=0.1, area=0.25)
    limit = math.log(4 / 3)
    counts, _, _ = np.histogram2d(
        *log_aspects(boxes), bins=4, range=[[-limit * 1.0001, limit * 1.0001]] * 2
    )
    assert counts.sum() == 4000
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def feasible(x, y, crop_area, r):
    """Whether crops with log aspects x, y and equal areas can share exactly r."""
    w, h = np.exp([x / 2, y / 2]), np.exp([-x / 2, -y / 2])
    w, h = w * np.sqrt(crop_area), h * np.sqrt(crop_area)
    least = np.maximum(w.sum(0) - 1, 0) * np.maximum(h.sum(0) - 1, 0)
    return (least <= r) & (r <= w.min(0) * h.min(0)) & (w.max(0) <= 1) & (h.max(0) <= 1)


@pytest.mark.parametrize(
    ("crop_area", "r"),
    [(0.1, 0.05), (0.25, 0.1), (0.25, 0.22), (0.5, 0.1), (0.6, 0.29), (0.6, 0.45), (0.81, 0.64)],
)
def test_all_aspects_that_can_meet_the_numbers_are_drawn(crop_area, r):
    grid = np.linspace(0, -math.log(crop_area), 4001)
    needed = grid[np.argmax(feasible(grid, grid, crop_area, r))]
    bins, limit = 16, min(needed + math.log(4 / 3), -math.log(crop_area))
    edges = np.linspace(-limit, limit, bins + 1)
    ok = feasible(*np.meshgrid(edges, edges, indexing="ij"), crop_area, r)
    whole = ok[1:, 1:] & ok[:-1, 1:] & ok[1:, :-1] & ok[:-1, :-1]
    boxes = draw("fixed_area", (448, 448), n=4000, overlap=r, area=crop_area)
    aspects = log_aspects(boxes)
    assert 0.95 * limit < np.abs(aspects).max() <= limit + 2e-4
    counts, _, _ = np.histogram2d(*aspects, bins=edges)
    assert whole.sum() >= 4
    assert (counts[whole] >= 2).all()
    # And both orders alike: the first crop is not the wider one.
    assert_same_distribution(aspects[0], aspects[1])
    assert_same_distribution(aspects[0], -aspects[0])


def test_width_of_the_shared_rectangle_is_log_uniform():
    r, crop_area = 0.2, 0.25
    box1, box2 = draw("fixed_area", (448, 448), n=4000, overlap=r, area=crop_area)
    width = (np.minimum(box1, box2)[:, 3] - np.maximum(box1, box2)[:, 1]) / 448
    most = np.minimum(sides(box1), sides(box2)) / 448
    least = np.maximum((sides(box1) + sides(box2)) / 448 - 1, 1e-9)
    low = np.log(np.maximum(least[:, 1], r / most[:, 0]))
    high = np.log(np.minimum(most[:, 1], r / least[:, 0]))
    wide = high - low > 1e-3
    assert wide.mean() > 0.9
    unit = ((np.log(width) - low) / (high - low))[wide]
    assert stats.kstest(unit, "uniform").pvalue > 1e-3


# --- patch


@FEW
@given(SIZES, st.floats(0.001, 1), SEEDS)
@example((32, 32), 1.0, 0)
def test_patch_is_a_square_of_exactly_its_area(size, fraction, seed):
    fraction *= min(size) / max(size)
    spatial.check_patch(fraction, *size)
    whole, patch = draw("patch", size, seed=seed, area=fraction)
    assert (whole == [0, 0, *size]).all()
    assert_inside(size, patch)
    assert np.abs(area(patch) / math.prod(size) - fraction).max() <= EXACT
    height, width = sides(patch).T
    assert np.abs(height - width).max() <= 1e-6 * max(size)


def test_patch_lies_anywhere():
    _, patch = draw("patch", (29, 40), n=4000, area=0.3)
    room = [29, 40] - np.sqrt(0.3 * 29 * 40)
    for axis in range(2):
        assert stats.kstest(patch[:, axis] / room[axis], "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(patch[:, :2].T)[0, 1]) < 4 / math.sqrt(4000)


def test_patch_that_no_square_can_be_is_the_largest_square():
    _, patch = draw("patch", (29, 40), area=0.9)
    assert_inside((29, 40), patch)
    np.testing.assert_allclose(sides(patch), 29, atol=1e-5)


# --- traced numbers


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("overlap", {"overlap": [0.1, 0.5, 0.9]}),
        ("fixed_area", {"overlap": [0.1, 0.5, 0.9], "area": [0.2, 0.6, 0.92]}),
        ("patch", {"area": [0.1, 0.5, 0.9]}),
        ("exclusive", {"gap": [0.0, 0.1, 0.5], "min_side": [0.4, 0.1, 0.2]}),
        ("non_overlapping", {"min_side": [0.1, 0.2, 0.5]}),
    ],
)
def test_one_compilation_serves_all_numbers(name, members):
    traces = []

    @quick_jit
    def boxes(keys, numbers):
        traces.append(name)
        return jax.vmap(lambda key: SAMPLERS[name](key, 32, 32, **numbers))(keys)

    keys = jax.random.split(jax.random.key(0), 16)
    members = {k: jnp.float32(v) for k, v in members.items()}
    alone = [boxes(keys, {k: v[i] for k, v in members.items()}) for i in range(3)]
    assert traces == [name]
    assert not np.array_equal(alone[0][1], alone[2][1])
    # A population: members side by side, each with numbers of its own.
    together = jax.vmap(boxes, in_axes=(None, 0))(keys, members)
    for i in range(3):
        for crop in range(2):
            np.testing.assert_allclose(together[crop][i], alone[i][crop], atol=1e-5)
    # Numbers that are not traced do as well.
    plain = {k: float(v[0]) for k, v in members.items()}
    shapes = jax.eval_shape(lambda key: SAMPLERS[name](key, 32, 32, **plain), keys[0])
    assert [(box.shape, box.dtype) for box in shapes] == [((4,), jnp.float32)] * 2


NUMBERS = {
    "overlap": {"overlap": 0.3},
    "fixed_area": {"overlap": 0.3, "area": 0.5},
    "patch": {"area": 0.3},
    "exclusive": {"gap": 0.1, "min_side": 0.1},
}


@pytest.mark.parametrize("name", NUMBERS)
def test_boxes_do_not_depend_on_the_batch(name):
    # No multiple of what one instruction takes, so that some rows are left over.
    keys = jax.random.split(jax.random.key(0), 63)
    numbers = {k: np.float32(v) for k, v in NUMBERS[name].items()}
    # As a user's program is compiled: the bits are what is tested.
    sampler = compiled(name, 448, 448, jax.jit)
    whole = sampler(keys, numbers)
    # One at a time the compiler makes scalar code of it.
    alone = [sampler(keys[i : i + 1], numbers) for i in range(63)]
    for crop in range(2):
        np.testing.assert_array_equal(whole[crop], np.concatenate([box[crop] for box in alone]))


# --- numbers that no two crops can meet


@pytest.mark.parametrize(
    ("check", "numbers", "message"),
    [
        (spatial.check_overlap, (0.0,), r"overlap=0.0 must be a fraction above 0"),
        (spatial.check_overlap, (math.nan,), r"overlap=nan must be"),
        (spatial.check_fixed_area, (0.1, 1.2), r"area=1.2 must be"),
        (
            spatial.check_fixed_area,
            (0.5, 0.8),
            r"overlap=0.5 .* area=0.8: give one from 0.6 to 0.8",
        ),
        (spatial.check_fixed_area, (0.5, 0.4), r"overlap=0.5 .* area=0.4: .* above 0 to 0.4"),
        (spatial.check_fixed_area, (0.0, 0.4), r"overlap=0.0 .* area=0.4"),
        (spatial.check_patch, (1.5,), r"area=1.5 .* at most 1\."),
        (spatial.check_patch, (0.6, 20, 40), r"area=0.6 .* image of 20 x 40 must .* at most 0.5"),
        (spatial.check_exclusive, (-0.1, 0.1), r"gap=-0.1 must be"),
        (spatial.check_exclusive, (0.2, 0.41), r"min_side=0.41 .* gap=0.2: .* = 0.4"),
        (spatial.check_exclusive, (0.2, 0.0), r"min_side=0.0"),
        (spatial.check_non_overlapping, (0.6,), r"min_side=0.6 .* at most 0.5"),
        (spatial.check_exclusive, (0.1, 0.1, 1, 1), "no two crops of an image of 1 x 1 pixels"),
        (spatial.check_non_overlapping, (0.1, 1, 1), "no two crops of an image of 1 x 1 pixels"),
    ],
)
def test_what_cannot_be_met_is_refused_in_words(check, numbers, message):
    with pytest.raises(ValueError, match=message):
        check(*numbers)


def test_the_limits_themselves_are_accepted():
    spatial.check_overlap(1.0)
    spatial.check_fixed_area(0.6, 0.8)  # 2 * 0.8 - 1 is above 0.6 in floating point
    spatial.check_fixed_area(0.4, 0.4)
    spatial.check_patch(1.0)
    spatial.check_patch(0.5, 20, 40)
    spatial.check_exclusive(0.8, 0.1)  # 1 - 0.8 is below 0.2
    spatial.check_non_overlapping(0.5)
    spatial.check_exclusive(0.1, 0.1, 1, 2)
