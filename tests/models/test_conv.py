"""The convolution of a CPU against lax's own, under all that is done with it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec
from quick_compilation import quick_jit
from support import tree_distance

from jaxssl.compilation import known_cpu_options
from jaxssl.models.conv import convolve

NAMES = ("NHWC", "HWIO", "NHWC")
# Side of the kernel, stride, zero pixels on each side.
CASES = {
    "3x3": (3, 1, 1),
    "3x3, stride 2": (3, 2, 1),
    "3x3, valid": (3, 2, 0),
    "1x1": (1, 1, 0),
    "1x1, stride 2": (1, 2, 0),
    "1x1, padded": (1, 1, 1),
    "stem of ImageNet": (7, 2, 3),
}


def problem(case, dtype="float64", batch=4, side=9, inputs=5, outputs=6):
    """Both convolutions of a case, an image batch, a kernel, and weights of a loss."""
    size, stride, pad = CASES[case]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, side, side, inputs))
    kernel = rng.normal(size=(size, size, inputs, outputs)) / size
    out = (side + 2 * pad - size) // stride + 1
    weights = rng.normal(size=(batch, out, out, outputs))

    def of(function):
        def call(x, kernel):
            return function(
                x,
                kernel,
                (stride, stride),
                ((pad, pad), (pad, pad)),
                dimension_numbers=NAMES,
                lhs_dilation=(1, 1),
                rhs_dilation=(1, 1),
                feature_group_count=1,
                precision=None,
            )

        return call

    arrays = (jnp.asarray(array, dtype) for array in (x, kernel, weights))
    return (of(convolve), of(jax.lax.conv_general_dilated), *arrays)


def loss_of(convolution, x, kernel, weights):
    return jnp.sum(jnp.tanh(convolution(x, kernel)) * weights)


def gradients_of(convolution):
    return jax.value_and_grad(functools.partial(loss_of, convolution), (0, 1))


def distance(transform, case, dtype="float64"):
    """How far ``transform`` of the loss differs between the two convolutions."""
    with jax.enable_x64(dtype == "float64"):
        ours, theirs, *arrays = problem(case, dtype)

        @quick_jit
        def both(*arrays):
            return [transform(functools.partial(loss_of, f), *arrays) for f in (ours, theirs)]

        return tree_distance(*both(*arrays))


def gradients(loss, *arrays):
    return jax.value_and_grad(loss, (0, 1, 2))(*arrays)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_laxs(case):
    assert distance(gradients, case) <= 1e-14
    assert distance(gradients, case, "float32") <= 1e-6


def test_bfloat16_rounds_as_laxs_does():
    for case in ("3x3", "1x1, stride 2"):
        # Two roundings to 8 bits apart: JAX 0.12 adds in another order than 0.10.
        assert distance(gradients, case, "bfloat16") <= 2**-7
    ours, _, x, kernel, _ = problem("1x1", "bfloat16")
    assert ours(x, kernel).dtype == jnp.bfloat16


def mapped(loss, x, kernel, weights):
    """The gradient of each of two batches, and of two kernels on one batch."""
    halves = [array.reshape(2, 2, *array.shape[1:]) for array in (x, weights)]
    kernels = jnp.stack([kernel, 2 * kernel])
    return (
        jax.vmap(jax.grad(loss, (0, 1)), (0, None, 0))(halves[0], kernel, halves[1]),
        jax.vmap(jax.grad(loss, (0, 1)), (None, 0, None))(x, kernels, weights),
    )


def rematerialised(loss, *arrays):
    return jax.grad(jax.checkpoint(loss), (0, 1))(*arrays)


def twice(loss, x, kernel, weights):
    """Reverse over reverse."""

    def size_of_gradient(x, kernel):
        return sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(x, kernel, weights))

    return jax.grad(size_of_gradient, (0, 1))(x, kernel)


def forward(loss, x, kernel, weights):
    """Forward mode, alone and over reverse."""
    tangents = (jnp.cos(x), jnp.sin(kernel))
    slope = jax.jvp(lambda x, k: loss(x, k, weights), (x, kernel), tangents)
    gradient = jax.grad(loss, (0, 1))
    return slope, jax.jvp(lambda x, k: gradient(x, k, weights), (x, kernel), tangents)


@pytest.mark.parametrize("transform", [mapped, rematerialised, twice, forward])
@pytest.mark.parametrize("case", ["3x3", "3x3, stride 2", "1x1, stride 2"])
def test_transformations_are_laxs(transform, case):
    assert distance(transform, case) <= 1e-12


def sharded_problem(case):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    rows, whole = PartitionSpec("data"), PartitionSpec()
    ours, theirs, x, kernel, weights = problem(case, batch=32, side=8)
    return mesh, rows, whole, ours, theirs, (x, kernel, weights)


@pytest.mark.parametrize("case", ["3x3", "1x1, stride 2"])
def test_in_shard_map_the_gradient_is_the_sum_over_devices(case):
    with jax.enable_x64(True):
        mesh, rows, whole, ours, theirs, arrays = sharded_problem(case)

        def local(x, kernel, weights):
            gradient = jax.grad(functools.partial(loss_of, ours), (0, 1))(x, kernel, weights)
            return gradient[0], gradient[1]

        split = jax.shard_map(
            local, mesh=mesh, in_specs=(rows, whole, rows), out_specs=(rows, whole)
        )
        expected = jax.grad(functools.partial(loss_of, theirs), (0, 1))
        assert tree_distance(quick_jit(split)(*arrays), quick_jit(expected)(*arrays)) <= 1e-14


@pytest.mark.parametrize("case", ["3x3", "1x1, stride 2"])
def test_devices_share_the_work(case):
    with jax.enable_x64(True):
        mesh, rows, whole, ours, _, arrays = sharded_problem(case)
        placed = [NamedSharding(mesh, spec) for spec in (rows, whole, rows)]
        split = quick_jit(gradients_of(ours), in_shardings=placed).lower(*arrays).compile()
        one = quick_jit(gradients_of(ours)).lower(*arrays).compile()
        assert tree_distance(split(*map(jax.device_put, arrays, placed)), one(*arrays)) <= 1e-14
        assert split.cost_analysis()["flops"] <= 1.1 * one.cost_analysis()["flops"] / 4


def test_barriers_live_through_the_compilation_of_a_program():
    """XLA has a pass that takes them out, and says nothing if asked to leave out another one."""
    ours, _, *arrays = problem("3x3", "float32")
    program = jax.jit(gradients_of(ours), compiler_options=known_cpu_options())
    assert program.lower(*arrays).compile().as_text().count(" opt-barrier(") >= 3


def test_elsewhere_it_is_laxs_own():
    ours, theirs, *arrays = problem("1x1, stride 2", "float32")
    chip = AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=chip)):
        assert str(jax.make_jaxpr(ours)(*arrays[:2])) == str(jax.make_jaxpr(theirs)(*arrays[:2]))
    assert "optimization_barrier" in str(jax.make_jaxpr(ours)(*arrays[:2]))
