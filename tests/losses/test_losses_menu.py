"""What every loss must do: compile, batch, take traced scalars, have the right gradient.

All losses are compiled together, in three programs of one precision each; a loss that fails to
compile is named by a note of the error, and every test names its loss.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses_menu import CASES, Keyed
from quick_compilation import once, quick_jit
from support import tree_distance

from jaxssl import losses

each_case = pytest.mark.parametrize("name", CASES)

# Members of the batched program: draws of the arrays, and factors of the scalars. The last one's
# arrays are rounded to bfloat16.
SEEDS = (0, 1, 2, 0)
FACTORS = np.array([1.0, 0.8, 1.3, 1.0])


# What a key draws depends on the precision.
DRAWN = [name for name, case in CASES.items() if isinstance(case.loss, Keyed)]


def every(apply, names=tuple(CASES)):
    """``apply(case, *inputs)`` of all cases, in one function to compile."""

    def run(inputs):
        out = {}
        for name in names:
            try:
                out[name] = apply(CASES[name], *inputs[name])
            except Exception as error:
                error.add_note(f"in the case {name}")
                raise
        return out

    return run


def with_gradients(case, arrays, scalars):
    """Value, and gradients to arrays and scalars."""
    return jax.value_and_grad(case.__call__, argnums=(0, 1))(arrays, scalars)


@once
def sharp():
    """The losses and gradients in float64."""
    return quick_jit(every(with_gradients))


def in_float64(inputs):
    """name -> (value, gradients) at those inputs, name -> (arrays, scalars)."""
    wide = jax.tree.map(np.float64, inputs)
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, sharp()(wide))


def member_inputs(member):
    """Numbers that float32 holds."""
    inputs = {}
    for name, case in CASES.items():
        arrays = case.arrays(jnp.float32, SEEDS[member])
        if member == len(SEEDS) - 1:
            arrays = {key: np.float32(x.astype(jnp.bfloat16)) for key, x in arrays.items()}
        scalars = {key: np.float32(x * FACTORS[member]) for key, x in case.scalars.items()}
        inputs[name] = (arrays, scalars)
    return inputs


@once
def alone(member):
    """name -> (value, gradients) in float64, or in float32 where a key draws something."""
    inputs = member_inputs(member)
    drawn = drawn_alone()({name: inputs[name] for name in DRAWN})
    return in_float64(inputs) | jax.tree.map(np.asarray, drawn)


@once
def drawn_alone():
    return quick_jit(every(with_gradients, DRAWN))


@once
def together():
    """All members' losses and gradients in float32, by one batched program."""
    members = [member_inputs(member) for member in range(len(SEEDS))]
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *members)
    return jax.tree.map(np.asarray, quick_jit(jax.vmap(every(with_gradients)))(stacked))


@once
def known_in_bfloat16():
    """Values from bfloat16 arrays and scalars that are Python's numbers."""
    arrays = {name: (case.arrays(jnp.bfloat16),) for name, case in CASES.items()}
    run = quick_jit(every(lambda case, arrays: case(arrays, case.scalars)))
    return jax.tree.map(np.asarray, run(arrays))


@each_case
def test_batched_float32_is_float64_one_by_one(name):
    """Traced scalars, vmap and float32's digits at once."""
    case = CASES[name]
    values, slopes = together()[name]
    assert values.dtype == jnp.float32
    for member in range(len(SEEDS)):
        value, slope = alone(member)[name]
        assert value.dtype == (np.float32 if name in DRAWN else np.float64)
        assert value.shape == ()
        np.testing.assert_allclose(values[member], value, rtol=2e-6)
        if case.live:
            ours = jax.tree.map(lambda x, member=member: x[member], slopes[0])
            assert tree_distance(ours, slope[0]) < 3e-6


@each_case
def test_bfloat16_is_promoted_before_anything_else_and_known_scalars_equal_traced_ones(name):
    value = known_in_bfloat16()[name]
    assert value.dtype == jnp.float32
    assert value.shape == ()
    np.testing.assert_allclose(value, together()[name][0][-1], rtol=2e-6)


def varied(case):
    """Place and name of every input with a gradient: an array or a scalar."""
    live = [(0, name) for name in case.shapes if name in case.live]
    return live + [(1, name) for name in case.scalars if name not in case.constants]


@once
def differences():
    """case -> input -> (slope by finite differences along a direction, slope by the gradient)."""
    start = member_inputs(0)
    gradients = in_float64(start)
    found = {name: {} for name in CASES}
    for turn in range(max(len(varied(case)) for case in CASES.values())):
        # All cases move one input each: two runs of the program serve them all.
        moves = {
            name: varied(case)[turn] for name, case in CASES.items() if turn < len(varied(case))
        }
        directions, steps, ends = {}, {}, []
        for name, (place, key) in moves.items():
            value = start[name][place][key]
            # Not the arrays' own draw: along itself a normalised feature does not move.
            directions[name] = np.random.default_rng(100 + turn).normal(size=value.shape)
            steps[name] = 1e-6 * float(np.abs(value).max())
        for sign in (1, -1):
            moved = dict(start)
            for name, (place, key) in moves.items():
                parts = [dict(part) for part in start[name]]
                parts[place][key] = parts[place][key] + sign * steps[name] * directions[name]
                moved[name] = tuple(parts)
            ends.append(in_float64(moved))
        for name, (place, key) in moves.items():
            slope = (ends[0][name][0] - ends[1][name][0]) / (2 * steps[name])
            ours = np.sum(gradients[name][1][place][key] * directions[name])
            found[name][key] = slope, ours
    return found


@each_case
def test_gradient_is_the_finite_difference(name):
    for key, (slope, ours) in differences()[name].items():
        assert abs(slope) > 1e-6, f"{key} does nothing"
        np.testing.assert_allclose(ours, slope, rtol=2e-6, atol=1e-8, err_msg=key)


@each_case
def test_constants_have_exactly_no_gradient(name):
    case = CASES[name]
    for _, (slopes, scalar_slopes) in (alone(0)[name], together()[name]):
        for key, slope in slopes.items():
            assert np.any(slope) == (key in case.live), key
        for key, slope in scalar_slopes.items():
            assert np.all(slope != 0) == (key not in case.constants), key


@once
def with_bad(turn, bad):
    """All values where the first entry of each case's array number ``turn`` is ``bad``."""
    spoilt = member_inputs(0)
    for arrays, _ in spoilt.values():
        if turn < len(arrays):
            x = list(arrays.values())[turn]
            x[(0,) * x.ndim] = bad
    return {name: value for name, (value, _) in in_float64(spoilt).items()}


@each_case
def test_nans_and_infinities_reach_the_loss(name):
    """Whatever array holds one, or a diverged run would go on with a small loss."""
    for turn, key in enumerate(CASES[name].shapes):
        for bad in (np.nan, np.inf):
            if (key, bad) == ("center", np.inf):
                continue  # takes a class out of the teacher's softmax
            assert not np.isfinite(with_bad(turn, bad)[name]), (key, bad)


def refuse(case, arrays, match, scalars=None):
    """What is wrong is said while the loss is traced, before anything is computed."""
    scalars = case.scalars if scalars is None else scalars
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(lambda arrays: case(arrays, scalars), arrays)


@each_case
def test_empty_and_unequal_batches_are_refused(name, own_errors):
    case = CASES[name]
    arrays = case.arrays(jnp.float32)
    first = next(iter(arrays))
    refuse(case, {key: x[:0] for key, x in arrays.items()}, "nothing to average over")
    if len(arrays) > 1:
        refuse(case, {**arrays, first: arrays[first][..., :-1]}, "differ")
    refuse(case, {**arrays, first: arrays[first][..., None]}, r"has shape|shapes differ")
    refuse(case, {key: x.astype(int) for key, x in arrays.items()}, "dtype")


POSITIVE = {"temperature", "t", "alpha", "epsilon", "student_temperature", "teacher_temperature"}
POSITIVE |= {"plan_epsilon"}


@each_case
def test_scalars_that_must_be_positive(name):
    case = CASES[name]
    arrays = case.arrays(jnp.float32)
    for key in POSITIVE & set(case.scalars):
        if case.loss in (losses.barlow_twins, losses.vicreg):
            continue  # their epsilon may be zero
        for value in (0.0, -0.1, float("nan"), np.float32(0)):
            refuse(case, arrays, rf"{key}=.*above 0", {**case.scalars, key: value})


ALONE = ("nt_xent", "decoupled", "cross_view", "supcon_outside", "generalized_eq4", "uniformity")
ALONE += ("alignment_and_uniformity", "barlow_twins", "dense_index", "dense_uniformity")
ALONE += ("in_batch_info_nce", "vicreg")


@pytest.mark.parametrize("name", ALONE)
def test_one_image_alone_is_refused(name):
    case = CASES[name]
    arrays = {key: x[:1] for key, x in case.arrays(jnp.float32).items()}
    integers = {key: value[:1] for key, value in case.integers.items()}
    refuse(replace(case, integers=integers), arrays, "no negatives")
