"""The sections of an evaluation card, by name; each is a function of one probed network.

A section returns plain JSON. What it predicts for each image it hands to `Predictions`, so that
runs and conditions can be compared over the same images.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxssl.evaluation.fits import Probed
from jaxssl.evaluation.sections.alignment import alignment
from jaxssl.evaluation.sections.calibration import calibration
from jaxssl.evaluation.sections.dense import dense
from jaxssl.evaluation.sections.few_shot import few_shot
from jaxssl.evaluation.sections.geometry import geometry
from jaxssl.evaluation.sections.knn import knn
from jaxssl.evaluation.sections.linear import linear
from jaxssl.evaluation.sections.predictions import Predictions

Section = Callable[[Probed, ConfigDict, Predictions], dict[str, Any]]

SECTIONS: Mapping[str, Section] = {
    "linear": linear,
    "knn": knn,
    "few_shot": few_shot,
    "geometry": geometry,
    "alignment": alignment,
    "dense": dense,
    "calibration": calibration,
}
FINGERPRINT = "fingerprint"
"""The section that needs further passes: it gets the conditions too."""

__all__ = ["FINGERPRINT", "SECTIONS", "Predictions", "Section"]
