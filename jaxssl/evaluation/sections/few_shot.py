"""Few labels: ridge regression in closed form on the first images of each class."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxssl.evaluation import probe
from jaxssl.evaluation.fits import Probed
from jaxssl.evaluation.sections.predictions import Predictions, interval_json
from jaxssl.metrics.paired import accuracy_interval
from jaxssl.metrics.ridge import STRENGTHS, best_strength, ridge_predictions

SHOTS = (1, 5, 10, 25)


def few_shot(probed: Probed, settings: ConfigDict, predictions: Predictions) -> dict[str, Any]:
    """Top-1 accuracy by labels a class; the strength is chosen on as many validation images."""
    train, held, test = probed.train, probed.validation, probed.test
    fewest = int(np.bincount(train.labels)[np.unique(train.labels)].min())
    num_classes = int(train.labels.max()) + 1
    found: dict[str, Any] = {}
    for count in (n for n in SHOTS if n <= fewest):
        rows = probe.per_class_subset(train.labels, count)
        chosen = probe.per_class_subset(held.labels, count, or_all=True)
        known = (train.features[rows], train.labels[rows])
        candidates = ridge_predictions(*known, held.features[chosen], num_classes=num_classes)
        best, _ = best_strength(candidates, held.labels[chosen])
        strength = STRENGTHS[best]
        (classes,) = ridge_predictions(
            *known, test.features, num_classes=num_classes, strengths=(strength,)
        )
        predictions.add(probed.name, f"ridge {count}", classes)
        right = classes == test.labels
        found[str(count)] = {"top1": interval_json(accuracy_interval(right)), "strength": strength}
    return found
