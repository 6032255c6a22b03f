import jax
import numpy as np
import pytest
import scipy.spatial.distance as distances
from quick_compilation import at_once
from support import unchecked

from jaxssl.metrics import geometry
from jaxssl.metrics.geometry import class_distances, classwise_uniformity, drop_rate
from jaxssl.metrics.uniformity import uniformity, uniformity_per_image

alignment, feature_distance = at_once(geometry.alignment), at_once(geometry.feature_distance)


def features(n, d=5, seed=0):
    return np.float32(3 * np.random.default_rng(seed).normal(size=(n, d)) + 0.5)


def unit(f):
    return np.float64(f) / np.linalg.norm(np.float64(f), axis=1, keepdims=True)


def test_drop_rate():
    assert drop_rate(0.8, 0.6) == pytest.approx(0.25)
    assert drop_rate(0.5, 0.75) == -0.5
    assert np.isnan(drop_rate(0.0, 0.0))


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_alignment(alpha):
    f1, f2 = features(17), features(17, seed=1)
    expected = np.mean(np.linalg.norm(unit(f1) - unit(f2), axis=1) ** alpha)
    np.testing.assert_allclose(alignment(f1, f2, alpha=alpha), expected, rtol=1e-6)
    np.testing.assert_allclose(alignment(f1, 7 * f1, alpha=alpha), 0, atol=1e-5)
    with pytest.raises(ValueError, match="alpha=0"):
        geometry.alignment(f1, f2, alpha=0.0)


def test_paired_cosine_of_directions_and_of_nothing():
    f = np.float32([[1, 0], [2, 2], [0, 0], [-3, 0]])
    g = np.float32([[5, 0], [1, 0], [1, 1], [1, 0]])
    found = geometry.paired_cosine(f, g)
    np.testing.assert_allclose(found, [1, np.sqrt(0.5), 0, -1], atol=1e-6)


def test_feature_distance_is_the_mean_over_all_pairs():
    f, g = features(13), features(8, seed=2)
    np.testing.assert_allclose(
        feature_distance(f, g), distances.cdist(unit(f), unit(g), "sqeuclidean").mean(), rtol=1e-6
    )
    np.testing.assert_allclose(
        feature_distance(f), distances.pdist(unit(f), "sqeuclidean").mean(), rtol=1e-6
    )


def test_a_small_distance_is_no_rounding():
    """All features within 1e-3 of one another: 2 - 2 cos in float32 would be noise."""
    f = np.float32([10, 1, 1]) + np.float32(0.01) * features(50, 3)
    expected = distances.pdist(unit(f), "sqeuclidean").mean()
    assert expected < 1e-4
    np.testing.assert_allclose(feature_distance(f), expected, rtol=1e-3)


def test_by_class():
    f, labels = features(40), np.repeat([0, 1, 3, 7], 10)[np.random.default_rng(3).permutation(40)]
    found, between = classwise_uniformity(f, labels), class_distances(f, labels)
    assert found.classes.tolist() == between.classes.tolist() == [0, 1, 3, 7]
    for i, one in enumerate(found.classes):
        own = f[labels == one]
        np.testing.assert_allclose(found.values[i], uniformity(own), rtol=1e-6)
        for j, two in enumerate(found.classes):
            other = None if i == j else f[labels == two]
            pairs = distances.pdist(unit(own), "sqeuclidean")
            if other is not None:
                pairs = distances.cdist(unit(own), unit(other), "sqeuclidean")
            np.testing.assert_allclose(between.values[i, j], pairs.mean(), rtol=1e-5)


def test_a_class_of_one_image_has_no_pairs():
    labels = np.array([0, 1, 1])
    found = classwise_uniformity(features(3), labels)
    assert np.isnan(found.values).tolist() == [True, False]
    values = class_distances(features(3), labels).values
    assert np.isnan(values).tolist() == [[True, False], [False, False]]


def test_degenerate_features():
    same = np.tile(features(1), (6, 1))
    assert float(feature_distance(same)) == 0
    assert np.isnan(feature_distance(np.float32([[1, np.nan], [1, 0]])))
    for arguments in ((same[:1],), (same[:0], same)):
        with pytest.raises(ValueError, match="no pair"):
            unchecked(geometry.feature_distance)(*arguments)
    np.testing.assert_allclose(geometry.norms(np.float32([[3, 4], [0, 0]])), [5, 0])


@pytest.mark.parametrize("block_size", [1, 7, 64])
def test_influence_is_the_jackknifes(block_size):
    f = features(33)
    found = uniformity_per_image(f, block_size=block_size)
    np.testing.assert_allclose(found.value, uniformity(f), rtol=1e-6)
    np.testing.assert_allclose(np.mean(found.influence), 0, atol=1e-5)
    kernel = np.exp(-2 * distances.squareform(distances.pdist(unit(f), "sqeuclidean")))
    np.fill_diagonal(kernel, 0)
    rows = kernel.sum(axis=1) / 32
    np.testing.assert_allclose(found.influence, -2 * (rows / rows.mean() - 1), rtol=1e-4, atol=1e-5)
    with jax.enable_x64(True):
        exact = uniformity_per_image(np.float64(f), block_size=block_size).influence
    left_out = [float(uniformity(np.delete(f, i, axis=0))) for i in range(33)]
    moved = 32 * (float(found.value) - np.array(left_out))
    assert np.corrcoef(moved, exact)[0, 1] > 0.999


def test_influence_tells_the_variance_of_the_value():
    values, errors = [], []
    for seed in range(200):
        f = features(60, d=3, seed=seed)
        found = uniformity_per_image(f)
        values.append(float(found.value))
        errors.append(float(np.std(found.influence)) / np.sqrt(60))
    assert np.std(values) == pytest.approx(np.mean(errors), rel=0.15)
