"""Whether a measure of representations orders models as their performance does."""

import numpy as np
import scipy.stats
from jaxtyping import Float, Num

from jaxssl.metrics.paired import Interval


def kendall_tau(
    align: Num[np.ndarray, " m"],
    uniform: Num[np.ndarray, " m"],
    performance: Num[np.ndarray, " m"],
) -> float:
    """Kendall's tau-b of normalised L_a + L_u against performance (Moon, Kim and Choi, BMVC 2022).

    Each loss is brought to [0, 1] by its smallest and largest value over the models, a constant
    one to 0; their sum is compared with the performance. Negative: models of a smaller loss are
    better.

    Args:
      align: L_a of each model, the smaller the better.
      uniform: L_u of each model, likewise.
      performance: such as accuracies.

    Returns:
      in [-1, 1]; NaN where either side is the same for all models.

    Raises:
      ValueError: fewer than 2 models, or a number that is not finite.
    """
    columns = [np.asarray(column, np.float64) for column in (align, uniform, performance)]
    if len(columns[0]) < 2:
        raise ValueError(f"A rank correlation of {len(columns[0])} models is none: give 2 or more.")
    if not all(np.isfinite(column).all() for column in columns):
        raise ValueError("A loss or a performance is not finite: leave that model out, and say so.")
    loss = _to_unit(columns[0]) + _to_unit(columns[1])
    return float(scipy.stats.kendalltau(loss, columns[2]).statistic)


def kendall_interval(
    align: Num[np.ndarray, " m"],
    uniform: Num[np.ndarray, " m"],
    performance: Num[np.ndarray, " m"],
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """`kendall_tau` with its bootstrap interval over models.

    Args:
      align: see `kendall_tau`.
      uniform: see there.
      performance: see there.
      seed: of the resampling.
      level: share of the intervals that hold the true value.
      resamples: drawn from the models with replacement; those without two different models on
        both sides are left out.
    """
    columns = np.array([align, uniform, performance], np.float64)
    value = kendall_tau(*columns)
    draw, count = np.random.default_rng(seed), columns.shape[1]
    found = np.array(
        [kendall_tau(*columns[:, draw.integers(count, size=count)]) for _ in range(resamples)]
    )
    found = found[np.isfinite(found)]
    if not len(found):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _to_unit(values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    span = values.max() - values.min()
    return (values - values.min()) / span if span else np.zeros_like(values)
