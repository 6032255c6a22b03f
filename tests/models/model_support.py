"""Networks for tests without the seconds that compiling an initialisation takes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from quick_compilation import quick_jit


def abstract(build: Callable[[nnx.Rngs], nnx.Module]):
    """Graph, parameters and other state of a module as shapes: nothing is computed."""
    module = nnx.eval_shape(lambda: build(nnx.Rngs(params=jax.random.key(0))))
    return nnx.split(module, nnx.Param, ...)


def _value(path, leaf, rng):
    # Gammas and betas away from 1 and 0, to hide no mistake.
    name = path[-2].key
    if name == "kernel":
        return rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
    start = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0}[name]
    return start + rng.uniform(0.1, 0.5, leaf.shape)


def filled(build: Callable[[nnx.Rngs], nnx.Module], seed=0):
    """Graph, parameters and other state of a module, with values drawn by NumPy."""
    rng = np.random.default_rng(seed)
    graph, *states = abstract(build)
    return graph, *(
        jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.asarray(_value(path, leaf, rng), leaf.dtype), state
        )
        for state in states
    )


def forward(graph, params, rest, x, train):
    """The module's output, and the rest of its state afterwards."""
    module = nnx.merge(graph, params, rest, copy=True)
    output = module(x, train)
    return output, nnx.split(module, nnx.Param, ...)[2]


jitted_forward = quick_jit(forward, static_argnums=(0, 4))


def weights_of(params):
    """Parameters as nested dicts of NumPy arrays."""
    return jax.tree.map(np.asarray, nnx.to_pure_dict(params))
