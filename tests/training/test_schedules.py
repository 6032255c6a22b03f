"""Schedules of any scalar: key points, whole epochs in integers, what is refused."""

import fractions

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.common import from_epoch, schedule
from jaxssl.errors import UserError
from jaxssl.ranges import POSITIVE, SHARE
from jaxssl.training.schedules import MOMENTS, Schedules, check_schedule, traced, whole_epochs


def scalar(leaf, epochs=20.0, steps_per_epoch=10.0):
    """From a step to what a leaf of ``hyper`` is, jitted."""
    hyper = ConfigDict({"x": leaf, "still": 0.25})
    schedules = Schedules.from_config(hyper, epochs, steps_per_epoch)
    values = jax.jit(schedules.at)
    assert float(values(traced(hyper), 3)["still"]) == 0.25
    return lambda step: float(values(traced(hyper), step)["x"])


def test_warm_up_then_cosine_at_its_key_points():
    rate = scalar(schedule(2.0, end=0.2, warmup_epochs=2.5), epochs=20.5)
    for step, value in [(0, 0.0), (5, 0.4), (25, 2.0), (115, 1.1), (205, 0.2), (500, 0.2)]:
        np.testing.assert_allclose(rate(step), value, atol=2e-6)
    np.testing.assert_allclose(rate(85), 0.2 + 1.8 * 0.5 * (1 + 0.5), rtol=1e-6)  # cos(pi / 3)


def test_what_dino_moves():
    """Decay .04 to .4 and EMA .996 to 1 by cosine, temperature .04 to .07 by a warm-up."""
    decay = scalar(schedule(0.04, end=0.4), epochs=100.0)
    ema = scalar(schedule(0.996, end=1.0), epochs=100.0)
    temperature = scalar(
        schedule(0.07, shape="constant", warmup_epochs=30.0, warmup_from=0.04), epochs=100.0
    )
    assert [decay(step) for step in (0, 500, 1000)] == pytest.approx([0.04, 0.22, 0.4])
    assert [ema(step) for step in (0, 500, 1000)] == pytest.approx([0.996, 0.998, 1.0])
    assert ema(1000) == 1.0
    steps = (0, 150, 300, 301, 1000)
    assert [temperature(step) for step in steps] == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07])


@pytest.mark.parametrize("examples", [105_000, 97])
def test_wang_and_isolas_rate_falls_with_its_epochs(examples):
    """A tenth from the first step of epochs 155, 170 and 185 of 200 on, not a step earlier."""
    per_epoch = fractions.Fraction(examples, 96)
    leaf = ConfigDict({"x": schedule(0.5, shape="stepped", granularity="epoch")})
    values = jax.jit(Schedules.from_config(leaf, 200.0, per_epoch).at)
    for number, epoch in enumerate((155, 170, 185)):
        first = -(-epoch * examples // 96)
        found = [float(values(traced(leaf), step)["x"]) for step in (first - 1, first)]
        assert found == pytest.approx([0.5 * 0.1**number, 0.05 * 0.1**number])
    assert float(values(traced(leaf), 0)["x"]) == 0.5


def test_a_constant_does_not_look_at_its_end_and_small_values_do_not_vanish():
    assert scalar(schedule(0.1, end=1e30, shape="constant"))(7) == pytest.approx(0.1)
    assert scalar(schedule(1e-9, end=1.0, shape="linear"))(0) == pytest.approx(1e-9)


@pytest.mark.parametrize("examples", [97, 1294, 50_000])
def test_a_switch_has_no_slope_and_turns_with_the_epoch(examples):
    """What is frozen or left out at first; a step late or early would be a step of training."""
    per_epoch = fractions.Fraction(examples, 64)
    leaf = ConfigDict({"x": from_epoch(3.0), "y": from_epoch(0.5), "z": from_epoch(0.0)})
    values = jax.jit(Schedules.from_config(leaf, 20.0, per_epoch).at)
    for name, epoch in (("x", 3), ("y", fractions.Fraction(1, 2)), ("z", 0)):
        first = -(-epoch * examples // 64)
        for step in range(max(first - 2, 0), first + 3):
            assert float(values(traced(leaf), step)[name]) == float(step >= first)
    # It has no end, so that none can be wrong.
    check_schedule("x", schedule(1.0, end=-1.0, shape="switch", warmup_epochs=1.0), SHARE, 20.0)


def test_linear_decay_at_its_key_points():
    rate = scalar(schedule(1.0, end=0.1, shape="linear", warmup_epochs=2.5))
    values = [rate(step) for step in (25, 60, 95, 200, 300)]
    assert values == pytest.approx([1.0, 0.82, 0.64, 0.1, 0.1])


@pytest.mark.parametrize("examples", [97, 107, 41, 50_000, 1_281_167])
@pytest.mark.parametrize("batch", [1, 64, 512, 4096])
def test_whole_epochs_are_those_of_integers(examples, batch):
    """With a division in floats, XLA's reciprocal was a step late at 12 of 199 epochs of 97."""
    begins = -(-np.arange(1, 200) * examples // batch)  # first step of each epoch
    far = min(10**6 * examples // batch, 2**31 - 1)
    steps = np.unique(np.concatenate([begins - 1, begins, begins + 1, [0, far]]))
    steps = steps[(steps >= 0) & (steps < 2**31)]
    per_epoch = fractions.Fraction(examples, batch)
    ours = jax.jit(jax.vmap(lambda step: whole_epochs(step, per_epoch)))(jnp.asarray(steps))
    np.testing.assert_array_equal(ours, [int(step) * batch // examples for step in steps])


def test_steps_of_whole_epochs_as_in_moco_and_its_demo():
    per_epoch = fractions.Fraction(50_000, 512)
    for granularity, first in [("epoch", 0), ("epoch_from_one", 1)]:
        rate = scalar(schedule(1.0, granularity=granularity), 200.0, per_epoch)
        for step in (0, 97, 98, 195, 196, 9_765, 9_766, 19_530):
            epoch = step * 512 // 50_000
            expected = 0.5 * (1 + np.cos(np.pi * (epoch + first) / 200))
            np.testing.assert_allclose(rate(step), expected, atol=1e-6)
    assert rate(19_530) < 1e-6  # the demo's last epoch trains with a rate of 0


def test_impossible_schedules_are_refused():
    for leaf, sentence in [
        (
            schedule(0.1, warmup_epochs=20.0),
            "x.warmup_epochs=20.0 must be at least 0 and less",
        ),
        (schedule(0.1, shape="steps"), "--config.hyper.x.shape=steps is unknown"),
        (schedule(0.1, granularity="day"), "--config.hyper.x.granularity=day is unknown"),
        (schedule(0.0), "--config.hyper.x.value=0.0 must be at least 1.2e-38"),
        (schedule(0.1, end=float("nan")), "--config.hyper.x.end=nan must be"),
        (schedule(0.1, end=0.2, warmup_epochs=1.0), "hyper.x.warmup_from=0.0 must be"),
        (ConfigDict({"value": 1.0}), "must have exactly the fields"),
        (1e-40, "--config.hyper.x=1e-40 must be"),
        (schedule(0.1, shape="constant", end=1e300), "--config.hyper.x.end=1e.300 must be"),
    ]:
        with pytest.raises(UserError, match=sentence):
            check_schedule("x", leaf, POSITIVE, 20.0)
    for odd in (None, "x", True, float("inf"), 1e39):
        with pytest.raises(UserError, match=r"--config.hyper.x=.* must be"):
            check_schedule("x", odd, POSITIVE, 20.0)
    # What a schedule never is, is not asked.
    check_schedule("x", schedule(0.1, shape="constant"), POSITIVE, 20.0)
    with pytest.raises(UserError, match=r"end=1.5 must be from 0 to 1"):
        check_schedule("x", schedule(0.9, end=1.5), SHARE, 20.0)


def test_a_path_is_what_the_steps_will_compute():
    hyper = ConfigDict(
        {
            "x": schedule(0.3, end=0.7, warmup_epochs=2.5, warmup_from=0.1),
            "y": schedule(1.0, end=0.1, shape="linear", granularity="epoch"),
            "z": schedule(0.2, shape="constant"),
            "still": 0.25,
        }
    )
    schedules = Schedules.from_config(hyper, 20.0, fractions.Fraction(97, 10))
    path = schedules.path(hyper, ("x", "still", "y", "z"))
    assert sorted(path) == list(range(195))
    values = jax.jit(schedules.at)
    for step in (0, 1, 23, 24, 25, 97, 98, 193, 194):
        expected = {n: float(v) for n, v in values(traced(hyper), step).items()}
        assert path[step] == pytest.approx(expected, rel=1e-6)
    assert path[0]["y"] == 1.0  # an end itself, and not what float32 makes of it
    assert path[50]["z"] == 0.2
    assert schedules.path(hyper, ("still",)) == {0: {"still": 0.25}}
    long = Schedules.from_config(hyper, 20.0, 10**6 + 1).path(hyper, ("x",))
    assert MOMENTS <= len(long) <= MOMENTS + 2
    assert {0, 2_500_002, 2_500_003, 20_000_020} <= set(long)
    assert long[20_000_020]["x"] == 0.7
