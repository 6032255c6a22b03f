"""Measures of a representation: arrays in, numbers out, exact over the whole set."""

from jaxssl.metrics.calibration import expected_calibration_error
from jaxssl.metrics.collapse import feature_std
from jaxssl.metrics.knn import PROTOCOLS, KnnProtocol, knn_accuracy, knn_predict
from jaxssl.metrics.rankme import rankme
from jaxssl.metrics.uniformity import uniformity

__all__ = [
    "PROTOCOLS",
    "KnnProtocol",
    "expected_calibration_error",
    "feature_std",
    "knn_accuracy",
    "knn_predict",
    "rankme",
    "uniformity",
]
