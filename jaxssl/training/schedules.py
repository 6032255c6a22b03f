"""Numbers that move during training: one mechanism for every leaf of ``config.hyper``.

A leaf is a number, which stays, or a group, which is a schedule:

    value          what it is after the warm-up, the number a study sweeps
    warmup_epochs  length of a linear warm-up, epochs, may be fractional; 0: none
    warmup_from    what it is at step 0 of the warm-up
    shape          how it goes from ``value`` to ``end``, a key of `SHAPES`; a "switch" has no
                   slopes: ``warmup_from`` for ``warmup_epochs``, then ``value``
    end            what it is at the horizon, ``config.epochs``
    granularity    how often the shape moves, a key of `GRANULARITIES`; the warm-up moves each step

The three values are traced, so one compiled step serves every member of a sweep; the rest is
static. A schedule is evaluated once a step and handed on as a scalar.
"""

import dataclasses
import fractions
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from jaxssl.errors import UserError, choose
from jaxssl.ranges import ANY, NON_NEGATIVE, Range, Ranges, check_ranges, is_schedule, values_of

TRACED = ("warmup_from", "value", "end")
FIELDS = (*TRACED, "warmup_epochs", "shape", "granularity")
MOMENTS = 10_000  # at which numbers that move together are checked

# Where "stepped" falls: epochs 155, 170 and 185 of 200 (Wang & Isola, arXiv:2005.10242).
FALLS = (0.775, 0.85, 0.925)


def _stepped(progress: Float[Array, ""]) -> Float[Array, ""]:
    # A quotient of epochs falls short of the one it stands for by an ulp or two.
    passed = sum(jnp.int32(progress >= fall - 1e-6) for fall in FALLS)
    return jnp.array([10.0**-n for n in range(len(FALLS) + 1)], progress.dtype)[passed]


# From the progress in [0, 1] to the share of ``value`` that is left; the rest is ``end``.
SHAPES: dict[str, Callable[[Float[Array, ""]], Float[Array, ""]]] = {
    "constant": jnp.ones_like,
    "switch": jnp.ones_like,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
    "stepped": _stepped,  # a tenth from each of `FALLS` on: a thousandth is left at the horizon
}

# The epoch that a shape sees, from the exact one and the number of whole ones.
GRANULARITIES: dict[str, Callable[[Array, Array], Array]] = {
    "step": lambda epoch, whole: epoch,
    "epoch": lambda epoch, whole: whole,  # MoCo's main program: the first is 0
    "epoch_from_one": lambda epoch, whole: whole + 1.0,  # MoCo's CIFAR demo: the last is final
}


def whole_epochs(step: Int[Array, ""] | int, steps_per_epoch: fractions.Fraction) -> Int[Array, ""]:
    """floor(step / steps_per_epoch), exact for steps up to 2^31 - 1 and runs of 2^23 epochs.

    Under ``jit`` a division of floats by a constant becomes a product with its reciprocal, which
    falls short of whole numbers: an epoch would begin a step late.
    """
    step = jnp.asarray(step, jnp.int32)
    examples, batch = steps_per_epoch.numerator, steps_per_epoch.denominator
    near = jnp.floor(step.astype(jnp.float32) / float(steps_per_epoch)).astype(jnp.int32)
    # At most one off; the products wrap around, but what they differ by fits.
    left = step * jnp.int32(batch) - near * jnp.int32(examples)
    return near + (left >= examples) - (left < 0)


def check_schedule(name: str, leaf: Any, allowed: Range, epochs: float) -> None:
    """Refuses a leaf of ``config.hyper`` with a value out of range or a field without meaning.

    Raises:
      UserError: naming it.
    """
    if is_schedule(leaf):
        if set(leaf) != set(FIELDS):
            raise UserError(
                f"--config.hyper.{name} is a schedule and must have exactly the fields "
                f"{', '.join(FIELDS)}: mend {', '.join(sorted(set(leaf) ^ set(FIELDS)))}."
            )
        choose(f"hyper.{name}.shape", leaf["shape"], SHAPES)
        choose(f"hyper.{name}.granularity", leaf["granularity"], GRANULARITIES)
        if not NON_NEGATIVE.holds(leaf["warmup_epochs"]) or leaf["warmup_epochs"] >= epochs:
            raise UserError(
                f"--config.hyper.{name}.warmup_epochs={leaf['warmup_epochs']} must be at least 0 "
                f"and less than --config.epochs={epochs:g}."
            )
    for field, value in values_of(leaf).items():
        if not allowed.holds(value):
            flag = f"{name}.{field}" if field else name
            raise UserError(f"--config.hyper.{flag}={value} must be {allowed}.")
    if is_schedule(leaf):  # what its shape does not read becomes a float32 too
        check_ranges(f"hyper.{name}", leaf, dict.fromkeys(TRACED, ANY))


def check_hyper(hyper: ConfigDict, epochs: float, readers: Mapping[str, Ranges]) -> None:
    """Refuses a leaf of ``hyper`` that is missing, out of range, or read by nothing.

    Args:
      hyper: the ``hyper`` group.
      epochs: the horizon of schedules.
      readers: what each reader reads, with ranges.

    Raises:
      UserError: naming it.
    """
    allowed = {}
    for reader, ranges in readers.items():
        for name, values in ranges.items():
            if name not in hyper:
                raise UserError(
                    f"--config.hyper has no {name}, which {reader} reads: put it into the recipe's "
                    "hyper group (recipes of shipped policies take policy=NAME as an argument)."
                )
            allowed[name] = values
    for name, leaf in hyper.items():
        if name not in allowed:
            raise UserError(
                f"--config.hyper.{name} is read by nothing in this config: remove it from the "
                "recipe, or choose what reads it."
            )
        check_schedule(name, leaf, allowed[name], epochs)


@dataclasses.dataclass(frozen=True)
class Schedules:
    """The static half of all schedules of a run.

    Attributes:
      epochs: the horizon.
      steps_per_epoch: images of an epoch over images of a step, exact.
      leaves: by name: warm-up in epochs, shape, granularity.
    """

    epochs: float | int
    steps_per_epoch: fractions.Fraction
    leaves: Mapping[str, tuple[float, str, str]]

    @classmethod
    def from_config(
        cls,
        hyper: ConfigDict,
        epochs: float | int,
        steps_per_epoch: fractions.Fraction | float | int,
    ) -> "Schedules":
        """The schedules among the leaves of ``config.hyper``."""
        leaves = {
            name: (float(leaf.warmup_epochs), leaf.shape, leaf.granularity)
            for name, leaf in hyper.items()
            if is_schedule(leaf)
        }
        exact = fractions.Fraction(steps_per_epoch).limit_denominator(2**30)
        return cls(float(epochs), exact, leaves)

    def at(self, hyper: Mapping[str, Any], step: Int[Array, ""] | int) -> dict[str, Array]:
        """Every leaf of `traced` as the scalar that it is at a step, which may be traced."""
        return {
            name: self._scalar(name, leaf, step) if name in self.leaves else leaf
            for name, leaf in hyper.items()
        }

    def path(self, hyper: ConfigDict, names: Collection[str]) -> dict[int, dict[str, float]]:
        """What leaves of ``config.hyper`` are together on their way to the horizon, by step.

        At every step, or at `MOMENTS` evenly spread ones and both sides of the end of each warm-up
        where there are more; at step 0 alone if none of the leaves is a schedule.
        """
        moving = [name for name in names if name in self.leaves]
        last = int(self.epochs * self.steps_per_epoch) if moving else 0
        ends = [self.leaves[name][0] * float(self.steps_per_epoch) for name in moving]
        steps = np.unique(
            np.clip(
                [
                    *np.linspace(0, last, min(last + 1, MOMENTS)).round(),
                    *(step for end in ends for step in (math.ceil(end) - 1, math.ceil(end))),
                ],
                0,
                last,
            ).astype(np.int32)
        )
        with jax.enable_x64(True):
            leaves = {
                name: {field: jnp.float64(hyper[name][field]) for field in TRACED}
                for name in moving
            }
            values = jax.device_get(jax.vmap(lambda step: self.at(leaves, step))(steps))
        for name, found in values.items():  # an end itself, and not what it is rounded to
            read = values_of(hyper[name]).values()
            values[name] = np.clip(found, min(read), max(read))
        return {
            int(step): {n: float(values[n][i]) if n in values else hyper[n] for n in names}
            for i, step in enumerate(steps)
        }

    def _scalar(
        self, name: str, leaf: Mapping[str, Any], step: Int[Array, ""] | int
    ) -> Float[Array, ""]:
        warmup, shape, granularity = self.leaves[name]
        epoch = jnp.asarray(step, jnp.float32) / float(self.steps_per_epoch)
        whole = whole_epochs(step, self.steps_per_epoch).astype(jnp.float32)
        if shape == "switch":
            on = whole >= warmup if warmup.is_integer() else epoch >= warmup
            return jnp.where(on, leaf["value"], leaf["warmup_from"])
        moved = GRANULARITIES[granularity](epoch, whole)
        progress = jnp.clip((moved - warmup) / (self.epochs - warmup), 0.0, 1.0)
        share = SHAPES[shape](progress)
        value = leaf["value"]
        if shape != "constant":
            value = value * share + leaf["end"] * (1.0 - share)
        if warmup == 0.0:
            return value
        rising = leaf["warmup_from"] + (leaf["value"] - leaf["warmup_from"]) * (epoch / warmup)
        return jnp.where(epoch < warmup, rising, value)


def traced(hyper: ConfigDict) -> dict[str, Any]:
    """The traced half of ``config.hyper``: float32 scalars, and `TRACED` of each schedule."""
    return {
        name: {field: jnp.float32(leaf[field]) for field in TRACED}
        if is_schedule(leaf)
        else jnp.float32(leaf)
        for name, leaf in hyper.items()
    }
