"""The reliance fingerprint: what an encoder keeps of the test images when something is taken away.

The classifier is fitted once, on clean features of the training images; only the test images are
corrupted. A drop is paired: the same images, with and without.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxssl.evaluation.conditions import CLEAN
from jaxssl.evaluation.fits import Probed
from jaxssl.evaluation.probe_data import Part
from jaxssl.evaluation.sections.geometry import uniformity_drop, uniformity_interval
from jaxssl.evaluation.sections.predictions import Predictions, interval_json
from jaxssl.metrics.geometry import paired_cosine
from jaxssl.metrics.paired import (
    Interval,
    accuracy_interval,
    image_bootstrap,
    mcnemar,
    relative_drop,
    seed_interval,
)


def fingerprint(
    probed: Probed,
    settings: ConfigDict,
    predictions: Predictions,
    conditions: Mapping[str, Part],
) -> dict[str, Any]:
    """For each condition accuracy, U, cosine to the clean features, and the drops.

    Args:
      probed: the network; its test features are the clean ones.
      settings: see `jaxssl.evaluation.probe.default_config`.
      predictions: takes the classes of each condition.
      conditions: the test images by condition, the clean ones first.

    Returns:
      by condition: ``accuracy`` (Clopper-Pearson interval), ``delta_a`` (paired bootstrap over
      images) with McNemar's ``p_value``, ``uniformity``, ``delta_u``, ``cosine``; and ``seconds``.
    """
    labels = probed.test.labels
    clean: np.ndarray | None = None
    right_clean = np.zeros(0, bool)
    found: dict[str, Any] = {}
    for name, part in conditions.items():
        start = time.monotonic()
        features = probed.features_of(part).features
        classes = probed.logits("lbfgs", features).argmax(axis=1)
        predictions.add(probed.name, f"linear {name}", classes)
        right = classes == labels
        if clean is None:
            clean, right_clean = features, right
        pair = np.stack([right_clean, right], axis=1)
        row: dict[str, Any] = {
            "accuracy": interval_json(accuracy_interval(right)),
            "uniformity": interval_json(uniformity_interval(features)),
        }
        if name != CLEAN:
            drop = image_bootstrap(pair, relative_drop, seed=settings.seed)
            cosine = np.asarray(paired_cosine(clean, features), np.float64)
            row |= {
                "delta_a": interval_json(drop),
                "p_value": mcnemar(right_clean, right).p_value,
                "delta_u": interval_json(uniformity_drop(clean, features)),
                "cosine": interval_json(seed_interval(cosine)),
            }
        row["seconds"] = time.monotonic() - start
        found[name] = row
    return found


def mean_drop(rows: Mapping[str, Any], kind: str = "delta_a") -> Interval:
    """Plain mean of the drops over the conditions (arXiv:2206.05259's average), no interval."""
    drops = [row[kind]["value"] for row in rows.values() if kind in row]
    known = [drop for drop in drops if drop is not None]
    return Interval(float(np.mean(known)) if known else float("nan"), float("nan"), float("nan"))
