"""A linear classifier that is trained beside the method and never touches it.

It has parameters, an optimizer and a leaf of `TrainState` of its own, and it is updated by a
program of its own after each step: the step of the method is the same program with and without it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt
from ml_collections import ConfigDict

from jaxssl.compilation import compiler_options
from jaxssl.data.examples import Source, abstract_batch
from jaxssl.distributed import on_mesh, replicated, sharded
from jaxssl.errors import UserError, choose
from jaxssl.evaluation.classifier import linear_logits
from jaxssl.evaluation.features import as_vectors
from jaxssl.evaluation.frozen import View
from jaxssl.methods.method import Metrics
from jaxssl.ranges import MOMENTUM, NON_NEGATIVE, check_ranges
from jaxssl.training.state import Blueprint, Hyper, TrainState, merge
from jaxssl.training.step import Batch, Step

Leaf = Mapping[str, Any]
"""By the layer's name: ``weights`` (kernel [D, K] and bias [K]) and their ``velocity``."""
Update = Callable[[Leaf, nnx.State, nnx.State, Array, Batch, Array], tuple[Leaf, Metrics]]


@dataclasses.dataclass(frozen=True)
class Online:
    """How to make and update the leaf of `TrainState`.

    Attributes:
      layer: of the method, whose vectors are classified.
      create: a fresh leaf, zero, whole on every device.
      update: jitted, from the leaf, the method's parameters and other variables, the steps taken,
        the batch of the last and the data seed to the next leaf and ``online_loss``,
        ``online_top1``.
    """

    layer: str
    create: Callable[[], Leaf]
    update: Update


def make_online(
    settings: ConfigDict, blueprint: Blueprint, view: View, source: Source, mesh: Mesh, batch: int
) -> Online | None:
    """The classifier that a config asks for; None: none.

    SGD with Nesterov momentum and cosine decay to 0 at the run's horizon, as in
    `jaxssl.evaluation.probe.fit_sgd`, on each step's images, cropped and flipped, by the network in
    evaluation mode as the step has left it.

    Args:
      settings: the ``online`` group of a config.
      blueprint: of the run.
      view: from (batch, seed, epoch) to images, see `jaxssl.evaluation.frozen.make_cropped_view`.
      source: what is trained on.
      mesh: the devices.
      batch: images a step.

    Raises:
      UserError: if a number is out of range, there is no such layer, or there are no labels.
    """
    check_ranges("online", settings, {"learning_rate": NON_NEGATIVE, "momentum": MOMENTUM})
    if settings.learning_rate == 0:
        return None
    classes = blueprint.spec.num_classes
    if classes is None or classes < 2:
        lacking = "no labels" if classes is None else "one class"
        raise UserError(
            f"--config.online.learning_rate={settings.learning_rate} asks for a classifier but the "
            f"data set has {lacking}: give --config.online.learning_rate=0."
        )
    layer = settings.layer

    def features(
        params: nnx.State, rest: nnx.State, batch: Batch, seed: UInt[Array, ""]
    ) -> Float[Array, "b d"]:
        layers = merge(blueprint.graph, params, rest).represent(view(batch, seed, batch["epoch"]))
        return as_vectors(choose("online.layer", layer, layers)).astype(jnp.float32)

    # Traced once before training, so that a wrong layer is refused before the directory is made.
    state, rows = blueprint.abstract(mesh), abstract_batch(source, batch)
    size = jax.eval_shape(features, state.params, state.rest, rows, jnp.uint32(0)).shape[1]
    peak, horizon = settings.learning_rate * batch / 256, blueprint.spec.total_steps
    momentum = optax.trace(settings.momentum, nesterov=True)

    def create() -> Leaf:
        weights = {"kernel": jnp.zeros((size, classes)), "bias": jnp.zeros(classes)}
        return {layer: {"weights": weights, "velocity": momentum.init(weights).trace}}

    def update(
        leaf: Leaf,
        params: nnx.State,
        rest: nnx.State,
        step: Int[Array, ""],
        batch: Batch,
        seed: UInt[Array, ""],
    ) -> tuple[Leaf, Metrics]:
        x, labels = features(params, rest, batch, seed), batch["targets"]["label"]
        weights = leaf[layer]["weights"]
        (loss, right), gradient = jax.value_and_grad(_loss, has_aux=True)(weights, x, labels)
        velocity = optax.TraceState(leaf[layer]["velocity"])
        updates, velocity = momentum.update(gradient, velocity)
        rate = peak * 0.5 * (1 + jnp.cos(jnp.pi * (step - 1) / horizon))
        weights = jax.tree.map(lambda w, u: w - rate * u, weights, updates)
        new = {layer: {"weights": weights, "velocity": velocity.trace}}
        return new, {"online_loss": loss, "online_top1": right}

    whole, shards = replicated(mesh), sharded(mesh)
    jitted = jax.jit(
        on_mesh(update, mesh),
        in_shardings=(whole, whole, whole, whole, shards, whole),
        out_shardings=(whole, whole),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )
    return Online(layer, jax.jit(create, out_shardings=whole), jitted)


def _loss(
    weights: Leaf, x: Float[Array, "b d"], labels: Int[Array, " b"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean cross-entropy, and the share of rows that are classified rightly."""
    logits = linear_logits((weights["kernel"], weights["bias"]), x)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), jnp.mean(logits.argmax(axis=1) == labels)


def beside(step: Step, online: Online) -> Step:
    """The step of the method, and after it that of the classifier."""

    def both(state: TrainState, batch: Batch, hyper: Hyper) -> tuple[TrainState, Metrics]:
        leaf = state.online
        state, metrics = step(dataclasses.replace(state, online=None), batch, hyper)
        leaf, more = online.update(
            leaf, state.params, state.rest, state.step, batch, hyper["data_seed"]
        )
        return dataclasses.replace(state, online=leaf), {**metrics, **more}

    return both
