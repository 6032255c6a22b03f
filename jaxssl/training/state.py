"""The state of training: one pytree that holds everything the next step depends on."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, UInt
from ml_collections import ConfigDict

from jaxssl.distributed import layout, templates
from jaxssl.methods import Spec, build_method
from jaxssl.methods.method import Method
from jaxssl.training import schedules
from jaxssl.training.optim import make_optimizer

Hyper = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything the next step depends on, besides the batch and `Hyper`.

    Attributes:
      step: steps taken so far, int32.
      params: every ``nnx.Param`` of the method.
      rest: every other variable: BatchNorm statistics, teacher, queue ...
      optimizer: the optimizer's state.
      online: what is trained beside the method, see `jaxssl.training.online`; None: nothing.
    """

    # Not annotated as arrays: JAX also builds trees of shapes and shardings with this class.
    step: Any
    params: Any
    rest: Any
    optimizer: Any
    online: Any = None


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """How to build a method and its optimizer; makes states, whole or abstract.

    Attributes:
      graph: the static part of the method, the other half of ``params`` and ``rest``.
      optimizer: see `jaxssl.training.optim`.
      build: from an initial seed to ``params`` and ``rest``; jitted.
      spec: what the data and the run are like.
    """

    graph: nnx.GraphDef
    optimizer: optax.GradientTransformationExtraArgs
    build: Callable[[UInt[Array, ""]], tuple[nnx.State, nnx.State]]
    spec: Spec

    @classmethod
    def from_config(
        cls, method: ConfigDict, encoder: ConfigDict, optimizer: ConfigDict, spec: Spec
    ) -> "Blueprint":
        """The blueprint of three groups of a config; traces the construction, computes nothing.

        Raises:
          UserError: if the method, the encoder or the optimizer does not fit.
        """
        graphs = []

        @jax.jit  # so that states are made from the one trace that is made here
        def build(init_seed: UInt[Array, ""]) -> tuple[nnx.State, nnx.State]:
            graph, params, rest = split(build_method(method, encoder, spec, init_seed))
            graphs.append(graph)
            return params, rest

        params, _ = jax.eval_shape(build, jax.ShapeDtypeStruct((), jnp.uint32))
        return cls(graphs[0], make_optimizer(optimizer, params), build, spec)

    def init(self, init_seed: UInt[Array, ""]) -> TrainState:
        """A fresh state; pure, for ``jax.jit``: one compilation serves every seed."""
        params, rest = self.build(init_seed)
        return TrainState(jnp.zeros((), jnp.int32), params, rest, self.optimizer.init(params))

    def abstract(self, mesh: Mesh) -> TrainState:
        """Shapes, dtypes and shardings of the state: a template to restore into."""
        return templates(mesh, self._shapes)

    def create(self, init_seed: int, mesh: Mesh) -> TrainState:
        """A fresh state as global arrays."""
        if mesh not in self._inits:
            # One jitted init: Orbax refuses host-local leaves, and eager init takes half a minute.
            self._inits[mesh] = jax.jit(self.init, out_shardings=layout(mesh, self._shapes))
        return self._inits[mesh](jnp.uint32(init_seed))

    @functools.cached_property
    def _inits(self) -> dict[Mesh, Callable[[UInt[Array, ""]], TrainState]]:
        return {}

    @functools.cached_property
    def _shapes(self) -> TrainState:
        return jax.eval_shape(self.init, jax.ShapeDtypeStruct((), jnp.uint32))


def split(method: Method) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The static graph, the trainable parameters and all other variables of a method."""
    return nnx.split(method, nnx.Param, ...)


def merge(graph: nnx.GraphDef, params: nnx.State, rest: nnx.State) -> Method:
    """The inverse of `split`; a copy, so that assigning to it leaves the arguments alone."""
    return nnx.merge(graph, params, rest, copy=True)


def traced_scalars(config: ConfigDict) -> Hyper:
    """Every scalar by which two members of a population may differ, as arrays.

    All leaves of ``config.hyper`` as float32, those of schedules by name, and ``init_seed`` and
    ``data_seed`` as uint32.
    """
    seeds = {name: jnp.uint32(config[name]) for name in ("init_seed", "data_seed")}
    return schedules.traced(config.hyper) | seeds
