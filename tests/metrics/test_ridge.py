import numpy as np
import pytest
from sklearn.linear_model import Ridge

from jaxssl.metrics.ridge import STRENGTHS, best_strength, ridge_predictions


def data(n, m, d=6, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, d))
    labels, truth = rng.integers(0, classes, n), rng.integers(0, classes, m)
    return (
        np.float32(centres[labels] + 0.7 * rng.normal(size=(n, d))),
        labels,
        np.float32(centres[truth] + 0.7 * rng.normal(size=(m, d))),
        truth,
    )


@pytest.mark.parametrize("shape", [(60, 6), (9, 40)])
def test_scikit_learn_predicts_the_same(shape):
    train, labels, test, truth = data(shape[0], 50, shape[1])
    found = ridge_predictions(train, labels, test, num_classes=4, strengths=(0.01, 1.0, 30.0))
    unit = lambda f: np.float64(f) / np.linalg.norm(np.float64(f), axis=1, keepdims=True)  # noqa: E731
    x, queries = unit(train), unit(test)
    size = np.mean(np.sum((x - x.mean(axis=0)) ** 2, axis=1))
    targets = np.where(np.eye(4)[labels] == 1, 1.0, -1.0)
    for strength, predicted in zip((0.01, 1.0, 30.0), found, strict=True):
        reference = Ridge(alpha=strength * size).fit(x, targets)
        np.testing.assert_array_equal(predicted, reference.predict(queries).argmax(axis=1))
    assert np.mean(found[0] == truth) > 0.5


def test_degenerate_sets():
    same = np.ones((5, 3), np.float32)
    found = ridge_predictions(same, np.array([0, 1, 1, 1, 0]), same, num_classes=3)
    assert found.shape == (len(STRENGTHS), 5)
    assert (found == 1).all()  # the most frequent class: there is nothing else to go by
    with pytest.raises(ValueError, match="no training image"):
        ridge_predictions(same[:0], np.zeros(0, int), same, num_classes=3)
    with pytest.raises(ValueError, match="above 0"):
        ridge_predictions(same, np.zeros(5, int), same, num_classes=3, strengths=(0.0,))


def test_the_best_strength_is_the_strongest_of_equals():
    predictions = np.array([[0, 1, 1], [0, 1, 0], [0, 1, 0], [1, 1, 1]])
    assert best_strength(predictions, np.array([0, 1, 0])) == (2, 1.0)
    with pytest.raises(ValueError, match="no held-out image"):
        best_strength(predictions[:, :0], np.zeros(0, int))
