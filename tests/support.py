"""What several test files share."""

import inspect
from collections.abc import Callable

import jax
import numpy as np


def unchecked(function: Callable) -> Callable:
    """The function as a user calls it, without the run-time shape checks that tests switch on.

    Tests of a function's own error messages need it: jaxtyping raises before the function does.
    """
    return inspect.unwrap(function)


def tree_distance(a: object, b: object) -> float:
    """||a - b|| / ||b|| over all leaves of two trees, in float64."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    difference = sum(float(np.sum((np.float64(x) - np.float64(y)) ** 2)) for x, y in pairs)
    norm = sum(float(np.sum(np.float64(y) ** 2)) for _, y in pairs)
    return float(np.sqrt(difference / norm)) if difference else 0.0  # trees without a leaf too
