"""Networks for tests without the seconds that compiling an initialisation takes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from quick_compilation import quick, quick_jit
from support import tree_distance


def abstract(build: Callable[[nnx.Rngs], nnx.Module]):
    """Graph, parameters and other state of a module as shapes: nothing is computed."""
    module = nnx.eval_shape(lambda: build(nnx.Rngs(params=jax.random.key(0))))
    return nnx.split(module, nnx.Param, ...)


def _value(path, leaf, rng):
    # Gammas and betas away from 1 and 0, to hide no mistake.
    name = path[-2].key
    if name == "kernel":
        return rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
    start = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0}
    start |= {"class_token": 0.0, "positions": 0.0}
    return start[name] + rng.uniform(0.1, 0.5, leaf.shape)


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


def gradient_on_devices(build, embed, count, *rows):
    """Loss and gradient of ``embed(module, *rows)`` [B, D] in float64 on a mesh, FLOPs a device."""
    mesh = jax.make_mesh(
        (count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )
    sharded = NamedSharding(mesh, PartitionSpec("data"))
    graph, params, rest = filled(build)

    def loss(params, rest, *rows):
        embedded = embed(nnx.merge(graph, params, rest, copy=True), *rows)
        # Each row and each channel with a weight of its own.
        direction = 1 + jnp.sin(jnp.arange(embedded.size, dtype=float)).reshape(embedded.shape)
        return jnp.mean(jnp.sum(embedded * direction, 1) ** 2)

    replicated = NamedSharding(mesh, PartitionSpec())
    shardings = (replicated, replicated, *[sharded for _ in rows])
    arguments = jax.device_put((params, rest, *rows), shardings)
    step = jax.jit(jax.value_and_grad(loss), in_shardings=shardings)
    compiled = step.lower(*arguments).compile(compiler_options=quick())
    return jax.tree.map(np.asarray, compiled(*arguments)), compiled.cost_analysis()["flops"]


def check_that_devices_share_the_work(build, embed, *rows, most=1.1):
    """One device and eight: the same loss and gradient, and an eighth of the FLOPs each."""
    with jax.enable_x64(True):
        (loss, gradient), flops = gradient_on_devices(build, embed, 1, *rows)
        (loss_n, gradient_n), flops_n = gradient_on_devices(build, embed, 8, *rows)
        np.testing.assert_allclose(loss_n, loss, rtol=1e-11)
        assert tree_distance(gradient_n, gradient) < 1e-10
        assert flops_n * 8 < most * flops, flops_n * 8 / flops
