import numpy as np
import pytest

from jaxssl.metrics.calibration import expected_calibration_error


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
