import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.linear_model
from support import unchecked

from jaxssl.distributed import data_mesh
from jaxssl.evaluation import probe
from jaxssl.evaluation.probe import (
    default_config,
    fit_lbfgs,
    fit_sgd,
    per_class_subset,
    select_l2,
    topk_accuracy,
)
from jaxssl.randomness import Purpose, Split, host_bits, permutation

STOP = {"max_iterations": 500, "tolerance": 1e-6}


def make(n, d=6, classes=4, seed=0, noise=2.0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, d))
    labels = rng.integers(0, classes, n)
    features = (centres[labels] + noise * rng.normal(size=(n, d))) * np.geomspace(1e-3, 1e3, d) + 5
    return np.float32(features), np.int32(labels)


def log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
def test_lbfgs_finds_scikit_learns_minimum(l2):
    features, labels = make(300)
    fit = fit_lbfgs(features, labels, 4, l2=l2, **STOP)
    standard = (np.float64(features) - features.mean(0, np.float64)) / features.std(
        0, dtype=np.float64
    )
    reference = sklearn.linear_model.LogisticRegression(
        C=1 / (l2 * len(labels)), tol=1e-10, max_iter=10_000
    ).fit(standard, labels)
    found = log_softmax(np.float64(fit.classifier.logits(features)))
    expected = log_softmax(standard @ reference.coef_.T + reference.intercept_)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    np.testing.assert_allclose(
        fit.classifier.kernel,
        reference.coef_.T,
        atol=2e-5 * np.abs(reference.coef_).max() / l2**0.25,
    )
    assert fit.gradient <= 1e-6
    assert 2 < fit.iterations < 100


def test_lbfgs_is_deterministic_and_ignores_scale_and_shift():
    features, labels = make(200)
    first = fit_lbfgs(features, labels, 4, l2=1e-2, **STOP)
    again = fit_lbfgs(features, labels, 4, l2=1e-2, **STOP)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = fit_lbfgs(features * 64 - 17, labels, 4, l2=1e-2, **STOP)
    np.testing.assert_allclose(
        other.classifier.logits(features * 64 - 17), first.classifier.logits(features), atol=1e-3
    )


def test_a_constant_feature_is_left_out():
    """At test time too, where it may vary; rounding noise must not become a feature."""
    features, labels = make(200)
    constant = np.float32(np.full((200, 1), 0.1) * 1e4)
    dead = np.zeros((200, 1), np.float32)
    fit = fit_lbfgs(np.hstack([features, constant, dead]), labels, 4, l2=1e-2, **STOP)
    plain = fit_lbfgs(features, labels, 4, l2=1e-2, **STOP)
    shifted = np.hstack([features, constant + 3, dead + 9])
    np.testing.assert_allclose(
        fit.classifier.logits(shifted), plain.classifier.logits(features), atol=1e-4
    )


def test_lbfgs_stops_when_told():
    features, labels = make(200)
    fit = fit_lbfgs(features, labels, 4, l2=1e-6, max_iterations=3, tolerance=1e-9)
    assert fit.iterations == 3
    assert fit.gradient > 1e-9


def test_lbfgs_compiles_once_for_a_grid():
    features, labels = make(150)
    fit_lbfgs(features, labels, 4, l2=1e-3, **STOP)
    before = probe._minimize._cache_size()
    fit_lbfgs(jnp.asarray(features), jnp.asarray(labels), 4, l2=1.0, **STOP)
    fit_lbfgs(features, labels, 4, l2=np.float64(0.1), max_iterations=4, tolerance=1.0)
    assert probe._minimize._cache_size() == before


def test_l2_is_selected_on_the_validation_images():
    """Few noisy training images: a strong penalty is right, and the training images deny it."""
    train, validation = make(60, d=40, noise=3), make(2000, d=40, seed=1, noise=3)
    grid = (1e-5, 1e-1, 10.0)
    best, accuracies = select_l2(train, validation, 4, grid=grid, **STOP)
    assert set(accuracies) == set(grid)
    assert best == max(accuracies, key=lambda l2: accuracies[l2]) == 1e-1
    assert accuracies[1e-1] > accuracies[1e-5] + 0.02
    on_train, _ = select_l2(train, train, 4, grid=grid, **STOP)
    assert on_train != 10.0
    logits = fit_lbfgs(*train, 4, l2=1e-5, **STOP).classifier.logits(validation[0])
    # To the tolerance of two fits that began at different points.
    accuracy = np.mean(np.argmax(logits, axis=1) == validation[1])
    assert abs(accuracies[1e-5] - accuracy) <= 2 / 2000
    # equally good: the largest
    features = np.float32([[-1.0], [1.0]]).repeat(3, axis=0)
    easy = (features, np.int32([0, 0, 0, 1, 1, 1]))
    assert select_l2(easy, easy, 2, grid=(1e-3, 1e-1, 1e-2), **STOP)[0] == 1e-1


def reference_sgd(epochs_of_features, classes, seed, batch_size, rate, momentum, decay):
    """SimCLR's linear evaluation in float64, written from its description."""
    count, dim = epochs_of_features[0][0].shape
    kernel, bias = np.zeros((dim, classes)), np.zeros(classes)
    v_kernel, v_bias = np.zeros_like(kernel), np.zeros_like(bias)
    steps, done = int(np.ceil(count / batch_size)), 0
    for epoch, (features, labels) in enumerate(epochs_of_features):
        order = permutation(host_bits(seed, Purpose.ORDER, Split.TRAIN, epoch, 0), count)
        for start in range(0, count, batch_size):
            rows = order[start : start + batch_size]
            x, y = np.float64(features[rows]), labels[rows]
            error = np.exp(log_softmax(x @ kernel + bias)) - np.eye(classes)[y]
            g_kernel, g_bias = x.T @ error / len(rows) + decay * kernel, error.mean(axis=0)
            lr = (
                rate
                * batch_size
                / 256
                * 0.5
                * (1 + np.cos(np.pi * done / (steps * len(epochs_of_features))))
            )
            v_kernel, v_bias = momentum * v_kernel + g_kernel, momentum * v_bias + g_bias
            kernel -= lr * (g_kernel + momentum * v_kernel)
            bias -= lr * (g_bias + momentum * v_bias)
            done += 1
    return kernel, bias


@pytest.mark.parametrize(("batch_size", "decay"), [(20, 0.0), (32, 0.05)])
def test_sgd_follows_the_protocol(batch_size, decay):
    """50 images: the second batch size leaves a smaller last batch."""
    rng = np.random.default_rng(0)
    labels = np.int32(rng.integers(0, 3, 50))
    epochs = [(np.float32(rng.normal(size=(50, 5))), labels) for _ in range(4)]
    asked = []

    def features_of(epoch):
        asked.append(epoch)
        return epochs[epoch]

    settings = {"momentum": 0.9, "weight_decay": decay, "seed": 7}
    found = fit_sgd(features_of, 3, epochs=4, batch_size=batch_size, learning_rate=8.0, **settings)
    assert asked == [0, 1, 2, 3]
    kernel, bias = reference_sgd(epochs, 3, 7, batch_size, 8.0, 0.9, decay)
    assert np.linalg.norm(kernel) > 0.5
    np.testing.assert_allclose(found.kernel, kernel, atol=2e-5)
    np.testing.assert_allclose(found.bias, bias, atol=2e-5)
    again = fit_sgd(features_of, 3, epochs=4, batch_size=batch_size, learning_rate=8.0, **settings)
    assert (again.kernel == found.kernel).all()
    other = fit_sgd(
        features_of,
        3,
        epochs=4,
        batch_size=batch_size,
        learning_rate=8.0,
        **{**settings, "seed": 8},
    )
    assert np.abs(other.kernel - found.kernel).max() > 1e-3


def test_sgd_has_the_numbers_of_before_optax():
    """What the fit by hand, with one more rounding here and there, found at bc568a3."""
    x = np.float32(
        [[1, -2], [0.5, 3], [-1, 1], [2, 0.25], [-3, -1], [0.75, -0.5], [1.5, 2.5]]
    )  # fmt: skip
    labels = np.int32([0, 1, 1, 0, 2, 2, 0])
    found = fit_sgd(
        lambda epoch: (x * (1 + epoch), labels),
        3,
        seed=5,
        epochs=3,
        batch_size=3,
        learning_rate=20.0,
        momentum=0.9,
        weight_decay=0.02,
    )
    kernel = [
        [1.3145023584365845, -0.7668516635894775, -0.5476505756378174],
        [-0.1727818250656128, 0.9084875583648682, -0.7357053756713867],
    ]
    bias = [0.11849981546401978, -0.3200874328613281, 0.20158779621124268]
    np.testing.assert_allclose(found.kernel, kernel, atol=1e-6)
    np.testing.assert_allclose(found.bias, bias, atol=1e-6)


def test_a_batch_larger_than_the_set_is_the_set():
    features, labels = np.float32(np.random.default_rng(0).normal(size=(30, 4))), np.arange(30) % 3
    settings = {
        "seed": 0, "epochs": 5, "learning_rate": 1.0, "momentum": 0.9, "weight_decay": 0.0
    }  # fmt: skip
    large, exact = (
        fit_sgd(lambda _: (features, labels), 3, batch_size=b, **settings) for b in (512, 30)
    )
    np.testing.assert_array_equal(large.kernel, exact.kernel)


def test_both_fits_learn():
    centres = np.random.default_rng(5).normal(size=(3, 8))
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 3, 400)
    features = np.float32(centres[labels] + 0.7 * rng.normal(size=(400, 8)))
    train, test = (features[:300], labels[:300]), (features[300:], labels[300:])
    config = default_config().sgd
    sgd = fit_sgd(
        lambda _: train, 3, seed=0, epochs=30, batch_size=64, learning_rate=config.learning_rate,
        momentum=config.momentum, weight_decay=config.weight_decay,
    )  # fmt: skip
    lbfgs = fit_lbfgs(*train, 3, l2=1e-2, **STOP).classifier
    for classifier in (sgd, lbfgs):
        assert topk_accuracy(classifier.logits(test[0]), test[1])[1] > 0.9


def test_topk_accuracy():
    logits = np.float32([[3, 2, 1, 0], [0, 1, 2, 3], [1, 1, 1, 1], [0, 9, 0, 0]])
    labels = np.int32([0, 0, 1, 2])
    # ranks of the true class: 0, 3, 1 (ties: the lower class first), 2 (behind 1 and its equal 0)
    assert topk_accuracy(logits, labels, ks=(1, 2, 3, 4, 5)) == {
        1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0, 5: 1.0
    }  # fmt: skip
    mask = np.array([True, True, False, False])
    assert topk_accuracy(jnp.asarray(logits), labels, ks=(1,), mask=mask) == {1: 0.5}
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 7)), rng.integers(0, 7, 200)
    for k, accuracy in topk_accuracy(logits, labels).items():
        best = np.argsort(-logits, axis=1)[:, :k]
        assert accuracy == np.mean([label in row for label, row in zip(labels, best, strict=True)])


def test_a_class_never_seen_is_always_wrong():
    logits = np.float32([[1, 0, 0], [1, 0, 0], [1, 0, 0]])
    assert topk_accuracy(logits, np.int32([0, 3, -1])) == {1: 1 / 3, 5: 1 / 3}


def test_nan_logits_are_wrong():
    logits = np.full((2, 3), np.nan)
    assert topk_accuracy(logits, np.int32([0, 2]), ks=(1,)) == {1: 0.0}
    assert topk_accuracy(logits, np.int32([0, 2]), ks=(2,)) == {2: 0.0}
    logits = np.array([[np.nan, 1.0, 0.0]])
    assert topk_accuracy(logits, np.int32([1]), ks=(1, 2)) == {1: 0.0, 2: 1.0}


def test_the_first_of_each_class_in_order_of_position():
    labels = np.int32([2, 0, 2, 1, 0, 2, 1, 0])
    np.testing.assert_array_equal(per_class_subset(labels, 2), [0, 1, 2, 3, 4, 6])
    with pytest.raises(ValueError, match="Class 1 has 2 examples, 3 are asked for"):
        per_class_subset(labels, 3)


def test_what_cannot_be_is_refused():
    features, labels = make(10)
    with pytest.raises(ValueError, match="within 0 and 2"):
        fit_lbfgs(features, labels, 3, l2=1.0, **STOP)
    with pytest.raises(ValueError, match="l2=-1"):
        fit_lbfgs(features, labels, 4, l2=-1.0, **STOP)
    with pytest.raises(ValueError, match="no features"):
        unchecked(fit_lbfgs)(features[:0], labels[:0], 4, l2=1.0, **STOP)
    settings = {
        "seed": 0, "batch_size": 4, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0
    }  # fmt: skip
    with pytest.raises(ValueError, match="Epoch 1 has 9 features, the first had 10"):
        fit_sgd(lambda e: (features[e:], labels[e:]), 4, epochs=2, **settings)
    with pytest.raises(ValueError, match="epochs=0"):
        fit_sgd(lambda e: (features, labels), 4, epochs=0, **settings)


def test_the_settings_are_simclrs():
    config = default_config()
    assert dict(config.sgd) == {
        "epochs": 100, "batch_size": 512, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0
    }  # fmt: skip
    assert config.labels_per_class == 10


def test_rows_shared_by_devices_give_the_same_fit():
    """250 rows do not divide by 8: what fills the last device must not count."""
    features, labels = make(250)
    validation, mesh = make(61, seed=1), data_mesh(8)
    one = fit_lbfgs(features, labels, 4, l2=1.0, **STOP)
    many = fit_lbfgs(features, labels, 4, l2=1.0, **STOP, mesh=mesh)
    np.testing.assert_allclose(many.classifier.kernel, one.classifier.kernel, atol=1e-5)
    # Not the bias itself: it makes up for the rounding of a mean 2,500 deviations from 0.
    found = log_softmax(many.classifier.logits(features, mesh))
    np.testing.assert_allclose(found, log_softmax(one.classifier.logits(features)), atol=1e-4)
    chosen = select_l2((features, labels), validation, 4, grid=(1e-3, 1.0), **STOP, mesh=mesh)
    assert chosen == select_l2((features, labels), validation, 4, grid=(1e-3, 1.0), **STOP)


def test_a_subset_takes_all_of_a_small_class_if_told_so():
    labels = np.array([0, 1, 0, 0, 2, 1])
    np.testing.assert_array_equal(per_class_subset(labels, 2, or_all=True), [0, 1, 2, 4, 5])
    with pytest.raises(ValueError, match="Class 2 has 1 examples, 2 are asked for"):
        per_class_subset(labels, 2)
