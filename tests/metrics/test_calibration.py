import numpy as np
import pytest

from jaxssl.metrics.calibration import (
    confusion_matrix,
    expected_calibration_error,
    reliability,
)


def reference(probabilities, labels, bins):
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    total = 0.0
    for low, high in zip(np.arange(bins) / bins, np.arange(1, bins + 1) / bins, strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = abs((predicted == labels)[inside].mean() - confidence[inside].mean())
            total += inside.mean() * gap
    return total


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_formula(bins):
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(5) * 0.5, 400), rng.integers(0, 5, 400)
    found = expected_calibration_error(probabilities, labels, bins=bins)
    assert found == pytest.approx(reference(probabilities, labels, bins), rel=1e-12)
    assert found > 0.2


def test_closed_forms():
    half = np.float32([[0.75, 0.25]] * 4)
    assert expected_calibration_error(half, np.int32([0, 0, 0, 1])) == 0
    assert expected_calibration_error(half, np.int32([0, 0, 0, 0])) == 0.25
    sure = np.float32([[1, 0], [1, 0]])
    assert expected_calibration_error(sure, np.int32([0, 0])) == 0
    assert expected_calibration_error(sure, np.int32([1, 1])) == 1
    # over- and under-confidence in different bins do not cancel
    both = np.float64([[0.9, 0.1], [0.6, 0.4]])
    assert expected_calibration_error(both, np.int32([1, 0])) == pytest.approx((0.9 + 0.4) / 2)
    assert expected_calibration_error(both, np.int32([1, 0]), bins=1) == pytest.approx(0.25)


def test_logits_are_refused():
    with pytest.raises(ValueError, match="softmax"):
        expected_calibration_error(np.float32([[2.0, -1.0]]), np.int32([0]))
    with pytest.raises(ValueError, match="0 bins"):
        expected_calibration_error(np.float32([[1.0, 0.0]]), np.int32([0]), bins=0)


def test_the_diagram_of_a_few_predictions():
    probabilities = np.float64([[0.9, 0.1], [0.95, 0.05], [0.4, 0.6]])
    found = reliability(probabilities, np.int32([0, 1, 1]), bins=4)
    np.testing.assert_allclose(found.share, [0, 0, 1 / 3, 2 / 3])
    np.testing.assert_allclose(found.confidence[2:], [0.6, 0.925])
    np.testing.assert_allclose(found.accuracy[2:], [1, 0.5])
    assert np.isnan([*found.confidence[:2], *found.accuracy[:2]]).all()
    assert found.error == pytest.approx(0.4 / 3 + 0.425 * 2 / 3)


def test_nan_is_no_probability():
    with pytest.raises(ValueError, match="must be probabilities"):
        reliability(np.float64([[np.nan, 0.5]]), np.int32([0]))


def test_confusion():
    found = confusion_matrix(np.int32([0, 1, 1, 2, 1]), np.int32([0, 1, 2, 2, 0]), num_classes=3)
    assert found.tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 1]]
    with pytest.raises(ValueError, match="labels run from 0 to 3"):
        confusion_matrix(np.int32([0, 0]), np.int32([0, 3]), num_classes=3)
