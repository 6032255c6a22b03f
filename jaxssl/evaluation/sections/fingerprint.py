"""The reliance fingerprint: what an encoder keeps of the test images when something is taken away.

The classifier is fitted once, on clean features of the training images, those of a run that was
trained on a corruption too; only the test images are corrupted. A drop is paired: the same images,
with and without. Where it is asked for, a second classifier is fitted on training images under the
condition itself, which is the published test of runs that were trained on that corruption
(arXiv:2206.05259, section 3.2).
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from jaxssl.corruptions.apply import corruption_group
from jaxssl.evaluation.conditions import CLEAN, Condition
from jaxssl.evaluation.fits import Probed
from jaxssl.evaluation.sections.geometry import uniformity_drop, uniformity_interval
from jaxssl.evaluation.sections.predictions import Predictions, interval_json
from jaxssl.metrics.geometry import paired_cosine
from jaxssl.metrics.paired import (
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
    conditions: Sequence[Condition],
    *,
    refit: bool = False,
) -> dict[str, Any]:
    """For each condition accuracy, U, cosine to the clean features, and the drops.

    Args:
      probed: the network.
      settings: see `jaxssl.evaluation.probe.default_config`.
      predictions: takes the classes of each condition.
      conditions: what is done to the test images, nothing first.
      refit: also fit a classifier on the training images of each condition.

    Returns:
      by condition: ``accuracy`` (Clopper-Pearson interval), ``delta_a`` (paired bootstrap over
      images) with McNemar's ``p_value``, ``uniformity``, ``delta_u``, ``cosine``; the first three
      anew under ``refitted``; and ``seconds``.
    """
    labels = probed.test.labels
    fitted = _on_clean(probed)
    clean: np.ndarray | None = None
    right_clean = np.zeros(0, bool)
    found: dict[str, Any] = {}
    for name, corruption in conditions:
        start = time.monotonic()
        features = probed.features_of(probed.opening.part(probed.split, corruption)).features
        classes = fitted.logits("lbfgs", features).argmax(axis=1)
        predictions.add(probed.name, f"linear {name}", classes)
        right = classes == labels
        if clean is None:
            clean, right_clean = features, right
        row: dict[str, Any] = {
            **_accuracy(name, right_clean, right, settings.seed),
            "uniformity": interval_json(uniformity_interval(features)),
        }
        if name != CLEAN:
            cosine = np.asarray(paired_cosine(clean, features), np.float64)
            row |= {
                "delta_u": interval_json(uniformity_drop(clean, features)),
                "cosine": interval_json(seed_interval(cosine)),
            }
            if refit:
                classes = _refitted(probed, corruption, features)
                predictions.add(probed.name, f"linear refitted {name}", classes)
                anew = _accuracy(name, right_clean, classes == labels, settings.seed)
                row["refitted"] = anew
        row["seconds"] = time.monotonic() - start
        found[name] = row
    return found


def _on_clean(probed: Probed) -> Probed:
    """The network with clean training images, whatever it was trained on itself."""
    if probed.opening.config.corruption.name == "none":
        return probed
    return _among(probed, corruption_group())


def _among(probed: Probed, corruption: ConfigDict) -> Probed:
    """The network with training and held-out images under a corruption."""
    parts = {name: probed.opening.part(name, corruption) for name in ("train", "validation")}
    return dataclasses.replace(probed, parts={**probed.parts, **parts})


def _accuracy(
    name: str, right_clean: Bool[np.ndarray, " n"], right: Bool[np.ndarray, " n"], seed: int
) -> dict[str, Any]:
    """An accuracy, and but for the clean one its relative drop: Delta_A of arXiv:2206.05259."""
    row: dict[str, Any] = {"accuracy": interval_json(accuracy_interval(right))}
    if name != CLEAN:
        drop = image_bootstrap(np.stack([right_clean, right], axis=1), relative_drop, seed=seed)
        row["delta_a"] = interval_json(drop)
        row["p_value"] = mcnemar(right_clean, right).p_value
    return row


def _refitted(probed: Probed, corruption: ConfigDict, features: np.ndarray) -> np.ndarray:
    """The classes by a classifier fitted, and chosen, on images under a condition."""
    there = dataclasses.replace(_among(probed, corruption), saved=())
    return there.logits("lbfgs", features).argmax(axis=1)


def mean_drop(rows: Mapping[str, Any], kind: str = "delta_a") -> float:
    """Plain mean of the drops over the conditions (arXiv:2206.05259's average); NaN for none."""
    drops = [row[kind]["value"] for row in rows.values() if kind in row]
    known = [drop for drop in drops if drop is not None]
    return float(np.mean(known)) if known else float("nan")
