"""Alignment and uniformity of the cells of maps, in two augmented views of each test image."""

import dataclasses
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxssl.evaluation.fits import Probed
from jaxssl.evaluation.sections.alignment import Measured, losses_json
from jaxssl.evaluation.sections.predictions import Predictions
from jaxssl.metrics.dense import OfImages, dense_alignment, dense_uniformity

MOST_IMAGES = 4096
"""Of a larger set so many, evenly spread: pairs of cells grow with the square."""


def dense(probed: Probed, settings: ConfigDict, predictions: Predictions) -> dict[str, Any]:
    """L_a and L_u of Moon, Kim and Choi (BMVC 2022) over cells of the same index.

    Returns:
      ``l_a``, minus the mean cosine of the two views' cells; ``l_u`` at t = 2, and at the printed
      t = 1 as ``l_u_t1``; ``sum`` of the first two; ``layer``, ``cells`` of an image and
      ``images``. Nothing for a network without a map.
    """
    if probed.map_layer is None:
        return {}
    layer, (height, width, size) = probed.map_layer
    count = len(probed.parts["test"].source)
    rows = np.unique(np.linspace(0, count - 1, min(count, MOST_IMAGES)).round().astype(np.int64))
    first, second = (
        probed.maps_of(dataclasses.replace(part, source=part.source.take(rows)), layer, size)
        for part in probed.pair
    )
    l_u, printed = (dense_uniformity(first, second, t) for t in (2.0, 1.0))
    return {
        **losses_json(_measured(dense_alignment(first, second)), _measured(l_u)),
        "l_u_t1": float(printed.value),
        "layer": layer,
        "cells": height * width,
        "images": len(rows),
    }


def _measured(found: OfImages) -> Measured:
    return float(found.value), np.asarray(found.influence, np.float64)
