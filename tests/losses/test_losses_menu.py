"""What every loss must do: compile, batch, take traced scalars, have the right gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses_menu import CASES
from support import tree_distance

# Their output has no gradient at all, so there is none to a scalar either.
CONSTANT = ("sinkhorn_knopp", "dino_center")
NO_GRADIENT = {"teacher_temperature", "momentum"}

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@each_case
def test_jit_with_traced_scalars_equals_eager(case):
    arrays = case.arrays(jnp.float32)
    eager = case(arrays, case.scalars)
    scalars = {name: jnp.float32(value) for name, value in case.scalars.items()}
    compiled = jax.jit(case.__call__)(arrays, scalars)
    assert eager.shape == ()
    assert eager.dtype == jnp.float32
    np.testing.assert_allclose(compiled, eager, rtol=2e-6)


@each_case
def test_gradient_is_the_finite_difference(case):
    with jax.enable_x64(True):
        arrays = case.arrays(jnp.float64)
        scalars = {name: jnp.float64(value) for name, value in case.scalars.items()}
        loss = jax.jit(case.__call__)
        assert loss(arrays, scalars).dtype == jnp.float64
        if not case.live:
            return
        slopes = jax.jit(jax.grad(case.__call__, argnums=(0, 1)))(arrays, scalars)
        rng = np.random.default_rng(1)
        for place, inputs in enumerate((arrays, scalars)):
            for name, value in inputs.items():
                if name in NO_GRADIENT or (place == 0 and name not in case.live):
                    continue
                direction = rng.normal(size=value.shape)
                step = 1e-6 * float(jnp.abs(value).max())
                ends = []
                for sign in (1, -1):
                    moved = [arrays, scalars]
                    moved[place] = {**inputs, name: value + sign * step * direction}
                    ends.append(float(loss(*moved)))
                slope = (ends[0] - ends[1]) / (2 * step)
                assert abs(slope) > 1e-6, f"{name} does nothing"
                ours = float(jnp.sum(slopes[place][name] * direction))
                np.testing.assert_allclose(ours, slope, rtol=2e-6, atol=1e-8, err_msg=name)


@each_case
def test_constants_have_exactly_no_gradient(case):
    arrays = case.arrays(jnp.float32)
    still = {name: x for name, x in arrays.items() if name not in case.live}
    if not still:
        pytest.skip("every array is live")
    slopes = jax.jit(jax.grad(lambda still: case({**arrays, **still}, case.scalars)))(still)
    for slope in slopes.values():
        np.testing.assert_array_equal(slope, 0)


@each_case
def test_vmap_equals_a_loop(case):
    members = [case.arrays(jnp.float32, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *members)
    factors = jnp.array([0.8, 1.0, 1.3])
    scalars = {name: value * factors for name, value in case.scalars.items()}

    def both(arrays, scalars):
        return jax.value_and_grad(case.__call__)(arrays, scalars)

    together = jax.jit(jax.vmap(both))(stacked, scalars)
    one = jax.jit(both)
    for member, arrays in enumerate(members):
        alone = one(arrays, {name: value[member] for name, value in scalars.items()})
        ours = jax.tree.map(lambda x, member=member: x[member], together)
        np.testing.assert_allclose(ours[0], alone[0], rtol=2e-6)
        if case.live:
            assert tree_distance(ours[1], alone[1]) < 3e-6


@each_case
def test_bfloat16_is_promoted_before_anything_else(case):
    half = case.arrays(jnp.bfloat16)
    value = case(half, case.scalars)
    assert value.dtype == jnp.float32
    whole = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    np.testing.assert_allclose(value, case(whole, case.scalars), rtol=1e-6)


@each_case
def test_empty_and_unequal_batches_are_refused(case):
    arrays = case.arrays(jnp.float32)
    first = next(iter(arrays))
    loss = unwrapped(case)
    with pytest.raises(ValueError, match=r"nothing to average over|differ|has shape|for 0|views"):
        loss({name: x[:0] for name, x in arrays.items()})
    if len(arrays) > 1:
        with pytest.raises(ValueError, match=r"differ|views|for \d"):
            loss({**arrays, first: arrays[first][..., :-1]})


def unwrapped(case):
    """The case without jaxtyping's checks, which would raise first."""
    from support import unchecked

    import jaxssl.losses

    names = {
        "Keyed": lambda: getattr(case.loss, "loss", None),
        "assignments": lambda: jaxssl.losses.sinkhorn_knopp,
        "centre": lambda: jaxssl.losses.dino_center,
    }
    kind = type(case.loss).__name__
    function = (
        names[kind]() if kind in names else names.get(case.loss.__name__, lambda: case.loss)()
    )
    key = {"key": jax.random.key(5)} if kind == "Keyed" else {}
    integers = {name: jnp.asarray(value) for name, value in case.integers.items()}

    def run(arrays):
        return unchecked(function)(**arrays, **case.scalars, **case.fixed, **integers, **key)

    return run
