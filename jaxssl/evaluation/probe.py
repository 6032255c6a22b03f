"""Linear classifiers on frozen features: arrays in, a classifier out; no encoder, no I/O.

Two fits: `fit_sgd`, the protocol that papers publish, on features of augmented images that are new
each epoch; and `fit_lbfgs`, deterministic multinomial logistic regression on standardised features
of clean images, which has one answer and no learning rate.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from jaxssl.corruptions.apply import corruption_group
from jaxssl.evaluation.classifier import (
    LinearClassifier,
    Weights,
    fetched,
    linear_logits,
    put_rows,
    topk_accuracy,
)
from jaxssl.randomness import Purpose, Split, host_bits, permutation

__all__ = [
    "AS_TRAINED",
    "NO_KNN",
    "LbfgsFit",
    "LinearClassifier",
    "default_config",
    "fit_lbfgs",
    "fit_sgd",
    "per_class_subset",
    "select_l2",
    "topk_accuracy",
]

Features = Float[Array | np.ndarray, "n d"]
Labels = Int[Array | np.ndarray, " n"]


AS_TRAINED = "as_trained"
NO_KNN = "none"


def default_config() -> ConfigDict:
    """Settings of a linear probe."""
    config = ConfigDict()
    config.seed = 0  # order of the images in the SGD fit
    config.layer = (
        "pooled"  # of the method: "projection", "teacher", "stage4" ...; a map is averaged
    )
    config.feature_batch_size = 512  # images a pass through the frozen network
    config.labels_per_class = 10  # images a class in the row with few labels
    config.target = "label"  # what is predicted: a target of the data set, such as "digit"
    config.protocol = AS_TRAINED  # of kNN: that of the run's first evaluation; "dino" ... or "none"
    config.knn_k = 0  # neighbours in place of the protocol's, at most all; 0: the protocol's
    config.validation_fraction = -1.0  # share of the run's train split held out; -1: as trained
    config.test_fraction = -1.0  # share of it held out for tests, if none is published; likewise
    config.refit = False  # fit anew even if a saved classifier would serve
    config.distributed = False  # join the processes of a job of several first
    config.evaluation_size = 0  # of multi_digits: pixels of the one digit; 0: the run's own
    config.test_corruption = corruption_group()  # of the test split alone
    config.test_corruption.name = AS_TRAINED  # the run's own

    config.sgd = ConfigDict()
    config.sgd.epochs = 100  # passes over the training images, each with crops and flips of its own
    config.sgd.batch_size = 512  # images a step
    config.sgd.learning_rate = 0.1  # peak for 256 images a step; scales linearly with batch_size
    config.sgd.momentum = 0.9  # Nesterov's
    config.sgd.weight_decay = 0.0  # factor of half the squared norm of the kernel

    config.lbfgs = ConfigDict()
    config.lbfgs.l2_grid = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # candidates for `fit_lbfgs`'s l2
    config.lbfgs.max_iterations = 1000  # stop there even if not converged
    config.lbfgs.tolerance = 1e-5  # converged: no gradient entry larger
    return config


class LbfgsFit(NamedTuple):
    """A converged (or stopped) logistic regression.

    Attributes:
      classifier: what was fitted.
      iterations: L-BFGS iterations taken.
      gradient: largest absolute entry of the objective's gradient; above the tolerance if stopped.
    """

    classifier: LinearClassifier
    iterations: int
    gradient: float


def fit_lbfgs(
    features: Features,
    labels: Labels,
    num_classes: int,
    *,
    l2: float,
    max_iterations: int,
    tolerance: float,
    mesh: Mesh | None = None,
) -> LbfgsFit:
    """Multinomial logistic regression on standardised features.

    Minimises mean cross-entropy + l2 / 2 * ||kernel||^2 from zero; the bias is not penalised.
    scikit-learn's ``LogisticRegression(C=1 / (l2 * n))`` has the same minimum.

    Args:
      features: [N, D]; each component is standardised with its own mean and deviation (without it
        L-BFGS stalls); a constant component is left out.
      labels: [N] in [0, num_classes).
      num_classes: K.
      l2: strength of the penalty, >= 0.
      max_iterations: stop there even if not converged.
      tolerance: converged once no entry of the gradient is larger.
      mesh: devices to share the rows; None: the first one.

    Raises:
      ValueError: no features, labels out of range, or a negative l2.
    """
    data = _Standard.of(features, labels, num_classes, mesh)
    return data.fit(l2, max_iterations, tolerance)


class _Standard(NamedTuple):
    """Standardised features on their devices, with what the fit needs besides."""

    x: Float[Array, "n d"]
    labels: Int[Array, " n"]
    weights: Float[Array, " n"]  # 1, or 0 for a row that only fills a device
    mean: Float[Array, " d"]
    scale: Float[Array, " d"]
    num_classes: int
    mesh: Mesh | None

    @classmethod
    def of(
        cls, features: Features, labels: Labels, num_classes: int, mesh: Mesh | None
    ) -> "_Standard":
        _check_labels(features, labels, num_classes)
        x, y = put_rows(mesh, np.asarray(features, np.float32), np.asarray(labels, np.int32))
        real = np.arange(len(x)) < len(labels)
        (weights,) = put_rows(mesh, real.astype(np.float32))
        standard, mean, scale = _standardize(x, weights)
        return cls(standard, y, weights, mean, scale, num_classes, mesh)

    def fit(
        self,
        l2: float,
        max_iterations: int,
        tolerance: float,
        start: LinearClassifier | None = None,
    ) -> LbfgsFit:
        if l2 < 0:
            raise ValueError(f"l2={l2} must be at least 0.")
        # Python numbers and NumPy arrays as arguments would compile once more than JAX arrays do.
        kernel, bias = jnp.zeros((self.x.shape[1], self.num_classes)), jnp.zeros(self.num_classes)
        if start is not None:
            kernel, bias = jnp.asarray(start.kernel), jnp.asarray(start.bias)
        (kernel, bias), iterations, gradient = _minimize(
            (kernel, bias),
            self.x,
            self.labels,
            self.weights,
            jnp.float32(l2),
            jnp.int32(max_iterations),
            jnp.float32(tolerance),
        )
        fitted = fetched(self.mesh, (self.mean, self.scale, kernel, bias))
        return LbfgsFit(LinearClassifier(*fitted), int(iterations), float(gradient))


def select_l2(
    train: tuple[Features, Labels],
    validation: tuple[Float[Array | np.ndarray, "m d"], Int[Array | np.ndarray, " m"]],
    num_classes: int,
    *,
    grid: Sequence[float],
    max_iterations: int,
    tolerance: float,
    mesh: Mesh | None = None,
) -> tuple[float, dict[float, float]]:
    """The l2 whose `fit_lbfgs` on ``train`` is most often right on ``validation``.

    Args:
      train: features and labels to fit.
      validation: features and labels held out from training images; never the test split.
      num_classes: as in `fit_lbfgs`, and so are the arguments not named here.
      grid: candidates; of equally good ones the largest wins.
      max_iterations: see there.
      tolerance: see there.
      mesh: see there.

    Returns:
      (l2, {candidate: validation accuracy}).
    """
    accuracies = {}
    data = _Standard.of(*train, num_classes, mesh)  # once for all candidates
    start: LinearClassifier | None = None
    for l2 in sorted(grid, reverse=True):
        # From the one before: a weaker penalty moves the minimum a little, and far less is to do.
        fit = data.fit(l2, max_iterations, tolerance, start)
        start = fit.classifier
        logits = fit.classifier.logits(validation[0], mesh)
        accuracies[l2] = topk_accuracy(logits, validation[1], ks=(1,))[1]
    return max(accuracies, key=lambda l2: accuracies[l2]), accuracies


def fit_sgd(
    epoch_features: Callable[[int], tuple[Features, Labels]],
    num_classes: int,
    *,
    seed: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
) -> LinearClassifier:
    """The linear evaluation of SimCLR (arXiv:2002.05709, appendix B.6, and its code).

    Classifier from zero, SGD with Nesterov momentum, cosine decay to 0 after each step, no
    warm-up. Each epoch sees every image once, in an order that depends on (seed, epoch); the last
    batch of an epoch may be smaller.

    Args:
      epoch_features: from an epoch (0, 1, ...) to the features [N, D] of freshly cropped and
        flipped training images and their labels [N] in [0, num_classes); same N each time.
      num_classes: K.
      seed: of the order.
      epochs: how many, >= 1.
      batch_size: B; N if that is smaller.
      learning_rate: peak for 256 images a step; the one used is this times B / 256.
      momentum: share of the old velocity kept a step.
      weight_decay: of the kernel, added to its gradient.

    Raises:
      ValueError: no features, labels out of range, or an epoch of another size than the first.
    """
    state: tuple[Weights, optax.OptState] | None = None
    count = 0
    for epoch in range(epochs):
        features, labels = epoch_features(epoch)
        _check_labels(features, labels, num_classes)
        x, y = jnp.asarray(features, jnp.float32), jnp.asarray(labels)
        if state is None:
            count = x.shape[0]
            batch = min(batch_size, count)
            weights = (jnp.zeros((x.shape[1], num_classes)), jnp.zeros(num_classes))
            steps = epochs * math.ceil(count / batch)
            sgd = _Sgd(learning_rate * batch / 256, steps, momentum)
            state = (weights, sgd.optimizer().init(weights))
        if x.shape[0] != count:
            raise ValueError(f"Epoch {epoch} has {x.shape[0]} features, the first had {count}.")
        order = permutation(host_bits(seed, Purpose.ORDER, Split.TRAIN, epoch, 0), count)
        state = _sgd_epoch(state, x, y, *_batches(order, batch), jnp.float32(weight_decay), sgd=sgd)
    if state is None:
        raise ValueError(f"epochs={epochs} must be at least 1.")
    kernel, bias = state[0]
    dim = kernel.shape[0]
    return LinearClassifier(jnp.zeros(dim), jnp.ones(dim), kernel, bias)


def per_class_subset(
    labels: Int[Array | np.ndarray, " n"], count: int, *, or_all: bool = False
) -> Int[np.ndarray, " m"]:
    """Positions of the first ``count`` examples of each class, ascending.

    Args:
      labels: [N].
      count: examples a class.
      or_all: of a class that has fewer, take all.

    Raises:
      ValueError: a class has fewer, and ``or_all`` is off.
    """
    labels = np.asarray(labels)
    chosen = []
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        if len(positions) < count and not or_all:
            raise ValueError(f"Class {label} has {len(positions)} examples, {count} are asked for.")
        chosen.append(positions[:count])
    return np.sort(np.concatenate(chosen))


def _check_labels(features: Features, labels: Labels, num_classes: int) -> None:
    if features.shape[0] == 0:
        raise ValueError("There are no features to fit.")
    labels = np.asarray(labels)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"Labels run from {labels.min()} to {labels.max()}: with {num_classes} classes they "
            f"must be within 0 and {num_classes - 1}."
        )


@jax.jit
def _standardize(
    x: Float[Array, "n d"], weights: Float[Array, " n"]
) -> tuple[Float[Array, "n d"], Float[Array, " d"], Float[Array, " d"]]:
    column = weights[:, None]
    mean = jnp.sum(column * x, axis=0) / weights.sum()
    std = jnp.sqrt(jnp.sum(column * (x - mean) ** 2, axis=0) / weights.sum())
    # The deviation of a constant is rounding noise; dividing by it would make noise a feature.
    scale = jnp.where(std <= 1e-6 * jnp.abs(mean), jnp.inf, std)
    return (x - mean) / scale, mean, scale


@jax.jit
def _minimize(
    start: Weights,
    x: Float[Array, "n d"],
    labels: Int[Array, " n"],
    weights: Float[Array, " n"],
    l2: Float[Array, ""],
    max_iterations: Int[Array, ""],
    tolerance: Float[Array, ""],
) -> tuple[Weights, Int[Array, ""], Float[Array, ""]]:
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels

    def objective(classifier: Weights) -> Float[Array, ""]:
        losses = cross_entropy(linear_logits(classifier, x), labels)
        penalty = 0.5 * l2 * jnp.sum(classifier[0] ** 2)
        return jnp.sum(weights * losses) / weights.sum() + penalty

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)
    Carry = tuple[Weights, optax.OptState, Int[Array, ""], Float[Array, ""]]

    def unfinished(carry: Carry) -> Bool[Array, ""]:
        return (carry[2] < max_iterations) & (carry[3] > tolerance)

    def iterate(carry: Carry) -> Carry:
        classifier, state, iteration, _ = carry
        value, gradient = value_and_grad(classifier, state=state)
        updates, state = solver.update(
            gradient, state, classifier, value=value, grad=gradient, value_fn=objective
        )
        classifier = optax.apply_updates(classifier, updates)
        largest = optax.tree.norm(optax.tree.get(state, "grad"), ord="inf")
        return classifier, state, iteration + 1, largest

    first = (start, solver.init(start), jnp.int32(0), jnp.float32(jnp.inf))
    classifier, _, iterations, largest = jax.lax.while_loop(unfinished, iterate, first)
    return classifier, iterations, largest


class _Sgd(NamedTuple):
    """Settings of the optimizer: hashable, so that one compilation serves all that share them."""

    peak: float
    steps: int
    momentum: float

    def optimizer(self) -> optax.GradientTransformation:
        rate = optax.cosine_decay_schedule(self.peak, self.steps)
        return optax.sgd(rate, momentum=self.momentum, nesterov=True)


def _batches(
    order: Int[np.ndarray, " n"], batch: int
) -> tuple[Int[Array, "s b"], Float[Array, "s b"]]:
    """Rows of each batch, and the weight of each row in its batch's mean."""
    short = -len(order) % batch
    rows = np.pad(order, (0, short)).reshape(-1, batch)
    real = np.pad(np.ones(len(order)), (0, short)).reshape(-1, batch)
    shares = real / real.sum(axis=1, keepdims=True)
    return jnp.asarray(rows, jnp.int32), jnp.asarray(shares, jnp.float32)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="sgd")
def _sgd_epoch(
    state: tuple[Weights, optax.OptState],
    x: Float[Array, "n d"],
    labels: Int[Array, " n"],
    rows: Int[Array, "s b"],
    shares: Float[Array, "s b"],
    weight_decay: Float[Array, ""],
    *,
    sgd: _Sgd,
) -> tuple[Weights, optax.OptState]:
    optimizer = sgd.optimizer()
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels

    def step(
        state: tuple[Weights, optax.OptState], batch: tuple[Int[Array, " b"], Float[Array, " b"]]
    ) -> tuple[tuple[Weights, optax.OptState], None]:
        weights, velocity = state
        chosen, share = batch

        def loss(weights: Weights) -> Float[Array, ""]:
            losses = cross_entropy(linear_logits(weights, x[chosen]), labels[chosen])
            return jnp.sum(share * losses) + 0.5 * weight_decay * jnp.sum(weights[0] ** 2)

        updates, velocity = optimizer.update(jax.grad(loss)(weights), velocity, weights)
        return (optax.apply_updates(weights, updates), velocity), None

    return jax.lax.scan(step, state, (rows, shares))[0]
