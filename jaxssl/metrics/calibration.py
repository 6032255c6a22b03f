"""Whether a classifier's confidence is its accuracy, and which classes it takes for which."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int


class Reliability(NamedTuple):
    """A reliability diagram: predictions by their confidence, in bins of equal width.

    Attributes:
      share: of the predictions that fall into each bin; sums to 1.
      confidence: their mean confidence; NaN in an empty bin.
      accuracy: share of them that are right; likewise.
    """

    share: Float[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]

    @property
    def error(self) -> float:
        """The expected calibration error, in [0, 1]."""
        return float(np.nansum(self.share * np.abs(self.accuracy - self.confidence)))


def reliability(
    probabilities: Float[Array | np.ndarray, "n k"],
    labels: Int[Array | np.ndarray, " n"],
    *,
    bins: int = 15,
) -> Reliability:
    """The reliability diagram of a classifier: Guo et al. (arXiv:1706.04599).

    Predictions are sorted by their largest probability into bins (0, 1/bins], (1/bins, 2/bins] ...

    Args:
      probabilities: rows that sum to 1.
      labels: true classes; one outside [0, k) is always wrong.
      bins: how many, >= 1; papers use 15.

    Raises:
      ValueError: no prediction, no bin, or rows that are not probabilities.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if len(probabilities) == 0 or bins < 1:
        raise ValueError(f"{len(probabilities)} predictions and {bins} bins: give at least 1.")
    # Written so that NaN is refused too.
    sums = np.abs(probabilities.sum(axis=1) - 1).max()
    if not (probabilities.min() >= 0 and sums <= 1e-3):
        raise ValueError("Rows must be probabilities (sum 1, none below 0): apply a softmax first.")
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == np.asarray(labels)
    number = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(number, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            counts / len(confidence),
            np.bincount(number, weights=confidence, minlength=bins) / counts,
            np.bincount(number, weights=right, minlength=bins) / counts,
        )


def expected_calibration_error(
    probabilities: Float[Array | np.ndarray, "n k"],
    labels: Int[Array | np.ndarray, " n"],
    *,
    bins: int = 15,
) -> float:
    """Mean gap between confidence and accuracy: Naeini et al. (AAAI 2015), Guo et al. 1706.04599.

    The gap of each bin of the `reliability` diagram, weighted with its share of the predictions.

    Args and errors as of `reliability`.

    Returns:
      a number in [0, 1] (papers print it in percent).
    """
    return reliability(probabilities, labels, bins=bins).error


def confusion_matrix(
    predicted: Int[Array | np.ndarray, " n"],
    labels: Int[Array | np.ndarray, " n"],
    *,
    num_classes: int,
) -> Int[np.ndarray, "k k"]:
    """How many images of each true class (rows) are taken for each class (columns).

    Args:
      predicted: classes in [0, num_classes).
      labels: true classes, in the same range.
      num_classes: K.

    Raises:
      ValueError: a class is out of range.
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    for name, values in (("predicted", predicted), ("labels", labels)):
        if len(values) and not 0 <= values.min() <= values.max() < num_classes:
            raise ValueError(
                f"{name} run from {values.min()} to {values.max()}: with {num_classes} classes "
                f"they must be within 0 and {num_classes - 1}."
            )
    pairs = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)
