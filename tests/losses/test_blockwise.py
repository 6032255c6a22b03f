"""The blockwise forms: equal to the full matrix, linear in memory."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compilation import once, quick, quick_jit
from support import tree_distance

from jaxssl import losses
from jaxssl.losses.blockwise import _default_block

FULL = 10**6


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


PAIRS = {
    "nt_xent": losses.nt_xent,
    "cross_view": losses.cross_view_nt_xent,
    "decoupled": functools.partial(losses.decoupled_nt_xent, weight=0.3),
    "supcon_outside": lambda z1, z2, **options: losses.supcon(
        z1, z2, jnp.arange(len(z1)) % 5, **options
    ),
    "supcon_inside": lambda z1, z2, **options: losses.supcon(
        z1, z2, jnp.arange(len(z1)) % 5, positives="inside", **options
    ),
    "info_nce": lambda z1, z2, **options: losses.info_nce(z1, z2[:, ::-1], 2 + z2, **options),
    "uniformity": lambda z1, z2, temperature, **options: losses.uniformity(
        jnp.concatenate([z1, z2]), t=1 / temperature, **options
    ),
    "dense": lambda z1, z2, **options: losses.dense_info_nce(
        z1[:24].reshape(6, 4, -1), z2[:24].reshape(6, 4, -1), **options
    ),
}


def with_gradients(name, block_size):
    def loss(z1, z2, temperature):
        return PAIRS[name](z1, z2, temperature=temperature, block_size=block_size)

    return jax.value_and_grad(loss, argnums=(0, 1, 2))


@once
def compiled(name, block_size):
    return quick_jit(with_gradients(name, block_size))


TEMPERATURES = [0.01, 0.05, 0.1, 0.5, 1.0, 10.0]
BLOCKS = [7, 53]


@once
def every(*sizes):
    """All losses in all those block sizes, compiled together."""

    def run(*inputs):
        forms = itertools.product(PAIRS, sizes)
        return {form: with_gradients(*form)(*inputs) for form in forms}

    return quick_jit(run)


@once
def results(temperature, dtype):
    with jax.enable_x64(dtype == "float64"):
        z1, z2 = draw(27, 5), draw(27, 5, seed=1)
        arrays = [x.astype(dtype) for x in (z1, z1 + z2)]  # positives at all angles
        program = every(FULL, *BLOCKS) if dtype == "float64" else every(FULL, BLOCKS[0])
        return jax.tree.map(np.asarray, program(*arrays, np.asarray(temperature, dtype)))


def run(name, block, temperature, dtype):
    return results(temperature, dtype)[name, block]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", PAIRS)
def test_blockwise_equals_the_full_matrix(name, temperature):
    value, slopes = run(name, FULL, temperature, "float64")
    for block in BLOCKS:
        ours, our_slopes = run(name, block, temperature, "float64")
        np.testing.assert_allclose(ours, value, rtol=1e-12)
        assert tree_distance(our_slopes[:2], slopes[:2]) < 1e-12
        np.testing.assert_allclose(our_slopes[2], slopes[2], rtol=1e-10)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", PAIRS)
def test_blockwise_is_as_exact_as_the_full_matrix_in_float32(name, temperature):
    """1e-6, or what rounding logits costs: the full matrix itself, or by half a last digit."""
    golden, exact = run(name, FULL, temperature, "float64")
    value, slopes = run(name, FULL, temperature, "float32")
    value_error, slope_error = abs(value - golden), tree_distance(slopes[:2], exact[:2])
    largest_logit = (2 if name == "uniformity" else 1) / temperature
    rounding = np.finfo(np.float32).eps / 2 * largest_logit
    # Uniformity is a difference of logarithms above 1.
    size = max(1, abs(golden)) if name == "uniformity" else abs(golden)
    ours, our_slopes = run(name, BLOCKS[0], temperature, "float32")
    assert abs(ours - golden) <= max(1e-6 * size, 4 * value_error)
    assert tree_distance(our_slopes[:2], exact[:2]) <= max(1e-6, rounding, 4 * slope_error)
    if temperature >= 0.05 and name != "uniformity":
        assert tree_distance(our_slopes[:2], slopes[:2]) < 1e-6


def test_both_branches_of_the_gradient_agree_at_their_border():
    """Rows whose logsumexp lie further apart than float32's exponents take the other branch."""
    z1 = np.concatenate([np.ones((10, 4), np.float32), draw(10, 4)])
    z2 = z1 + np.float32(1e-3) * draw(20, 4, seed=1)
    with jax.enable_x64(True):
        exact = compiled("decoupled", FULL)
        wide = [np.float64(x) for x in (z1, z2)]
        golden = {t: exact(*wide, np.float64(t)) for t in (0.02, 0.005, 0.001)}
    for temperature, (value, slopes) in golden.items():
        ours, our_slopes = compiled("decoupled", 8)(z1, z2, jnp.float32(temperature))
        np.testing.assert_allclose(ours, value, rtol=3e-6)
        assert tree_distance(our_slopes[:2], slopes[:2]) < 1e-5 / temperature**0.5


def test_extreme_temperature_neither_overflows_nor_vanishes():
    z1, z2 = draw(40, 8), draw(40, 8, seed=1)
    for block in (FULL, 16):
        value, slopes = compiled("nt_xent", block)(z1, z2, jnp.float32(1e-3))
        assert np.isfinite(value)
        assert all(np.all(np.isfinite(x)) for x in slopes)
        assert np.linalg.norm(slopes[0]) > 1


def held(function, *shapes):
    """Bytes of temporaries of the program, which quick compilation does not change."""
    program = jax.jit(function).lower(*shapes).compile(compiler_options=quick())
    return program.memory_analysis().temp_size_in_bytes


def temporaries(name, rows, block):
    shape = jax.ShapeDtypeStruct((rows, 8), jnp.float32)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    return held(with_gradients(name, block), shape, shape, scalar)


# "decoupled" calls what "nt_xent" calls, and "info_nce" what "cross_view" does.
@pytest.mark.parametrize(
    "name", ["nt_xent", "cross_view", "supcon_outside", "supcon_inside", "uniformity"]
)
def test_memory_is_linear(name):
    """Temporaries double with the batch; those of the full matrix would grow fourfold."""
    assert temporaries(name, 2048, 128) < 2.3 * temporaries(name, 1024, 128)
    assert temporaries(name, 2048, 128) < 2048 * 2048 * 4 / 4


def test_memory_of_the_full_matrix_is_not():
    assert temporaries("nt_xent", 1024, FULL) > 1024 * 1024 * 4


@pytest.mark.parametrize(
    ("rows", "side"),
    [
        *((4096, 512), (8192, 512), (32768, 1024), (262144, 4096), (3072, 512)),
        *((2000, 400), (2064, 688), (2080, 416), (12000, 480), (100_000, 2000)),
        (2 * 2053, 512),  # no divisor near it: padded
    ],
)
def test_tiles_divide_the_rows_and_devices_the_tiles(rows, side):
    assert _default_block(rows, rows, 128) == side


DENSE = {
    "info_nce": functools.partial(losses.dense_info_nce, temperature=0.1, block_size=128),
    "uniformity": losses.dense_uniformity,
    "uniformity_tiles": functools.partial(losses.dense_uniformity, block_size=128),
}


def dense_temporaries(name, images, cells=64):
    maps = jax.ShapeDtypeStruct((images, cells, 8), jnp.float32)
    return held(jax.value_and_grad(DENSE[name], argnums=(0, 1)), maps, maps)


@pytest.mark.parametrize(("name", "images"), [("info_nce", 16), ("uniformity", 128)])
def test_memory_of_dense_losses_is_linear(name, images):
    assert dense_temporaries(name, 2 * images) < 2.5 * dense_temporaries(name, images)


def test_tiles_of_one_cell_are_held_at_a_time():
    """Those of 64 cells alone would be 4 MiB, held twice and more."""
    assert dense_temporaries("uniformity_tiles", 256) < 1.5 * 64 * 128**2 * 4


def test_a_large_batch_chooses_tiles_by_itself():
    z = jax.ShapeDtypeStruct((4096, 8), jnp.float32)
    loss = functools.partial(losses.nt_xent, temperature=0.1)
    assert held(jax.grad(loss), z, z) < 8192 * 8192 * 4 / 8


@pytest.mark.slow
def test_a_quarter_million_embeddings_compile_below_one_gibibyte():
    z = jax.ShapeDtypeStruct((131072, 128), jnp.float32)
    loss = functools.partial(losses.nt_xent, temperature=0.1)
    assert held(jax.value_and_grad(loss, argnums=(0, 1)), z, z) < 2**30


def test_the_full_matrix_can_be_differentiated_twice():
    loss = functools.partial(losses.nt_xent, temperature=0.5)
    hessian = quick_jit(jax.hessian(loss))(draw(4, 3), draw(4, 3, seed=1))
    assert np.all(np.isfinite(hessian))
