"""Measures of a representation: arrays in, numbers out, exact over the whole set."""

from jaxssl.metrics.calibration import (
    Reliability,
    confusion_matrix,
    expected_calibration_error,
    reliability,
)
from jaxssl.metrics.collapse import feature_std
from jaxssl.metrics.dense import dense_alignment, dense_uniformity
from jaxssl.metrics.geometry import (
    alignment,
    class_distances,
    classwise_uniformity,
    drop_rate,
    feature_distance,
    norms,
    paired_cosine,
    paired_squares,
)
from jaxssl.metrics.knn import (
    PROTOCOLS,
    EuclideanProtocol,
    KnnProtocol,
    knn_accuracy,
    knn_predict,
    knn_predictions,
)
from jaxssl.metrics.paired import (
    Interval,
    accuracy_interval,
    crossed_interval,
    image_bootstrap,
    influence_interval,
    mcnemar,
    seed_interval,
    seeds_needed,
    variance_removed,
)
from jaxssl.metrics.rank_correlation import kendall_interval, kendall_tau
from jaxssl.metrics.rankme import rankme
from jaxssl.metrics.ridge import best_strength, ridge_predictions
from jaxssl.metrics.uniformity import uniformity, uniformity_per_image

__all__ = [
    "PROTOCOLS",
    "EuclideanProtocol",
    "Interval",
    "KnnProtocol",
    "Reliability",
    "accuracy_interval",
    "alignment",
    "best_strength",
    "class_distances",
    "classwise_uniformity",
    "confusion_matrix",
    "crossed_interval",
    "dense_alignment",
    "dense_uniformity",
    "drop_rate",
    "expected_calibration_error",
    "feature_distance",
    "feature_std",
    "image_bootstrap",
    "influence_interval",
    "kendall_interval",
    "kendall_tau",
    "knn_accuracy",
    "knn_predict",
    "knn_predictions",
    "mcnemar",
    "norms",
    "paired_cosine",
    "paired_squares",
    "rankme",
    "reliability",
    "ridge_predictions",
    "seed_interval",
    "seeds_needed",
    "uniformity",
    "uniformity_per_image",
    "variance_removed",
]
