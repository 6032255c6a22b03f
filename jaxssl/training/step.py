"""The training step: views, embeddings, loss, gradient, update, as one pure function."""

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
from jaxssl.distributed import on_mesh, replicated, sharded
from jaxssl.methods.method import Hyper, Metrics
from jaxssl.metrics.collapse import feature_std
from jaxssl.randomness import Purpose, step_key
from jaxssl.training.optim import peak_learning_rate, unit_schedule
from jaxssl.training.state import Blueprint, TrainState, merge, split

Batch = Mapping[str, Any]
Step = Callable[[TrainState, Batch, Hyper], tuple[TrainState, Metrics]]


def loss_and_gradient(
    graph: nnx.GraphDef, state: TrainState, views: Views, hyper: Hyper
) -> tuple[Float[Array, ""], Metrics, nnx.State, nnx.State]:
    """Loss, metrics, gradient with respect to the parameters, and the other variables after it."""
    key = step_key(hyper["init_seed"], Purpose.OBJECTIVE, state.step)

    def loss_of(params: nnx.State) -> tuple[Float[Array, ""], tuple[Metrics, nnx.State]]:
        method = merge(graph, params, state.rest)
        embeddings = method.embed(views)
        loss, metrics = method.objective(embeddings, views, key, hyper)
        stds = [feature_std(value) for value in embeddings.values()]
        metrics |= {"embedding_std": jnp.stack(stds).mean()}
        return loss, (metrics, split(method)[2])

    (loss, (metrics, rest)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    return loss, metrics, gradient, rest


def make_step(blueprint: Blueprint, policy: Policy) -> Step:
    """The step of a run, not yet jitted.

    Args:
      blueprint: the method and its optimizer.
      policy: makes the views of a batch from it and ``hyper``.

    Returns:
      ``step(state, batch, hyper) -> (state, metrics)``, pure; ``metrics`` are float32 scalars:
      loss, learning_rate, gradient_norm, embedding_std (mean std of the normalised embeddings
      times sqrt(D): 1 on a uniform sphere, 0 when collapsed) and the method's own.
    """
    config, spec = blueprint.config, blueprint.spec
    schedule = unit_schedule(config.schedule, spec.total_steps / config.schedule.epochs)

    def step(state: TrainState, batch: Batch, hyper: Hyper) -> tuple[TrainState, Metrics]:
        views = policy(batch, hyper)
        loss, metrics, gradient, rest = loss_and_gradient(blueprint.graph, state, views, hyper)
        learning_rate = schedule(state.step) * peak_learning_rate(
            hyper["learning_rate"], config.batch_size, config.optimizer.scaling
        )
        updates, optimizer = blueprint.optimizer.update(
            gradient,
            state.optimizer,
            state.params,
            learning_rate=learning_rate,
            weight_decay=hyper["weight_decay"],
        )
        method = merge(blueprint.graph, optax.apply_updates(state.params, updates), rest)
        method.after_update(hyper)
        _, params, rest = split(method)
        metrics |= {
            "loss": loss,
            "learning_rate": learning_rate,
            "gradient_norm": optax.tree.norm(gradient),
        }
        return TrainState(state.step + 1, params, rest, optimizer), metrics

    return step


def compile_step(step: Step, mesh: Mesh) -> Step:
    """The step jitted over a mesh: batch sharded, all else replicated, the old state donated."""
    whole, rows = replicated(mesh), sharded(mesh)
    return jax.jit(
        on_mesh(step, mesh),
        in_shardings=(whole, rows, whole),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )


def make_epoch_hook(
    blueprint: Blueprint, mesh: Mesh
) -> Callable[[TrainState, Int[Array, ""], Hyper], TrainState]:
    """`Method.on_epoch` as a jitted function of (state, epoch, hyper)."""

    def hook(state: TrainState, epoch: Int[Array, ""], hyper: Hyper) -> TrainState:
        method = merge(blueprint.graph, state.params, state.rest)
        method.on_epoch(epoch, step_key(hyper["init_seed"], Purpose.EPOCH, epoch))
        _, params, rest = split(method)
        return TrainState(state.step, params, rest, state.optimizer)

    return jax.jit(hook, out_shardings=replicated(mesh), donate_argnums=0)
