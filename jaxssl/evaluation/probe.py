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
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from jaxssl.corruptions.apply import corruption_group
from jaxssl.randomness import Purpose, Split, host_bits, permutation

Features = Float[Array | np.ndarray, "n d"]
Labels = Int[Array | np.ndarray, " n"]


AS_TRAINED = "as_trained"


def default_config() -> ConfigDict:
    """Settings of a linear probe."""
    config = ConfigDict()
    config.seed = 0  # order of the images in the SGD fit
    config.feature_batch_size = 512  # images a pass through the frozen encoder
    config.labels_per_class = 10  # images a class in the row with few labels
    config.target = "label"  # what is predicted: a target of the data set, such as "digit"
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
    config.lbfgs.max_iterations = 100  # stop there even if not converged
    config.lbfgs.tolerance = 1e-5  # converged: no gradient entry larger
    return config


class LinearClassifier(NamedTuple):
    """``((features - mean) / scale) @ kernel + bias``.

    Attributes:
      mean: [D] float32.
      scale: [D] float32, > 0.
      kernel: [D, K] float32.
      bias: [K] float32.
    """

    mean: Float[Array, " d"]
    scale: Float[Array, " d"]
    kernel: Float[Array, "d k"]
    bias: Float[Array, " k"]

    def logits(self, features: Float[Array | np.ndarray, "n d"]) -> Float[Array, "n k"]:
        """Un-normalised log probabilities of the classes."""
        return _logits((self.kernel, self.bias), (jnp.asarray(features) - self.mean) / self.scale)


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

    Raises:
      ValueError: no features, labels out of range, or a negative l2.
    """
    _check_labels(features, labels, num_classes)
    if l2 < 0:
        raise ValueError(f"l2={l2} cannot be: it must be at least 0.")
    # Python numbers and NumPy arrays as arguments would compile once more than JAX arrays do.
    x = jnp.asarray(features, jnp.float32)
    mean, scale = _moments(x)
    start = (jnp.zeros((x.shape[1], num_classes)), jnp.zeros(num_classes))
    (kernel, bias), iterations, gradient = _minimize(
        start,
        (x - mean) / scale,
        jnp.asarray(labels),
        jnp.float32(l2),
        jnp.int32(max_iterations),
        jnp.float32(tolerance),
    )
    classifier = LinearClassifier(mean, scale, kernel, bias)
    return LbfgsFit(classifier, int(iterations), float(gradient))


def select_l2(
    train: tuple[Features, Labels],
    validation: tuple[Float[Array | np.ndarray, "m d"], Int[Array | np.ndarray, " m"]],
    num_classes: int,
    *,
    grid: Sequence[float],
    max_iterations: int,
    tolerance: float,
) -> tuple[float, dict[float, float]]:
    """The l2 whose `fit_lbfgs` on ``train`` is most often right on ``validation``.

    Args:
      train: features and labels to fit.
      validation: features and labels held out from training images; never the test split.
      num_classes: as in `fit_lbfgs`, and so are the arguments not named here.
      grid: candidates; of equally good ones the largest wins.
      max_iterations: see there.
      tolerance: see there.

    Returns:
      (l2, {candidate: validation accuracy}).
    """
    accuracies = {}
    for l2 in sorted(grid, reverse=True):
        fit = fit_lbfgs(
            *train, num_classes, l2=l2, max_iterations=max_iterations, tolerance=tolerance
        )
        logits = fit.classifier.logits(validation[0])
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
    state: tuple[_Weights, _Weights] | None = None
    count = 0
    for epoch in range(epochs):
        features, labels = epoch_features(epoch)
        _check_labels(features, labels, num_classes)
        x, y = jnp.asarray(features, jnp.float32), jnp.asarray(labels)
        if state is None:
            count = x.shape[0]
            batch = min(batch_size, count)
            weights = (jnp.zeros((x.shape[1], num_classes)), jnp.zeros(num_classes))
            state = (weights, jax.tree.map(jnp.zeros_like, weights))
        if x.shape[0] != count:
            raise ValueError(f"Epoch {epoch} has {x.shape[0]} features, the first had {count}.")
        rates = _cosine_rates(epoch, epochs, math.ceil(count / batch), learning_rate * batch / 256)
        order = permutation(host_bits(seed, Purpose.ORDER, Split.TRAIN, epoch, 0), count)
        state = _sgd_epoch(
            state, x, y, *_batches(order, batch), rates, jnp.float32(momentum), weight_decay
        )
    if state is None:
        raise ValueError(f"epochs={epochs} cannot be: at least 1 is needed.")
    kernel, bias = state[0]
    dim = kernel.shape[0]
    return LinearClassifier(jnp.zeros(dim), jnp.ones(dim), kernel, bias)


def topk_accuracy(
    logits: Float[Array | np.ndarray, "n k"],
    labels: Int[Array | np.ndarray, " n"],
    *,
    ks: Sequence[int] = (1, 5),
    mask: Bool[Array | np.ndarray, " n"] | None = None,
) -> dict[int, float]:
    """Share of rows whose true class is among the k largest logits.

    Args:
      logits: [N, K]; of equal logits the lower class counts as larger, NaN as larger than any.
      labels: [N]; one outside [0, K) is a class that the classifier never saw: always wrong.
      ks: as reported; one above K means K.
      mask: rows that count; None for all.

    Returns:
      {k: accuracy in [0, 1]}.

    Raises:
      ValueError: no row counts.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    counts = np.ones(len(labels), bool) if mask is None else np.asarray(mask)
    known = (labels >= 0) & (labels < logits.shape[1])
    column = np.where(known, labels, 0)[:, None]
    true = np.take_along_axis(logits, column, axis=1)
    before = np.arange(logits.shape[1]) < column
    ahead = ~(logits <= true) | ((logits == true) & before)
    rank = np.where(known, ahead.sum(axis=1), np.iinfo(np.int64).max)[counts]
    if rank.size == 0:
        raise ValueError("There is no row to count: an accuracy needs at least one.")
    return {k: float(np.mean(rank < k)) for k in ks}


def per_class_subset(labels: Int[Array | np.ndarray, " n"], count: int) -> Int[np.ndarray, " m"]:
    """Positions of the first ``count`` examples of each class, ascending.

    Raises:
      ValueError: a class has fewer.
    """
    labels = np.asarray(labels)
    chosen = []
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        if len(positions) < count:
            raise ValueError(f"Class {label} has {len(positions)} examples, {count} are asked for.")
        chosen.append(positions[:count])
    return np.sort(np.concatenate(chosen))


_Weights = tuple[Float[Array, "d k"], Float[Array, " k"]]


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
def _moments(x: Float[Array, "n d"]) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    mean, std = x.mean(axis=0), x.std(axis=0)
    # The deviation of a constant is rounding noise; dividing by it would make noise a feature.
    constant = std <= 1e-6 * jnp.abs(mean)
    return mean, jnp.where(constant, jnp.inf, std)


def _logits(weights: _Weights, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
    kernel, bias = weights
    # Accelerators otherwise round the inputs of a product to fewer bits.
    return jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST) + bias


@jax.jit
def _minimize(
    start: _Weights,
    x: Float[Array, "n d"],
    labels: Int[Array, " n"],
    l2: Float[Array, ""],
    max_iterations: Int[Array, ""],
    tolerance: Float[Array, ""],
) -> tuple[_Weights, Int[Array, ""], Float[Array, ""]]:
    def objective(weights: _Weights) -> Float[Array, ""]:
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(_logits(weights, x), labels)
        return losses.mean() + 0.5 * l2 * jnp.sum(weights[0] ** 2)

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)
    Carry = tuple[_Weights, optax.OptState, Int[Array, ""], Float[Array, ""]]

    def unfinished(carry: Carry) -> Bool[Array, ""]:
        return (carry[2] < max_iterations) & (carry[3] > tolerance)

    def iterate(carry: Carry) -> Carry:
        weights, state, iteration, _ = carry
        value, gradient = value_and_grad(weights, state=state)
        updates, state = solver.update(
            gradient, state, weights, value=value, grad=gradient, value_fn=objective
        )
        weights = optax.apply_updates(weights, updates)
        largest = optax.tree.norm(optax.tree.get(state, "grad"), ord="inf")
        return weights, state, iteration + 1, largest

    first = (start, solver.init(start), jnp.int32(0), jnp.float32(jnp.inf))
    weights, _, iterations, largest = jax.lax.while_loop(unfinished, iterate, first)
    return weights, iterations, largest


def _cosine_rates(epoch: int, epochs: int, steps: int, peak: float) -> Float[Array, " s"]:
    done = epoch * steps + np.arange(steps)
    rates = 0.5 * peak * (1 + np.cos(np.pi * done / (epochs * steps)))
    return jnp.asarray(rates, jnp.float32)


def _batches(
    order: Int[np.ndarray, " n"], batch: int
) -> tuple[Int[Array, "s b"], Float[Array, "s b"]]:
    """Rows of each batch, and the weight of each row in its batch's mean."""
    short = -len(order) % batch
    rows = np.pad(order, (0, short)).reshape(-1, batch)
    real = np.pad(np.ones(len(order)), (0, short)).reshape(-1, batch)
    shares = real / real.sum(axis=1, keepdims=True)
    return jnp.asarray(rows, jnp.int32), jnp.asarray(shares, jnp.float32)


@functools.partial(jax.jit, donate_argnums=0)
def _sgd_epoch(
    state: tuple[_Weights, _Weights],
    x: Float[Array, "n d"],
    labels: Int[Array, " n"],
    rows: Int[Array, "s b"],
    shares: Float[Array, "s b"],
    rates: Float[Array, " s"],
    momentum: Float[Array, ""],
    weight_decay: Float[Array, ""] | float,
) -> tuple[_Weights, _Weights]:
    def step(
        state: tuple[_Weights, _Weights],
        batch: tuple[Int[Array, " b"], Float[Array, " b"], Float[Array, ""]],
    ) -> tuple[tuple[_Weights, _Weights], None]:
        weights, velocity = state
        chosen, share, rate = batch

        def loss(weights: _Weights) -> Float[Array, ""]:
            losses = optax.losses.softmax_cross_entropy_with_integer_labels(
                _logits(weights, x[chosen]), labels[chosen]
            )
            return jnp.sum(share * losses) + 0.5 * weight_decay * jnp.sum(weights[0] ** 2)

        gradient = jax.grad(loss)(weights)
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradient)
        weights = jax.tree.map(
            lambda w, v, g: w - rate * (g + momentum * v), weights, velocity, gradient
        )
        return (weights, velocity), None

    return jax.lax.scan(step, state, (rows, shares, rates))[0]
