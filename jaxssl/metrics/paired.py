"""Differences between two runs or two conditions over the *same* images, with their intervals.

Two accuracies of the same test images share the luck of the images, and two runs of one seed share
the crops they were trained on. A difference of pairs leaves both out, and only what is left makes
its interval wide. Rows are seeds and columns images throughout; everything is float64.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Num

_RESAMPLES = 10_000
_MOST_SEEDS = 1_000_000


class Interval(NamedTuple):
    """A difference and where the true one lies.

    Attributes:
      value: the estimate.
      low: lower end; NaN where there is too little to tell.
      high: upper end; likewise.
    """

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of what lies between the ends."""
        return (self.high - self.low) / 2

    @property
    def is_difference(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


class McNemar(NamedTuple):
    """How two classifiers differ on the same images: McNemar's exact test (Psychometrika 1947).

    Attributes:
      only_first: images that the first alone classifies rightly.
      only_second: images that the second alone does.
      p_value: of as unequal a pair of numbers or more, both being equally likely; two-sided, exact.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Bool[np.ndarray, " n"], second: Bool[np.ndarray, " n"]) -> McNemar:
    """Whether two classifiers are right equally often.

    Args:
      first: whether each image is classified rightly.
      second: the same images, another classifier or condition.
    """
    alone = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    count = sum(alone)
    p_value = scipy.stats.binomtest(alone[0], count).pvalue if count else 1.0
    return McNemar(*alone, float(p_value))


def accuracy_interval(right: Bool[np.ndarray, " n"], *, level: float = 0.95) -> Interval:
    """An accuracy with its exact interval (Clopper and Pearson, Biometrika 1934).

    Args:
      right: whether each image is classified rightly, n >= 1.
      level: share of the intervals that hold the true value, at least.

    Raises:
      ValueError: no image.
    """
    _check(len(right), 1, "image")
    hits, n = int(np.sum(right)), len(right)
    outside = (1 - level) / 2
    low = scipy.stats.beta.ppf(outside, hits, n - hits + 1) if hits else 0.0
    high = scipy.stats.beta.isf(outside, hits + 1, n - hits) if hits < n else 1.0
    return Interval(hits / n, float(low), float(high))


def seed_interval(differences: Num[np.ndarray, " s"], *, level: float = 0.95) -> Interval:
    """Student's interval of a mean over seeds: exact where the differences are normal.

    Args:
      differences: one a seed.
      level: share of the intervals that hold the true mean.

    Raises:
      ValueError: no seed.
    """
    differences = np.asarray(differences, np.float64)
    _check(len(differences), 1, "seed")
    mean, freedom = float(differences.mean()), len(differences) - 1
    if not freedom:
        return Interval(mean, math.nan, math.nan)
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return _student(mean, error, freedom, level)


def influence_interval(
    value: float, influence: Float[np.ndarray, " n"], *, level: float = 0.95
) -> Interval:
    """A measure of a set of images with its interval, by the normal law of what each adds to it.

    Args:
      value: the measure.
      influence: [n], of mean 0: how the measure would move with more images like this one.
      level: share of the intervals that hold the true value.

    Raises:
      ValueError: no image.
    """
    influence = np.asarray(influence, np.float64)
    _check(len(influence), 1, "image")
    quantile = float(scipy.stats.norm.isf((1 - level) / 2))
    half = quantile * float(influence.std()) / math.sqrt(len(influence))
    return Interval(value, value - half, value + half)


def image_bootstrap(
    values: Num[np.ndarray, "n k"] | Bool[np.ndarray, "n k"],
    statistic: Callable[[Float[np.ndarray, "r k"]], Float[np.ndarray, " r"]],
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = _RESAMPLES,
) -> Interval:
    """A function of means over images, by the paired bootstrap: each image brings its whole row.

    Args:
      values: k numbers an image, such as whether either of two classifiers is right.
      statistic: from means [R, k] to a number each [R], such as ``lambda m: m[:, 0] - m[:, 1]``.
      seed: of the resampling.
      level: share of the intervals that hold the true value.
      resamples: drawn from the images with replacement.

    Returns:
      the statistic of the means, and the ends of the middle ``level`` of the resampled ones; NaN
      if it has no value for one of them.

    Raises:
      ValueError: no image.
    """
    values = np.asarray(values, np.float64)
    _check(len(values), 1, "image")
    # Equal rows are drawn together: two classifiers have four kinds of image, however many images.
    kinds, counts = np.unique(values, axis=0, return_counts=True)
    draw, means = np.random.default_rng(seed), []
    block = max(1, 4_000_000 // len(kinds))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = draw.multinomial(len(values), counts / len(values), size=size)
        means.append(drawn @ kinds / len(values))
    value = float(statistic(values.mean(axis=0, keepdims=True))[0])
    found = statistic(np.concatenate(means))
    if np.isnan(found).any():  # a share of resamples that have no value has no middle
        return Interval(value, math.nan, math.nan)
    ends = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(ends[0]), float(ends[1]))


def difference(means: Float[np.ndarray, "r 2"]) -> Float[np.ndarray, " r"]:
    """First minus second, for `image_bootstrap`."""
    return means[:, 0] - means[:, 1]


def relative_drop(means: Float[np.ndarray, "r 2"]) -> Float[np.ndarray, " r"]:
    """(first - second) / first, for `image_bootstrap`: Delta_A of arXiv:2206.05259; NaN at 0."""
    first = np.where(means[:, 0] == 0, np.nan, means[:, 0])
    return (first - means[:, 1]) / first


class Components(NamedTuple):
    """Variances of a table of seeds by images, as crossed random effects.

    Attributes:
      seeds: of the effects of the seeds.
      images: of the effects of the images.
      rest: of what is left, the interaction.
    """

    seeds: float
    images: float
    rest: float


class Crossed(NamedTuple):
    """The mean of a table of seeds by images.

    Attributes:
      interval: of the mean over all seeds and images there might be.
      components: where its variance comes from, none below 0.
      freedom: degrees of freedom of its standard error (Satterthwaite, Biometrics 1946).
    """

    interval: Interval
    components: Components
    freedom: float


def crossed_interval(
    differences: Num[np.ndarray, "s n"] | Bool[np.ndarray, "s n"], *, level: float = 0.95
) -> Crossed:
    """Interval of a mean over seeds and images, both of which were drawn from many.

    d[s, i] = mean + seed[s] + image[i] + rest[s, i], all independent: the mean's variance is the
    sum of their variances over S, N and S N. They are estimated from the mean squares.

    Args:
      differences: one a seed and image, paired: the same seeds and images on both sides.
      level: share of the intervals that hold the true mean.

    Raises:
      ValueError: fewer than 2 seeds or images.
    """
    d = np.asarray(differences, np.float64)
    seeds, images = d.shape
    _check(seeds, 2, "seed")
    _check(images, 2, "image")
    mean = d.mean()
    rows, columns = d.mean(axis=1, keepdims=True), d.mean(axis=0, keepdims=True)
    freedoms = np.array([seeds - 1, images - 1, (seeds - 1) * (images - 1)], np.float64)
    squares = np.array(
        [
            images * np.sum((rows - mean) ** 2),
            seeds * np.sum((columns - mean) ** 2),
            np.sum((d - rows - columns + mean) ** 2),
        ]
    )
    of_seeds, of_images, of_rest = squares / freedoms
    components = Components(
        max(of_seeds - of_rest, 0) / images, max(of_images - of_rest, 0) / seeds, of_rest
    )
    # Where an estimate is below 0 its mean square is that of the rest, which is then the smaller.
    total = max(of_seeds + of_images - of_rest, of_seeds, of_images)
    parts = np.array([of_seeds, of_images, of_rest])
    spread = np.sum(parts**2 / freedoms)
    freedom = float(np.clip(total**2 / spread, seeds - 1, None)) if spread else math.inf
    error = math.sqrt(total / (seeds * images))
    return Crossed(_student(float(mean), error, freedom, level), components, freedom)


def variance_removed(
    first: Num[np.ndarray, "s n"] | Bool[np.ndarray, "s n"],
    second: Num[np.ndarray, "s n"] | Bool[np.ndarray, "s n"],
) -> float:
    """Share of the difference's variance that pairing removed, at most 1.

    1 - v / (v1 + v2), each v being the variance of a mean (see `crossed_interval`): v of the
    differences, v1 and v2 of either side as if it had seeds and images of its own. Below 0 where
    pairing did harm.

    Args:
      first: a value for each seed and image.
      second: the same seeds and images.
    """
    sides = [np.asarray(side, np.float64) for side in (first, second)]
    apart = sum(map(_variance_of_mean, sides))
    paired = _variance_of_mean(sides[0] - sides[1])
    return 1 - paired / apart if apart else 0.0


def seeds_needed(
    components: Components, images: int, half_width: float, *, level: float = 0.95
) -> int | None:
    """How many seeds bring an interval down to a half-width.

    Args:
      components: of a small study, see `crossed_interval`.
      images: how many test images there will be.
      half_width: wanted, > 0, in the unit of the differences.
      level: of the interval.

    Returns:
      at least 2; None where the images alone make it wider, whatever the number of seeds.
    """

    def width(seeds: int) -> float:
        by_seed = components.seeds + components.rest / images
        variance = by_seed / seeds + components.images / images
        # The images' part has many degrees of freedom, the seeds' few.
        share = by_seed / seeds / variance if variance else 1.0
        freedom = (seeds - 1) / share**2 if share else math.inf
        return scipy.stats.t.ppf((1 + level) / 2, freedom) * math.sqrt(variance)

    if width(_MOST_SEEDS) > half_width:
        return None
    low, high = 1, 2
    while width(high) > half_width:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if width(middle) <= half_width else (middle, high)
    return high


def _variance_of_mean(values: Num[np.ndarray, "s n"] | Bool[np.ndarray, "s n"]) -> float:
    components = crossed_interval(values).components
    seeds, images = values.shape
    return (
        components.seeds / seeds + components.images / images + components.rest / (seeds * images)
    )


def _student(mean: float, error: float, freedom: float | int, level: float) -> Interval:
    half = float(scipy.stats.t.ppf((1 + level) / 2, freedom)) * error
    return Interval(mean, mean - half, mean + half)


def _check(count: int, least: int, what: str) -> None:
    if count < least:
        raise ValueError(f"There are {count} {what}s: give at least {least}.")
