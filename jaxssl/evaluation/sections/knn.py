"""Nearest neighbours by every named protocol, as the features are and standardised."""

from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from jaxssl.evaluation.fits import Probed
from jaxssl.evaluation.sections.predictions import Predictions
from jaxssl.metrics.knn import PROTOCOLS, knn_predictions


def knn(probed: Probed, settings: ConfigDict, predictions: Predictions) -> dict[str, Any]:
    """Top-1 accuracy of each protocol whose neighbours the training images suffice for.

    Standardised: each component over the training images' mean and deviation, a constant one left
    out.
    """
    bank, queries = probed.train, probed.test
    protocols = {name: p for name, p in PROTOCOLS.items() if p.k <= len(bank.labels)}
    found: dict[str, Any] = {"left_out": sorted(PROTOCOLS.keys() - protocols.keys())}
    for how, (known, asked) in {
        "as_is": (bank.features, queries.features),
        "standardised": standardised(bank.features, queries.features),
    }.items():
        classes = knn_predictions(known, bank.labels, asked, protocols=protocols)
        found[how] = {
            name: float(np.mean(np.asarray(predicted) == queries.labels))
            for name, predicted in classes.items()
        }
        if how == "as_is":
            for name, predicted in classes.items():
                predictions.add(probed.name, f"knn {name}", np.asarray(predicted))
    return found


def standardised(
    known: Float[np.ndarray, "n d"], asked: Float[np.ndarray, "q d"]
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "q d"]]:
    """Both sets, each component over the mean and deviation of ``known``; a constant one is 0."""
    # A float32 sum of 50,000 equal numbers is so far off that they would seem to vary.
    mean = known.mean(axis=0, dtype=np.float64).astype(np.float32)
    about = known - mean
    deviation = np.sqrt(np.mean(about**2, axis=0, dtype=np.float64)).astype(np.float32)
    scale = np.where(deviation <= 1e-6 * np.abs(mean), np.float32(np.inf), deviation)
    return about / scale, (asked - mean) / scale
