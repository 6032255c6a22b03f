"""A few-shot classifier in closed form: ridge regression on +-1 targets, every strength at once."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float, Int

from jaxssl.metrics.normalization import unit_rows

STRENGTHS = tuple(2.0**power for power in range(-10, 21, 2))
"""Candidates for the ridge strength, as multiples of the features' mean squared size."""


def ridge_predictions(
    train: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "m d"],
    *,
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
) -> Int[np.ndarray, "s m"]:
    """Classes predicted by ridge regression for every strength, from one eigendecomposition.

    Features are brought to length 1 and centred by the training images' mean. For each class the
    target is 1 where an image is of it and -1 elsewhere, centred too; the class with the largest
    output is predicted. big_vision's few-shot evaluation by least squares does much the same.

    Args:
      train: features, n >= 1.
      labels: in [0, num_classes).
      test: features to classify.
      num_classes: K.
      strengths: s numbers above 0; the penalty is each times the mean squared length of the
        centred features.

    Returns:
      one row a strength; of equal outputs the lower class wins.

    Raises:
      ValueError: no training image, or a strength not above 0.
    """
    if len(train) == 0:
        raise ValueError("There is no training image: give at least one.")
    if not all(strength > 0 for strength in strengths):
        raise ValueError(f"strengths {tuple(strengths)} must all be above 0.")
    x, queries = (np.float64(unit_rows(jnp.asarray(f))) for f in (train, test))
    center = x.mean(axis=0)
    x, queries = x - center, queries - center
    targets = np.where(np.eye(num_classes, dtype=bool)[np.asarray(labels)], 1.0, -1.0)
    bias = targets.mean(axis=0)
    # Whichever is smaller: components by components, or images by images.
    wide = x.shape[1] > len(x)
    values, vectors = scipy.linalg.eigh(x @ x.T if wide else x.T @ x)
    values = np.maximum(values, 0)
    if wide:
        left, right = queries @ (x.T @ vectors), vectors.T @ (targets - bias)
    else:
        left, right = queries @ vectors, vectors.T @ (x.T @ (targets - bias))
    size = values.sum() / len(x) or 1.0
    shrunk = [right / (values + strength * size)[:, None] for strength in strengths]
    return np.stack([np.argmax(left @ part + bias, axis=1) for part in shrunk])


def best_strength(
    predictions: Int[np.ndarray, "s m"], labels: Int[np.ndarray, " m"]
) -> tuple[int, float]:
    """Which strength is most often right on held-out images, never the test split's.

    Args:
      predictions: see `ridge_predictions`.
      labels: of the held-out images.

    Returns:
      (its number, accuracy in [0, 1]); of equally good ones the strongest.

    Raises:
      ValueError: no image.
    """
    if predictions.shape[1] == 0:
        raise ValueError("There is no held-out image to choose by: give at least one.")
    accuracies = (predictions == np.asarray(labels)).mean(axis=1)
    best = len(accuracies) - 1 - int(np.argmax(accuracies[::-1]))
    return best, float(accuracies[best])
