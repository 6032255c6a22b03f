"""Linear probes: the section of a card, and all that ``linear_probe`` measures."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxssl.distributed import say
from jaxssl.evaluation.classifier import scores
from jaxssl.evaluation.fits import Fitted, Probed
from jaxssl.evaluation.sections.predictions import Predictions, interval_json
from jaxssl.metrics.paired import accuracy_interval


def linear_scores(probed: Probed) -> tuple[dict[str, Any], dict[str, Fitted]]:
    """Every accuracy of the linear classifiers of one frozen network on the test split.

    Returns:
      By fit (see `Probed.classifiers`): top-1, top-5, balanced and by class, and what was chosen;
      then the classifiers by fit.
    """
    results, fits = {}, {}
    for fit, made, logits in _scored(probed):
        results[fit] = _results(probed, made, logits)
        fits[fit] = made
    return results, fits


def linear(probed: Probed, settings: ConfigDict, predictions: Predictions) -> dict[str, Any]:
    """What `linear_scores` gives, with the exact interval of each top-1 accuracy over images."""
    results: dict[str, Any] = {}
    for fit, made, logits in _scored(probed):
        classes = logits.argmax(axis=1)
        predictions.add(probed.name, f"linear {fit}", classes)
        right = np.asarray(classes == probed.test.labels)
        interval = interval_json(accuracy_interval(right))
        results[fit] = {**_results(probed, made, logits), "interval": interval}
    return results


def _scored(probed: Probed) -> Iterator[tuple[str, Fitted, np.ndarray]]:
    """Every classifier by its fit, and what it says of the test images."""
    for fit, made in probed.classifiers():
        if made.file:
            say(f"  {fit}: scoring {made.file}, fitted before (--probe.refit fits it anew)")
        yield fit, made, made.classifier.logits(probed.test.features, probed.mesh)


def _results(probed: Probed, made: Fitted, logits: np.ndarray) -> dict[str, Any]:
    found = scores(logits, probed.test.labels, probed.class_names)
    return {**found, **made.about.chosen}
