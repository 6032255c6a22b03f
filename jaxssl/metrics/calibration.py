"""Whether a classifier's confidence is its accuracy."""

import numpy as np
from jaxtyping import Array, Float, Int


def expected_calibration_error(
    probabilities: Float[Array | np.ndarray, "n k"],
    labels: Int[Array | np.ndarray, " n"],
    *,
    bins: int = 15,
) -> float:
    """Mean gap between confidence and accuracy: Naeini et al. (AAAI 2015), Guo et al. 1706.04599.

    Predictions are sorted by their largest probability into bins of equal width, (0, 1/bins],
    (1/bins, 2/bins] ...; the gap of each bin is weighted with its share of the predictions.

    Args:
      probabilities: rows that sum to 1.
      labels: true classes in [0, k).
      bins: how many, >= 1; papers use 15.

    Returns:
      a number in [0, 1] (papers print it in percent).

    Raises:
      ValueError: no prediction, no bin, or rows that are not probabilities.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if len(probabilities) == 0 or bins < 1:
        raise ValueError(f"{len(probabilities)} predictions and {bins} bins: give at least 1.")
    if probabilities.min() < 0 or np.abs(probabilities.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError("Rows must be probabilities (sum 1, none below 0): apply a softmax first.")
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == np.asarray(labels)
    number = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(number, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))
