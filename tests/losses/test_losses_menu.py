"""What every loss must do: compile, batch, take traced scalars, have the right gradient."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses_menu import CASES
from quick_compilation import quick_jit
from support import tree_distance

from jaxssl import losses

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def with_gradients(case):
    """Value, and gradients to arrays and scalars."""
    return jax.value_and_grad(case.__call__, argnums=(0, 1))


@functools.cache
def compiled(case):
    """Everything traced; compiled once for each precision."""
    return quick_jit(with_gradients(case))


def traced(case, dtype):
    return {name: jnp.asarray(value, dtype) for name, value in case.scalars.items()}


@each_case
def test_traced_scalars_equal_known_ones(case):
    arrays = case.arrays(jnp.float32)
    known = quick_jit(lambda arrays: case(arrays, case.scalars))(arrays)
    assert known.shape == ()
    assert known.dtype == jnp.float32
    value, _ = compiled(case)(arrays, traced(case, jnp.float32))
    np.testing.assert_allclose(value, known, rtol=2e-6)


@each_case
def test_gradient_is_the_finite_difference(case):
    with jax.enable_x64(True):
        arrays = case.arrays(jnp.float64)
        scalars = traced(case, jnp.float64)
        loss = compiled(case)
        value, slopes = loss(arrays, scalars)
        assert value.dtype == jnp.float64
        if not case.live:
            return
        rng = np.random.default_rng(1)
        for place, inputs in enumerate((arrays, scalars)):
            for name, value in inputs.items():
                if name in case.constants or (place == 0 and name not in case.live):
                    continue
                direction = rng.normal(size=value.shape)
                step = 1e-6 * float(jnp.abs(value).max())
                ends = []
                for sign in (1, -1):
                    moved = [arrays, scalars]
                    moved[place] = {**inputs, name: value + sign * step * direction}
                    ends.append(float(loss(*moved)[0]))
                slope = (ends[0] - ends[1]) / (2 * step)
                assert abs(slope) > 1e-6, f"{name} does nothing"
                ours = float(jnp.sum(slopes[place][name] * direction))
                np.testing.assert_allclose(ours, slope, rtol=2e-6, atol=1e-8, err_msg=name)


@each_case
def test_constants_have_exactly_no_gradient(case):
    arrays = case.arrays(jnp.float32)
    _, (slopes, scalar_slopes) = compiled(case)(arrays, traced(case, jnp.float32))
    for name, slope in slopes.items():
        assert np.any(np.asarray(slope)) == (name in case.live), name
    for name, slope in scalar_slopes.items():
        assert (slope != 0) == (name not in case.constants), name


@each_case
def test_nans_and_infinities_reach_the_loss(case):
    """Whatever array holds one, or a diverged run would go on with a small loss."""
    arrays = case.arrays(jnp.float32)
    loss, scalars = compiled(case), traced(case, jnp.float32)
    for name, x in arrays.items():
        for bad in (jnp.nan, jnp.inf):
            if (name, bad) == ("center", jnp.inf):
                continue  # takes a class out of the teacher's softmax
            value, _ = loss({**arrays, name: x.at[(0,) * x.ndim].set(bad)}, scalars)
            assert not jnp.isfinite(value), (name, bad)


@each_case
def test_vmap_equals_a_loop(case):
    members = [case.arrays(jnp.float32, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *members)
    factors = jnp.array([0.8, 1.0, 1.3])
    scalars = {name: value * factors for name, value in case.scalars.items()}

    one = compiled(case)
    together = quick_jit(jax.vmap(with_gradients(case)))(stacked, scalars)
    for member, arrays in enumerate(members):
        alone = one(arrays, {name: value[member] for name, value in scalars.items()})
        ours = jax.tree.map(lambda x, member=member: x[member], together)
        np.testing.assert_allclose(ours[0], alone[0], rtol=2e-6)
        if case.live:
            assert tree_distance(ours[1][0], alone[1][0]) < 3e-6


@each_case
def test_bfloat16_is_promoted_before_anything_else(case):
    half, scalars = case.arrays(jnp.bfloat16), traced(case, jnp.float32)
    value = quick_jit(case.__call__)(half, scalars)
    assert value.dtype == jnp.float32
    whole = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    np.testing.assert_allclose(value, compiled(case)(whole, scalars)[0], rtol=1e-6)


@each_case
def test_empty_and_unequal_batches_are_refused(case, own_errors):
    arrays = case.arrays(jnp.float32)
    first = next(iter(arrays))
    with pytest.raises(ValueError, match=r"nothing to average over|views: give"):
        case({name: x[:0] for name, x in arrays.items()}, case.scalars)
    if len(arrays) > 1:
        with pytest.raises(ValueError, match="differ"):
            case({**arrays, first: arrays[first][..., :-1]}, case.scalars)
    with pytest.raises(ValueError, match=r"has shape|shapes differ"):
        case({**arrays, first: arrays[first][..., None]}, case.scalars)
    with pytest.raises(ValueError, match="dtype"):
        case({name: x.astype(int) for name, x in arrays.items()}, case.scalars)


POSITIVE = {"temperature", "t", "alpha", "epsilon", "student_temperature", "teacher_temperature"}
POSITIVE |= {"plan_epsilon"}


@each_case
def test_scalars_that_must_be_positive(case):
    arrays = case.arrays(jnp.float32)
    for name in POSITIVE & set(case.scalars):
        if case.loss is losses.barlow_twins:
            continue  # its epsilon may be zero
        for value in (0.0, -0.1, float("nan"), jnp.float32(0)):
            with pytest.raises(ValueError, match=rf"{name}=.*above 0"):
                case(arrays, {**case.scalars, name: value})


ALONE = ("nt_xent", "decoupled", "cross_view", "supcon_outside", "generalized_eq4", "uniformity")
ALONE += ("alignment_and_uniformity", "barlow_twins", "dense_index", "dense_uniformity")


@pytest.mark.parametrize("name", ALONE)
def test_one_image_alone_is_refused(name):
    case = CASES[name]
    alone = {key: x[:1] for key, x in case.arrays(jnp.float32).items()}
    integers = {key: value[:1] for key, value in case.integers.items()}
    with pytest.raises(ValueError, match="no negatives"):
        replace(case, integers=integers)(alone, case.scalars)
