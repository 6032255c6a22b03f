"""Optimizers whose learning rate and weight decay are traced, with explicit parameter groups.

An optimizer is an `optax.GradientTransformationExtraArgs`:

    optimizer = make_optimizer(config.optimizer, params)
    opt_state = optimizer.init(params)
    updates, opt_state = optimizer.update(
        grads, opt_state, params, learning_rate=..., weight_decay=...)
    params = optax.apply_updates(params, updates)

so that one compiled step serves every learning rate and decay. The learning rate of a step is
``peak_learning_rate(base, batch_size, scaling) * schedule(step)``.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from jaxssl.errors import UserError, choose

Scalar = Float[Array, ""] | float


class ParameterGroup(NamedTuple):
    """One row of `config.optimizer.groups`: how the parameters that a pattern matches are treated.

    Attributes:
      pattern: regular expression that must match a whole path, such as
        ``encoder/stages/0/1/branch/0/conv/kernel``.
      weight_decay: multiplies the weight decay; 0 for none.
      trust: whether LARS scales the step by the trust ratio; the other optimizers ignore it.
      learning_rate: multiplies the learning rate; 0 freezes the parameters.
    """

    pattern: str
    weight_decay: float
    trust: bool
    learning_rate: float


# Groups for recipes. The first row that matches a parameter governs it.
DECAY_ALL = (ParameterGroup(".*", 1.0, True, 1.0),)
EXCLUDE_BIAS_AND_NORM = (
    ParameterGroup(".*/(bias|scale)", 0.0, False, 1.0),
    ParameterGroup(".*", 1.0, True, 1.0),
)


# --- Parameter groups ---------------------------------------------------------------------------


def _path_name(path: tuple) -> str:
    # Inside an `nnx.State` the array is the attribute `value` of an `nnx.Param`.
    if path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def parameter_paths(params: Any) -> list[str]:
    """The path of every parameter, ``encoder/stem/conv/kernel`` and so on, in tree order.

    Args:
      params: an `nnx.State` of parameters, or a nested dict of arrays.
    """
    return [_path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]


def assign_groups(groups: Sequence[Sequence], params: Any) -> dict[str, ParameterGroup]:
    """The group of every parameter: the first one whose pattern matches the whole path.

    Args:
      groups: rows (pattern, weight_decay, trust, learning_rate) as in `ParameterGroup`.
      params: the parameters, or their shapes.

    Raises:
      UserError: if a pattern governs no parameter, or a parameter has no group.
    """
    rows = [ParameterGroup(*row) for row in groups]
    assigned: dict[str, ParameterGroup] = {}
    for path in parameter_paths(params):
        match = next((row for row in rows if re.fullmatch(row.pattern, path)), None)
        if match is None:
            raise UserError(
                f"no pattern of optimizer.groups matches the parameter {path!r}: "
                "add a row for it, for instance a last one with the pattern '.*'."
            )
        assigned[path] = match
    for row in rows:
        if row not in assigned.values():
            raise UserError(
                f"the pattern {row.pattern!r} of optimizer.groups governs no parameter: correct "
                "it or remove it; earlier rows take precedence, and paths look like "
                f"{next(iter(assigned))!r}."
            )
    return assigned


def describe_groups(groups: Sequence[Sequence], params: Any) -> str:
    """One line a group for the log: its settings, and how many arrays and numbers it governs."""
    assigned = assign_groups(groups, params)
    sizes = dict(
        zip(parameter_paths(params), (leaf.size for leaf in jax.tree.leaves(params)), strict=True)
    )
    lines = []
    for row in (ParameterGroup(*row) for row in groups):
        own = [sizes[path] for path, group in assigned.items() if group == row]
        lines.append(
            f"{row.pattern}: weight decay x {row.weight_decay:g}, "
            f"{'with' if row.trust else 'no'} trust ratio, "
            f"learning rate x {row.learning_rate:g}; {len(own)} arrays, {sum(own):,} numbers"
        )
    return "\n".join(lines)


# --- Learning rate ------------------------------------------------------------------------------

SCALINGS: dict[str, Callable[[float], float]] = {
    "none": lambda batch_size: 1.0,
    "linear": lambda batch_size: batch_size / 256,  # arXiv:1706.02677
    "sqrt": lambda batch_size: batch_size**0.5,  # SimCLR arXiv:2002.05709, appendix B.1
}


def peak_learning_rate(base: Scalar, batch_size: int, scaling: str) -> Scalar:
    """The highest learning rate of a run.

    Args:
      base: the recipe's learning rate; may be traced.
      batch_size: images (not views) of a global batch.
      scaling: "none": base; "linear": base * B / 256; "sqrt": base * sqrt(B).

    Raises:
      UserError: if `scaling` is none of these.
    """
    return base * choose("optimizer.scaling", scaling, SCALINGS)(batch_size)


DECAYS: dict[str, Callable[[Float[Array, ""]], Float[Array, ""]]] = {
    "constant": jnp.ones_like,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
}

# The epoch that the decay sees at a step, from the exact one.
GRANULARITIES: dict[str, Callable[[Float[Array, ""]], Float[Array, ""]]] = {
    "step": lambda epoch: epoch,
    "epoch": jnp.floor,  # MoCo's main program: constant within an epoch, the first is 0
    "epoch_from_one": lambda epoch: jnp.floor(epoch) + 1.0,  # MoCo's CIFAR demo: the last is final
}


def unit_schedule(
    config: ConfigDict, steps_per_epoch: float
) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
    """A schedule with peak 1: linear warm-up from 0, then a decay to `final`.

    Args:
      config: `epochs`: the horizon, where the decay reaches `final`; `warmup_epochs`: length of
        the warm-up, may be fractional, 0 for none; `decay`: a key of `DECAYS`; `final`: the
        factor at the end, in [0, 1]; `granularity`: how often the decay moves, a key of
        `GRANULARITIES` (the warm-up moves every step).
      steps_per_epoch: examples of an epoch / batch size, not rounded.

    Returns:
      A function step -> factor in [0, 1], float32; the step, from 0, may be traced.

    Raises:
      UserError: if a field has no meaning.
    """
    epochs, warmup, final = float(config.epochs), float(config.warmup_epochs), float(config.final)
    decay = choose("schedule.decay", config.decay, DECAYS)
    granularity = choose("schedule.granularity", config.granularity, GRANULARITIES)
    if not 0.0 <= warmup < epochs:
        raise UserError(
            f"schedule.warmup_epochs is {warmup:g} of {epochs:g} epochs: it must be at least 0 and "
            "less than schedule.epochs."
        )
    if not 0.0 <= final <= 1.0:
        raise UserError(f"schedule.final is {final:g}: it is a share of the peak, in [0, 1].")

    def schedule(step: Int[Array, ""] | int) -> Float[Array, ""]:
        epoch = jnp.asarray(step, jnp.float32) / steps_per_epoch
        progress = jnp.clip((granularity(epoch) - warmup) / (epochs - warmup), 0.0, 1.0)
        decayed = final + (1.0 - final) * decay(progress)
        return jnp.where(epoch < warmup, epoch / max(warmup, 1e-9), decayed)

    return schedule


# --- Optimizers ---------------------------------------------------------------------------------


def _with_groups(groups: dict[str, ParameterGroup], function: Callable, *trees: Any) -> Any:
    """Maps function(group, *leaves) over trees of one structure."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(groups[_path_name(path)], *leaves), *trees
    )


def _wide(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _sgd(
    config: ConfigDict, groups: dict[str, ParameterGroup]
) -> optax.GradientTransformationExtraArgs:
    """SGD in PyTorch's order: v = m v + (g + wd w); w -= lr v, or with Nesterov's look-ahead."""
    momentum = optax.trace(config.momentum, config.nesterov)

    def update(
        grads: Any, state: Any, params: Any, *, learning_rate: Scalar, weight_decay: Scalar
    ) -> tuple[Any, Any]:
        def decayed(group: ParameterGroup, g: Array, w: Array) -> Array:
            return _wide(g) + weight_decay * group.weight_decay * w

        def step(group: ParameterGroup, v: Array, w: Array) -> Array:
            return (-learning_rate * group.learning_rate * v).astype(w.dtype)

        velocity, state = momentum.update(_with_groups(groups, decayed, grads, params), state)
        return _with_groups(groups, step, velocity, params), state

    return optax.GradientTransformationExtraArgs(momentum.init, update)


class Norms(NamedTuple):
    """What a trust ratio is made of: ||w||, ||g||, ||g + decay w|| and the decay itself."""

    weight: Float[Array, ""]
    gradient: Float[Array, ""]
    decayed: Float[Array, ""]
    decay: Scalar


# ||w|| over the size of the gradient with its decay.
TRUST_FORMULAS: dict[str, Callable[[Norms], Float[Array, ""]]] = {
    # ||g + wd w||: the code of SimCLR, BYOL, Barlow Twins and MoCo-v3.
    "norm_of_sum": lambda n: n.weight / n.decayed,
    # ||g|| + wd ||w|| + 1e-8: arXiv:1708.03888, apex's LARC (SwAV) and solo-learn.
    "sum_of_norms": lambda n: n.weight / (n.gradient + n.decay * n.weight + 1e-8),
}


def _norm(x: Float[Array, "*s"]) -> Float[Array, ""]:
    return jnp.linalg.norm(jnp.ravel(_wide(x)))


def _trust_ratio(config: ConfigDict, norms: Norms, rate: Scalar) -> Float[Array, ""]:
    zero = (norms.weight == 0.0) | (norms.gradient == 0.0) | (norms.decayed == 0.0)
    formula = TRUST_FORMULAS[config.trust_formula]
    ratio = config.trust_coefficient * formula(norms)
    if config.clip_trust:
        # A rate of 0 makes no step whatever the ratio, as long as the ratio is finite.
        ratio = jnp.minimum(ratio / jnp.maximum(rate, 1e-30), 1.0)
    return jnp.where(zero, 1.0, ratio)


def _lars(
    config: ConfigDict, groups: dict[str, ParameterGroup]
) -> optax.GradientTransformationExtraArgs:
    """LARS (arXiv:1708.03888) with the trust formula and the place of lr that the config says.

    With r the trust ratio (1 where a norm is zero) and g' = g + wd w:
    `lr_in_momentum` True (SimCLR's code): v = m v + lr r g'; w -= v;
    False (BYOL, Barlow Twins, MoCo-v3, solo-learn): v = m v + r g'; w -= lr v.
    The two differ as soon as lr moves. `clip_trust`: r = min(r / lr, 1) (solo-learn, apex).
    """
    momentum = optax.trace(config.momentum)
    choose("optimizer.trust_formula", config.trust_formula, TRUST_FORMULAS)

    def update(
        grads: Any, state: Any, params: Any, *, learning_rate: Scalar, weight_decay: Scalar
    ) -> tuple[Any, Any]:
        def adapted(group: ParameterGroup, g: Array, w: Array) -> Array:
            decay = weight_decay * group.weight_decay
            rate = learning_rate * group.learning_rate
            decayed = _wide(g) + decay * w
            if group.trust:
                norms = Norms(_norm(w), _norm(g), _norm(decayed), decay)
                decayed = decayed * _trust_ratio(config, norms, rate)
            return decayed * rate if config.lr_in_momentum else decayed

        def step(group: ParameterGroup, v: Array, w: Array) -> Array:
            rate = 1.0 if config.lr_in_momentum else learning_rate * group.learning_rate
            return (-rate * v).astype(w.dtype)

        velocity, state = momentum.update(_with_groups(groups, adapted, grads, params), state)
        return _with_groups(groups, step, velocity, params), state

    return optax.GradientTransformationExtraArgs(momentum.init, update)


def _adamw(
    config: ConfigDict, groups: dict[str, ParameterGroup]
) -> optax.GradientTransformationExtraArgs:
    """AdamW (arXiv:1711.05101) as PyTorch has it: w -= lr (m / (sqrt(v) + eps) + wd w)."""
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)

    def update(
        grads: Any, state: Any, params: Any, *, learning_rate: Scalar, weight_decay: Scalar
    ) -> tuple[Any, Any]:
        def step(group: ParameterGroup, u: Array, w: Array) -> Array:
            direction = u + weight_decay * group.weight_decay * w
            return (-learning_rate * group.learning_rate * direction).astype(w.dtype)

        direction, state = adam.update(jax.tree.map(_wide, grads), state)
        return _with_groups(groups, step, direction, params), state

    return optax.GradientTransformationExtraArgs(adam.init, update)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "sgd": _sgd,
    "lars": _lars,
    "adamw": _adamw,
}


def make_optimizer(config: ConfigDict, params: Any) -> optax.GradientTransformationExtraArgs:
    """The optimizer a config describes, for parameters of this structure.

    Args:
      config: `name`, a key of `OPTIMIZERS`; `groups`, rows as in `ParameterGroup`; and
        sgd: `momentum`, `nesterov`; lars: `momentum`, `trust_coefficient`, `trust_formula` (a key
        of `TRUST_FORMULAS`), `lr_in_momentum`, `clip_trust`; adamw: `b1`, `b2`, `eps`.
      params: the parameters, or their shapes.

    Returns:
      A transformation whose `update` takes the keywords `learning_rate` and `weight_decay`, both
      of which may be traced. Arithmetic is at least float32, updates have the parameters' dtype.

    Raises:
      UserError: if a name or a group has no meaning.
    """
    groups = assign_groups(config.groups, params)
    return choose("optimizer.name", config.name, OPTIMIZERS)(config, groups)
