"""Paired statistics against SciPy, by hand, and by their coverage on simulated truth."""

import math

import numpy as np
import pytest
import scipy.stats

from jaxssl.metrics.paired import (
    Components,
    accuracy_interval,
    crossed_interval,
    difference,
    image_bootstrap,
    mcnemar,
    relative_drop,
    seed_interval,
    seeds_needed,
    variance_removed,
)


def table(rng, seeds, images, mean, of_seeds, of_images, of_rest):
    return (
        mean
        + of_seeds * rng.normal(size=(seeds, 1))
        + of_images * rng.normal(size=(1, images))
        + of_rest * rng.normal(size=(seeds, images))
    )


def test_mcnemar_is_a_binomial_test_of_the_images_that_differ():
    first = np.array([True] * 50 + [False] * 9 + [True] * 2 + [False] * 39)
    second = np.array([True] * 50 + [True] * 9 + [False] * 2 + [False] * 39)
    found = mcnemar(first, second)
    assert found[:2] == (2, 9)
    # 2 * (C(11,0) + C(11,1) + C(11,2)) / 2^11
    assert found.p_value == pytest.approx(2 * (1 + 11 + 55) / 2048, rel=1e-12)
    assert mcnemar(first, first) == (0, 0, 1.0)


def test_mcnemar_errs_at_most_at_its_level():
    rng = np.random.default_rng(0)
    both = rng.random((1000, 60, 2)) < 0.7
    errors = [mcnemar(first, second).p_value <= 0.05 for first, second in np.moveaxis(both, 2, 1)]
    assert np.mean(errors) <= 0.05
    biased = rng.random((200, 300, 2)) < (0.8, 0.6)
    found = [mcnemar(first, second).p_value <= 0.05 for first, second in np.moveaxis(biased, 2, 1)]
    assert np.mean(found) > 0.95


@pytest.mark.parametrize("hits", [0, 1, 37, 50])
def test_accuracy_interval_is_clopper_and_pearsons(hits):
    found = accuracy_interval(np.arange(50) < hits)
    low, high = scipy.stats.binomtest(hits, 50).proportion_ci(0.95, method="exact")
    np.testing.assert_allclose(found, (hits / 50, low, high), rtol=1e-6)


def test_exact_intervals_cover_at_least_what_they_say():
    rng = np.random.default_rng(1)
    for share in (0.03, 0.5, 0.9):
        drawn = rng.random((2000, 80)) < share
        held = [
            interval.low <= share <= interval.high for interval in map(accuracy_interval, drawn)
        ]
        assert np.mean(held) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_seed_interval_covers(seeds):
    rng = np.random.default_rng(2)
    drawn = rng.normal(0.02, 0.01, (2000, seeds))
    found = [seed_interval(differences) for differences in drawn]
    assert 0.94 <= np.mean([one.low <= 0.02 <= one.high for one in found]) <= 0.96
    expected = scipy.stats.t.interval(
        0.95, seeds - 1, loc=drawn[0].mean(), scale=scipy.stats.sem(drawn[0])
    )
    np.testing.assert_allclose(found[0][1:], expected, rtol=1e-12)


def test_one_seed_tells_nothing_of_its_spread():
    found = seed_interval(np.array([0.5]))
    assert found.value == 0.5
    assert math.isnan(found.low)
    assert not found.is_difference


def correlated(rng, images, share, other, together):
    """Whether each image is classified rightly, by two that share ``together`` of their luck."""
    same = rng.random(images) < together
    luck = rng.random((2, images))
    luck[1] = np.where(same, luck[0], luck[1])
    return np.stack([luck[0] < share, luck[1] < other], axis=1)


@pytest.mark.slow
def test_the_bootstrap_covers_differences_and_drops():
    rng = np.random.default_rng(3)
    share, other, held, drops, paired, apart = 0.8, 0.7, [], [], [], []
    for number in range(2000):
        right = correlated(rng, 300, share, other, 0.7)
        one = image_bootstrap(right, difference, seed=number, resamples=1000)
        held.append(one.low <= share - other <= one.high)
        two = image_bootstrap(right, relative_drop, seed=number, resamples=1000)
        drops.append(two.low <= (share - other) / share <= two.high)
        paired.append(one.half_width)
        apart.append(1.96 * math.sqrt(sum(a * (1 - a) / 300 for a in right.mean(axis=0))))
    assert 0.93 <= np.mean(held) <= 0.97
    assert 0.93 <= np.mean(drops) <= 0.97
    assert np.mean(paired) < 0.7 * np.mean(apart)


def test_the_bootstrap_is_the_same_for_the_same_seed_and_takes_any_number():
    values = np.random.default_rng(4).normal(size=(40, 2))
    first, second, other = (
        image_bootstrap(values, difference, seed=seed, resamples=300) for seed in (5, 5, 6)
    )
    assert first == second != other
    assert first.value == pytest.approx(values[:, 0].mean() - values[:, 1].mean())
    error = np.std(values[:, 0] - values[:, 1]) / math.sqrt(40)
    assert first.half_width == pytest.approx(1.96 * error, rel=0.15)


def test_a_drop_from_nothing_is_none():
    """As a resample of few images may be, and no more than NaN: there is no infinity in JSON."""
    right = np.array([[True, False], [False, True], [False, False]])
    found = image_bootstrap(right, relative_drop, seed=0, resamples=100)
    assert found.value == 0
    assert np.isnan([found.low, found.high]).all()
    nothing = image_bootstrap(right[1:], relative_drop, seed=0, resamples=100)
    assert np.isnan(nothing).all()


def test_mean_squares_by_hand():
    """A table of 2 x 3: rows differ by 6, columns by -1, 0 and 1, and a rest of +-1."""
    d = np.array([[0.0, 1, 2], [6, 7, 8]]) + np.array([[1.0, -1, 0], [-1, 1, 0]])
    found = crossed_interval(d)
    assert found.interval.value == 4
    of_seeds, of_images, of_rest = 3 * 2 * 9.0, 2 * 2 / 2, 4 / 2
    assert found.components == pytest.approx(Components((of_seeds - of_rest) / 3, 0, of_rest))
    half = scipy.stats.t.ppf(0.975, found.freedom) * math.sqrt(of_seeds / 6)
    assert found.interval.half_width == pytest.approx(half)
    spread = of_seeds**2 + of_images**2 / 2 + of_rest**2 / 2
    assert of_seeds**2 / spread < 1 == found.freedom  # never fewer than the seeds have


VARIANCES = [(0.0, 0.3, 0.3), (0.02, 0.2, 0.3), (0.1, 0.1, 0.3), (0.05, 0.0, 0.3)]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("deviations", VARIANCES)
def test_the_combined_interval_covers(seeds, deviations):
    rng = np.random.default_rng(5)
    held, components = [], []
    for _ in range(2000):
        found = crossed_interval(table(rng, seeds, 200, 0.01, *deviations))
        held.append(found.interval.low <= 0.01 <= found.interval.high)
        components.append(found.components)
    assert 0.93 <= np.mean(held) <= 0.97
    for variances, deviation in zip(np.transpose(components), deviations, strict=True):
        if deviation:
            assert np.sqrt(variances.mean()) == pytest.approx(deviation, rel=0.15)


@pytest.mark.slow
def test_either_part_alone_would_not_cover():
    """Why both are needed: with seeds and images both at work, neither interval is wide enough."""
    rng = np.random.default_rng(6)
    by_image = []
    for number in range(300):
        d = table(rng, 5, 200, 0.0, 0.05, 0.3, 0.1)
        one = image_bootstrap(
            d.mean(axis=0)[:, None], lambda m: m[:, 0], seed=number, resamples=500
        )
        by_image.append(one.low <= 0 <= one.high)
    assert np.mean(by_image) < 0.9


def test_pairing_removes_what_both_sides_share():
    rng = np.random.default_rng(7)
    shared = table(rng, 6, 400, 0.0, 0.2, 0.5, 0.0)
    first, second = (shared + 0.1 * rng.normal(size=shared.shape) for _ in range(2))
    assert variance_removed(first, second) > 0.95
    apart = [table(rng, 6, 400, 0.0, 0.2, 0.5, 0.1) for _ in range(2)]
    assert abs(variance_removed(*apart)) < 0.9
    assert variance_removed(first, first) == 1.0
    assert variance_removed(np.ones((3, 4)), np.ones((3, 4))) == 0.0


def test_seeds_needed_reach_the_width_and_one_fewer_does_not():
    components, images = Components(0.02**2, 0.1**2, 0.3**2), 2000
    count = seeds_needed(components, images, 0.012)
    assert 2 < count < 100

    def half(seeds):
        by_seed = components.seeds + components.rest / images
        variance = by_seed / seeds + components.images / images
        freedom = (seeds - 1) * (variance / (by_seed / seeds)) ** 2
        return scipy.stats.t.ppf(0.975, freedom) * math.sqrt(variance)

    assert half(count) <= 0.012 < half(count - 1)
    assert seeds_needed(components, images, 0.004) is None
    assert seeds_needed(Components(0.0, 0.0, 0.0), images, 0.1) == 2


def test_too_few_are_refused():
    with pytest.raises(ValueError, match="1 seeds: give at least 2"):
        crossed_interval(np.zeros((1, 5)))
    with pytest.raises(ValueError, match="0 images"):
        image_bootstrap(np.zeros((0, 2)), difference, seed=0)
    with pytest.raises(ValueError, match="0 images"):
        accuracy_interval(np.zeros(0, bool))
    with pytest.raises(ValueError, match="0 seeds"):
        seed_interval(np.zeros(0))
