"""Where the features of the test images lie: uniformity, alignment, classes, rank, collapse."""

from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from jaxssl.evaluation.fits import Probed
from jaxssl.evaluation.sections.predictions import Predictions, interval_json
from jaxssl.metrics.collapse import feature_std
from jaxssl.metrics.geometry import class_distances, classwise_uniformity, norms
from jaxssl.metrics.paired import Interval, influence_interval
from jaxssl.metrics.rankme import rankme
from jaxssl.metrics.uniformity import uniformity_per_image


def geometry(probed: Probed, settings: ConfigDict, predictions: Predictions) -> dict[str, Any]:
    """Measures of the test images' features; U with its interval over images."""
    features, labels = probed.test.features, probed.test.labels
    within, between = classwise_uniformity(features, labels), class_distances(features, labels)
    lengths = np.asarray(norms(features))
    distances = between.values
    apart = distances[~np.eye(len(distances), dtype=bool)]
    names = probed.names_of(within.classes)
    return {
        "uniformity": interval_json(uniformity_interval(features)),
        "classwise_uniformity": _mean_of_known(within.values),
        "distance_within_classes": _mean_of_known(np.diagonal(distances)),
        "distance_between_classes": _mean_of_known(apart),
        "rankme": float(rankme(features)),
        "dimensions": features.shape[1],
        "feature_std": float(feature_std(features)),
        "norm": {"mean": float(lengths.mean()), "std": float(lengths.std())},
        "by_class": [
            {"class": int(label), "name": name, "uniformity": None if np.isnan(u) else float(u)}
            for label, name, u in zip(within.classes, names, within.values, strict=True)
        ],
    }


def _mean_of_known(values: Float[np.ndarray, " k"]) -> float | None:
    """Over the classes that have the measure: one of a single image has no pair."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def uniformity_interval(features: np.ndarray) -> Interval:
    """Uniformity and its interval over images, by the normal law of its influences."""
    value, influence = uniformity_per_image(features)
    return influence_interval(float(value), np.asarray(influence))


def uniformity_drop(clean: np.ndarray, corrupted: np.ndarray) -> Interval:
    """Delta_U = (U - U_c) / U over the same images, with its interval over images.

    Both values move with the same images, so their influences are combined image by image.
    """
    value, of_clean = uniformity_per_image(clean)
    other, of_corrupted = uniformity_per_image(corrupted)
    u, u_c = float(value), float(other)
    if not u:
        return Interval(float("nan"), float("nan"), float("nan"))
    influence = u_c / u**2 * np.asarray(of_clean) - np.asarray(of_corrupted) / u
    return influence_interval((u - u_c) / u, influence)
