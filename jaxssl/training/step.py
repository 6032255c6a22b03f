"""The training step: views, embeddings, loss, gradient, update, as one pure function."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxssl.augment.policies import Policy
from jaxssl.augment.views import Views
from jaxssl.compilation import compiler_options
from jaxssl.distributed import on_mesh, replicated, sharded
from jaxssl.methods import Keys, Method
from jaxssl.methods.method import Metrics
from jaxssl.metrics.collapse import feature_std
from jaxssl.randomness import Purpose, sample_keys, step_key
from jaxssl.training.optim import Scalar, scaled_learning_rate
from jaxssl.training.schedules import Schedules
from jaxssl.training.state import Blueprint, Hyper, TrainState, merge, split

Batch = Mapping[str, Any]
Step = Callable[[TrainState, Batch, Hyper], tuple[TrainState, Metrics]]


def loss_and_gradient(
    graph: nnx.GraphDef, state: TrainState, views: Views, hyper: Hyper
) -> tuple[Float[Array, ""], Metrics, nnx.State, nnx.State]:
    """Loss, metrics, gradient with respect to the parameters, and the other variables after it.

    Args:
      graph: the static part of the method.
      state: before the step.
      views: of the batch.
      hyper: what every scalar is at this step, and the seeds.
    """
    keys = embedding_keys(views, state.step, hyper)
    key = step_key(hyper["init_seed"], Purpose.OBJECTIVE, state.step)

    def loss_of(params: nnx.State) -> tuple[Float[Array, ""], tuple[Metrics, nnx.State]]:
        method = merge(graph, params, state.rest)
        embeddings = method.embed(views, keys)
        loss, metrics = method.objective(embeddings, views, key, hyper)
        _check_metrics(metrics)
        return loss, (metrics | _spread(method, embeddings), kept(graph, method)[1])

    (loss, (metrics, rest)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    return loss, metrics, gradient, rest


def kept(graph: nnx.GraphDef, method: Method) -> tuple[nnx.State, nnx.State]:
    """The parameters and the other variables of a method after a step.

    Raises:
      TypeError: if anything else of it changed, which the next step would not see.
    """
    after, params, rest = split(method)
    if after != graph:
        raise TypeError(
            f"{type(method).__name__} changed an attribute that is no nnx.Variable: keep what must "
            "survive a step in an nnx.Variable, such as jaxssl.methods.method.Bank."
        )
    return params, rest


def embedding_keys(views: Views, step: Int[Array, ""] | int, hyper: Mapping[str, Any]) -> Keys:
    """What the networks may draw from at a step; see `Keys`."""
    return Keys(
        sample=sample_keys(
            hyper["data_seed"], Purpose.EMBED_SAMPLE, views.split, views.epoch, views.index, 0
        ),
        step=step_key(hyper["init_seed"], Purpose.EMBED_STEP, step),
    )


def _spread(method: Method, embeddings: Any) -> Metrics:
    watched = method.watched(embeddings)
    if not isinstance(watched, tuple):
        raise TypeError(f"{type(method).__name__}.watched must return a tuple of arrays.")
    stds = [feature_std(z.reshape(-1, z.shape[-1])) for z in watched]
    return {"embedding_std": jnp.stack(stds).mean()} if stds else {}


RESERVED_METRICS = (
    "step",
    "loss",
    "learning_rate",
    "gradient_norm",
    "embedding_std",
    "images_per_second",
    "online_loss",
    "online_top1",
)
"""What a row of metrics holds of every run: no method and no evaluation may log it."""


def _check_metrics(metrics: Metrics) -> None:
    """Raises ValueError for what cannot be logged: an author hears of it before training."""
    for name, value in metrics.items():
        if name in RESERVED_METRICS or jnp.shape(value) != ():
            raise ValueError(
                f"The metric {name!r} of a method has shape {jnp.shape(value)}: it must be a "
                f"scalar with a name other than {', '.join(RESERVED_METRICS)}."
            )


def make_step(
    blueprint: Blueprint,
    policy: Policy,
    schedules: Schedules,
    *,
    batch_size: int,
    learning_rate_scaling: str,
) -> Step:
    """The step of a run, not yet jitted.

    Args:
      blueprint: the method and its optimizer.
      policy: makes the views of a batch from it and ``hyper``.
      schedules: how the leaves of ``hyper`` move.
      batch_size: images a step, over all devices.
      learning_rate_scaling: by the batch size, a key of `jaxssl.training.optim.SCALINGS`.

    Returns:
      ``step(state, batch, hyper) -> (state, metrics)``, pure; ``metrics`` are float32 scalars:
      loss, learning_rate, gradient_norm, embedding_std (mean std of the normalised embeddings
      that the method watches times sqrt(D): 1 on a uniform sphere, 0 when collapsed) and the
      method's own.
    """

    def step(state: TrainState, batch: Batch, hyper: Hyper) -> tuple[TrainState, Metrics]:
        hyper = _scaled(hyper, batch_size, learning_rate_scaling)
        now = schedules.at(hyper, state.step)
        views = policy(batch, now)
        loss, metrics, gradient, rest = loss_and_gradient(blueprint.graph, state, views, now)
        updates, optimizer = blueprint.optimizer.update(
            gradient,
            state.optimizer,
            state.params,
            learning_rate=now["learning_rate"],
            constant_learning_rate=_constant(hyper["learning_rate"]),
            weight_decay=now["weight_decay"],
            factors=now,
        )
        method = merge(blueprint.graph, optax.apply_updates(state.params, updates), rest)
        method.after_update(now)
        params, rest = kept(blueprint.graph, method)
        metrics |= {
            "loss": loss,
            "learning_rate": now["learning_rate"],
            "gradient_norm": optax.tree.norm(gradient),
        }
        return TrainState(state.step + 1, params, rest, optimizer), metrics

    return step


def _scaled(hyper: Hyper, batch_size: int, scaling: str) -> Hyper:
    """``hyper`` with the learning rate, or all values of its schedule, for the batch size."""

    def scaled(rate: Scalar) -> Scalar:
        return scaled_learning_rate(rate, batch_size, scaling)

    return hyper | {"learning_rate": jax.tree.map(scaled, hyper["learning_rate"])}


def _constant(leaf: Array | Mapping[str, Array]) -> Array:
    """What a leaf of ``hyper`` is where its schedule is not followed."""
    return leaf["value"] if isinstance(leaf, Mapping) else leaf


def compile_step(step: Step, mesh: Mesh) -> Step:
    """The step jitted over a mesh: batch sharded, all else replicated, the old state donated."""
    whole, rows = replicated(mesh), sharded(mesh)
    return jax.jit(
        on_mesh(step, mesh),
        in_shardings=(whole, rows, whole),
        out_shardings=(whole, whole),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )


def make_epoch_hook(
    blueprint: Blueprint,
    schedules: Schedules,
    mesh: Mesh,
    *,
    batch_size: int,
    learning_rate_scaling: str,
) -> Callable[[TrainState, Int[Array, ""], Hyper], TrainState]:
    """`Method.on_epoch` as a jitted function of (state, epoch, hyper) on the mesh.

    Arguments as of `make_step`.
    """

    def hook(state: TrainState, epoch: Int[Array, ""], hyper: Hyper) -> TrainState:
        hyper = _scaled(hyper, batch_size, learning_rate_scaling)
        method = merge(blueprint.graph, state.params, state.rest)
        key = step_key(hyper["init_seed"], Purpose.EPOCH, epoch)
        method.on_epoch(epoch, key, schedules.at(hyper, state.step))
        params, rest = kept(blueprint.graph, method)
        return dataclasses.replace(state, params=params, rest=rest)

    return jax.jit(
        on_mesh(hook, mesh),
        out_shardings=replicated(mesh),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )


def make_fill(
    blueprint: Blueprint, policy: Policy, schedules: Schedules, mesh: Mesh
) -> Callable[[TrainState, Batch, Int[Array, ""], Hyper], TrainState]:
    """`Method.fill` as a jitted function of (state, batch, number of the batch, hyper) on the mesh.

    Arguments as of `make_step`.
    """

    def fill(state: TrainState, batch: Batch, number: Int[Array, ""], hyper: Hyper) -> TrainState:
        now = schedules.at(hyper, state.step)
        views = policy(batch, now)
        keys = embedding_keys(views, number, now)
        # On a copy of its own, so that nothing stays of what it assigns.
        embeddings = merge(blueprint.graph, state.params, state.rest).embed(views, keys)
        method = merge(blueprint.graph, state.params, state.rest)
        method.fill(embeddings, views)
        params, rest = kept(blueprint.graph, method)
        return dataclasses.replace(state, params=params, rest=rest)

    whole, rows = replicated(mesh), sharded(mesh)
    return jax.jit(
        on_mesh(fill, mesh),
        in_shardings=(whole, rows, whole, whole),
        out_shardings=whole,
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )
