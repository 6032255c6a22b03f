"""Alignment and uniformity of the vectors of two augmented views of each test image.

Both are losses, the smaller the better (Wang and Isola, arXiv:2005.10242): L_a is the mean squared
distance of the two views, L_u the logarithm of the mean of exp(-2 d^2) over pairs of images, the
mean of both views', which is minus the U of the geometry.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from jaxssl.evaluation.fits import Probed
from jaxssl.evaluation.sections.predictions import Predictions, interval_json
from jaxssl.metrics.geometry import paired_squares
from jaxssl.metrics.paired import influence_interval
from jaxssl.metrics.uniformity import uniformity_per_image

Measured = tuple[float, Float[np.ndarray, " n"]]
"""A number, and what each image adds to it."""


def alignment(probed: Probed, settings: ConfigDict, predictions: Predictions) -> dict[str, Any]:
    """``l_a``, ``l_u`` and their ``sum`` with intervals over images.

    The views are those of the run's own policy, drawn by ``settings.seed``.
    """
    first, second = (probed.features_of(part).features for part in probed.pair)
    squares = np.asarray(paired_squares(first, second), np.float64)
    spreads = [uniformity_per_image(view) for view in (first, second)]
    l_u = -np.mean([float(spread.value) for spread in spreads])
    influence = -np.mean([np.asarray(spread.influence, np.float64) for spread in spreads], axis=0)
    l_a = float(squares.mean())
    return dict(losses_json((l_a, squares - l_a), (float(l_u), influence)))


def losses_json(l_a: Measured, l_u: Measured) -> Mapping[str, Any]:
    """The two losses and their sum as a section gives them, each with its interval over images."""
    found = {"l_a": l_a, "l_u": l_u, "sum": (l_a[0] + l_u[0], l_a[1] + l_u[1])}
    return {name: interval_json(influence_interval(*measured)) for name, measured in found.items()}
