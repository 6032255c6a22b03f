"""Whether the linear classifier's confidence is its accuracy, and what it takes for what."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxssl.evaluation.fits import Probed
from jaxssl.evaluation.sections.predictions import Predictions
from jaxssl.metrics.calibration import confusion_matrix, reliability

MOST_CLASSES = 100  # of a confusion matrix in a card


def calibration(probed: Probed, settings: ConfigDict, predictions: Predictions) -> dict[str, Any]:
    """Expected calibration error and reliability diagram (15 bins), and the confusion matrix."""
    logits, labels = probed.logits("lbfgs", probed.test.features), probed.test.labels
    diagram = reliability(np.asarray(jax.nn.softmax(logits, axis=1)), labels)
    classes = max(logits.shape[1], int(labels.max()) + 1)
    confusion = None
    if classes <= MOST_CLASSES:
        predicted = logits.argmax(axis=1)
        confusion = confusion_matrix(predicted, labels, num_classes=classes).tolist()
    return {
        "ece": diagram.error,
        "bins": [
            {"share": float(s), "confidence": _or_none(c), "accuracy": _or_none(a)}
            for s, c, a in zip(*diagram, strict=True)
        ],
        "confusion": confusion,
        "class_names": probed.names_of(np.arange(classes)),
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
