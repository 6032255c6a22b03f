"""Linear probes: the section of a card, and all that ``linear_probe`` measures."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxssl.evaluation.classifier import scores
from jaxssl.evaluation.fits import Fitted, Probed
from jaxssl.evaluation.opened import say
from jaxssl.evaluation.sections.predictions import Predictions, interval_json
from jaxssl.metrics.paired import accuracy_interval


def linear_scores(probed: Probed) -> tuple[dict[str, Any], dict[str, Fitted]]:
    """Every accuracy of the linear classifiers of one frozen network on the test split.

    Returns:
      By fit (see `Probed.classifiers`): top-1, top-5, balanced and by class, and what was chosen;
      then the classifiers by fit.
    """
    results: dict[str, Any] = {}
    fits = {}
    for fit, made in probed.classifiers():
        if made.file:
            say(f"  {fit}: scoring {made.file}, fitted before (--probe.refit fits it anew)")
        logits = made.classifier.logits(probed.test.features, probed.mesh)
        found = scores(logits, probed.test.labels, probed.class_names)
        results[fit] = {**found, **made.about.chosen}
        fits[fit] = made
    return results, fits


def linear(probed: Probed, settings: ConfigDict, predictions: Predictions) -> dict[str, Any]:
    """`linear_scores`, with the exact interval of each top-1 accuracy over images."""
    results, _ = linear_scores(probed)
    for fit, found in results.items():
        classes = probed.logits(fit, probed.test.features).argmax(axis=1)
        predictions.add(probed.name, f"linear {fit}", classes)
        right = np.asarray(classes == probed.test.labels)
        found["interval"] = interval_json(accuracy_interval(right))
    return results
