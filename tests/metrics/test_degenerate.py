"""Sets that no encoder should give and some do: all equal, one class, one image a class, NaN.

And that a metric is the same number on one device and on many.
"""

import jax
import numpy as np
import pytest
import scipy.spatial.distance as distances
from sklearn.dummy import DummyClassifier
from sklearn.metrics import balanced_accuracy_score, confusion_matrix

from jaxssl import metrics
from jaxssl.distributed import data_mesh, sharded
from jaxssl.evaluation.classifier import class_accuracies
from jaxssl.evaluation.probe import fit_lbfgs

N, D = 24, 5
LABELS = np.int32(np.arange(N) % 3)
SAME = np.tile(np.float32([[0.5, -1.0, 2.0, 0.0, 3.0]]), (N, 1))


def features(seed=0, n=N):
    return np.float32(np.random.default_rng(seed).normal(size=(n, D)))


def unit(f):
    return np.float64(f) / np.linalg.norm(np.float64(f), axis=1, keepdims=True)


def test_all_features_equal():
    assert float(metrics.uniformity(SAME)) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(metrics.uniformity_per_image(SAME).influence, 0, atol=1e-5)
    np.testing.assert_allclose(metrics.classwise_uniformity(SAME, LABELS).values, 0, atol=1e-6)
    np.testing.assert_allclose(metrics.class_distances(SAME, LABELS).values, 0, atol=1e-6)
    np.testing.assert_allclose(metrics.alignment(SAME, SAME), 0)
    np.testing.assert_allclose(metrics.paired_cosine(SAME, SAME), 1, rtol=1e-6)
    assert metrics.rankme(SAME) == pytest.approx(1, rel=1e-6)
    assert float(metrics.feature_std(SAME)) == pytest.approx(0, abs=1e-6)


def test_neighbours_that_are_all_equally_near_vote_in_the_order_of_the_bank():
    labels = np.int32([2, 1, 1] + [0] * (N - 3))
    for protocol in (metrics.KnnProtocol(3, 0.1), metrics.EuclideanProtocol(3)):
        found = metrics.knn_predict(SAME, labels, SAME[:4], protocol=protocol)
        assert np.asarray(found).tolist() == [1] * 4


def test_a_probe_of_equal_features_knows_the_classes_shares_alone():
    labels = np.int32([0] * 5 + [1] * 12 + [2] * 7)
    fit = fit_lbfgs(SAME, labels, 3, l2=1e-3, max_iterations=100, tolerance=1e-6)
    logits = fit.classifier.logits(SAME)
    shares = np.exp(logits[0]) / np.exp(logits[0]).sum()
    prior = DummyClassifier(strategy="prior").fit(SAME, labels).predict_proba(SAME[:1])[0]
    np.testing.assert_allclose(shares, prior, rtol=1e-3)
    diagram = metrics.reliability(np.tile(shares, (N, 1)), labels)
    assert diagram.error == pytest.approx(0, abs=1e-3)  # the frequent class, as often as it is


def test_one_class():
    one = np.zeros(N, np.int32)
    f = features()
    found = metrics.class_distances(f, one)
    np.testing.assert_allclose(
        found.values, [[distances.pdist(unit(f), "sqeuclidean").mean()]], rtol=1e-5
    )
    np.testing.assert_allclose(
        metrics.classwise_uniformity(f, one).values, [metrics.uniformity(f)], rtol=1e-6
    )
    for protocol in ("dino", "solo"):
        assert metrics.knn_accuracy(f, one, features(1), one, protocol=protocol) == 1
    assert (metrics.ridge_predictions(f, one, features(1), num_classes=1) == 0).all()
    assert metrics.expected_calibration_error(np.ones((N, 1)), one) == 0
    assert metrics.confusion_matrix(one, one, num_classes=1).tolist() == [[N]]
    fit = fit_lbfgs(f, one, 1, l2=1e-3, max_iterations=10, tolerance=1e-6)
    assert (fit.classifier.logits(f).argmax(axis=1) == 0).all()


def test_one_image_a_class():
    labels, f, queries = np.arange(N, dtype=np.int32), features(), features(1)
    assert np.isnan(metrics.classwise_uniformity(f, labels).values).all()
    found = metrics.class_distances(f, labels).values
    assert np.isnan(np.diagonal(found)).all()
    expected = distances.squareform(distances.pdist(unit(f), "sqeuclidean"))
    apart = ~np.eye(N, dtype=bool)
    np.testing.assert_allclose(found[apart], expected[apart], rtol=1e-4, atol=1e-6)
    nearest = distances.cdist(unit(queries), unit(f)).argmin(axis=1)
    one = metrics.knn_predict(f, labels, queries, protocol=metrics.KnnProtocol(1, 0.1))
    np.testing.assert_array_equal(one, nearest)
    ridge = metrics.ridge_predictions(f, labels, f, num_classes=N, strengths=(1e-9,))
    assert np.mean(ridge[0] == labels) > 1 / 3  # as well as D components can tell N classes apart


def test_accuracy_by_class_where_classes_are_missing_or_tied():
    truth = np.int32([0, 0, 0, 2, 2, 5])
    logits = np.zeros((6, 6), np.float32)  # ties: the lower class
    logits[3, 2] = 1
    found = class_accuracies(logits, truth)
    assert found == {0: 1.0, 2: 0.5, 5: 0.0}
    predicted = logits.argmax(axis=1)
    assert np.mean(list(found.values())) == balanced_accuracy_score(truth, predicted)
    np.testing.assert_array_equal(
        metrics.confusion_matrix(predicted, truth, num_classes=6),
        confusion_matrix(truth, predicted, labels=range(6)),
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_seen_in_the_result(bad):
    f = features()
    f[7, 2] = bad
    other = features(1)
    for found in (
        metrics.uniformity(f),
        metrics.alignment(f, other),
        metrics.feature_std(f),
        metrics.feature_distance(f),
        metrics.class_distances(f, LABELS).values[1, 1],
        metrics.classwise_uniformity(f, LABELS).values[1],
        metrics.rankme(f),
        metrics.paired_cosine(f, other)[7],
    ):
        assert not np.isfinite(found)
    # And of the other classes and images nothing is lost.
    assert np.isfinite(metrics.classwise_uniformity(f, LABELS).values[[0, 2]]).all()
    assert np.isfinite(np.delete(metrics.paired_cosine(f, other), 7)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_neighbours_need_numbers(bad):
    f = features()
    f[7, 2] = bad
    for protocol in (metrics.KnnProtocol(3, 0.1), metrics.EuclideanProtocol(3)):
        with pytest.raises(ValueError, match="The features of the bank hold NaN or infinity"):
            metrics.knn_predict(f, LABELS, features(1), protocol=protocol)
        with pytest.raises(ValueError, match="The queries hold NaN or infinity"):
            metrics.knn_predict(features(1), LABELS, f, protocol=protocol)


@pytest.mark.parametrize("devices", [2, 8])
def test_many_devices_find_what_one_finds(devices):
    f, other = features(), features(1)
    maps = np.stack([f, other, f - other], axis=1)
    alone = measured(f, other, maps)
    rows = sharded(data_mesh(devices))
    spread = measured(*(jax.device_put(x, rows) for x in (f, other, maps)))
    for name, value in alone.items():
        np.testing.assert_allclose(spread[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def measured(f, other, maps):
    dense = metrics.dense_uniformity(maps, maps[::-1])
    return {
        "uniformity": metrics.uniformity(f),
        "influence": metrics.uniformity_per_image(f).influence,
        "alignment": metrics.alignment(f, other),
        "distances": metrics.class_distances(f, LABELS).values,
        "feature_std": metrics.feature_std(f),
        "rankme": metrics.rankme(f),
        "cosine": metrics.paired_cosine(f, other),
        "norms": metrics.norms(f),
        "dense_alignment": metrics.dense_alignment(maps, maps[::-1]).value,
        "dense_uniformity": dense.value,
        "dense_influence": dense.influence,
    }
