"""Optimizers whose learning rate and weight decay are traced, with explicit parameter groups.

An optimizer is an `optax.GradientTransformationExtraArgs`:

    optimizer = make_optimizer(config.optimizer, params)
    opt_state = optimizer.init(params)
    updates, opt_state = optimizer.update(
        grads, opt_state, params,
        learning_rate=..., constant_learning_rate=..., weight_decay=..., factors=...)
    params = optax.apply_updates(params, updates)

so that one compiled step serves every learning rate and decay.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jaxssl.errors import UserError, choose
from jaxssl.ranges import (
    MOMENTUM,
    NON_NEGATIVE,
    POSITIVE,
    Ranges,
    check_numbers,
    check_ranges,
)

Scalar = Float[Array, ""] | float


class ParameterGroup(NamedTuple):
    """One row of `config.optimizer.groups`: how the parameters that a pattern matches are treated.

    Attributes:
      pattern: regular expression that must match a whole path, such as
        ``encoder/stages/0/1/branch/0/conv/kernel``.
      weight_decay: multiplies the weight decay; 0 for none.
      trust: whether LARS scales the step by the trust ratio; the other optimizers ignore it.
      learning_rate: multiplies the learning rate; 0 freezes the parameters. Or the name of a
        leaf of ``hyper`` that does, where it changes: what is frozen at first only (DINO's last
        layer, SwAV's prototypes). While it is 0 the gradient is not part of the clipped norm, and
        nothing enters the momentum of SGD and LARS; the moments of AdamW go on, whose bias
        correction counts every step.
      scheduled: whether the learning rate is the schedule's of the step; otherwise it is the
        schedule's ``value`` at every step (SimSiam's predictor).
    """

    pattern: str
    weight_decay: float
    trust: bool
    learning_rate: float | str
    scheduled: bool


# Groups for recipes. The first row that matches a parameter governs it.
DECAY_ALL = (ParameterGroup(".*", 1.0, True, 1.0, True),)
EXCLUDE_BIAS_AND_NORM = (
    ParameterGroup(".*/(bias|scale|class_token|positions)", 0.0, False, 1.0, True),
    ParameterGroup(".*", 1.0, True, 1.0, True),
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


def _rows(groups: Sequence[Any]) -> list[ParameterGroup]:
    """The rows, if each has the form of one.

    Raises:
      UserError: if not.
    """
    for row in groups:
        if not isinstance(row, tuple | list) or len(row) != len(ParameterGroup._fields):
            raise UserError(
                f"a row of --config.optimizer.groups is {row!r}: give "
                f"({', '.join(ParameterGroup._fields)}), and a comma after a row that is alone."
            )
        numbers = [row[1], *([] if isinstance(row[3], str) else [row[3]])]
        check_numbers("the numbers of a row of --config.optimizer.groups", numbers, NON_NEGATIVE)
        try:
            re.compile(row[0])
        except (re.error, TypeError) as error:
            raise UserError(
                f"the pattern {row[0]!r} of --config.optimizer.groups is no regular expression "
                f"({error}): correct it."
            ) from error
    return [ParameterGroup(*row) for row in groups]


def assign_groups(groups: Sequence[Any], params: Any) -> dict[str, ParameterGroup]:
    """The group of every parameter: the first one whose pattern matches the whole path.

    Args:
      groups: rows (pattern, weight_decay, trust, learning_rate, scheduled) as in
        `ParameterGroup`.
      params: the parameters, or their shapes.

    Raises:
      UserError: if a row has another form, a pattern governs no parameter, or a parameter has no
        group.
    """
    rows = _rows(groups)
    assigned: dict[str, ParameterGroup] = {}
    for path in parameter_paths(params):
        match = next((row for row in rows if re.fullmatch(row.pattern, path)), None)
        if match is None:
            raise UserError(
                f"no pattern of --config.optimizer.groups matches the parameter {path!r}: "
                "add a row for it, for instance a last one with the pattern '.*'."
            )
        assigned[path] = match
    for row in rows:
        if row not in assigned.values():
            raise UserError(
                f"the pattern {row.pattern!r} of --config.optimizer.groups governs no parameter: "
                "correct it or remove it; earlier rows take precedence, and paths look like "
                f"{next(iter(assigned))!r}."
            )
    return assigned


def group_hyper(groups: Sequence[Any]) -> Ranges:
    """What `config.optimizer.groups` reads from ``hyper``: the factors that are names.

    Raises:
      UserError: if a row has another form.
    """
    rates = [row.learning_rate for row in _rows(groups)]
    return {rate: NON_NEGATIVE for rate in rates if isinstance(rate, str)}


# --- Learning rate ------------------------------------------------------------------------------

SCALINGS: dict[str, Callable[[float], float]] = {
    "none": lambda batch_size: 1.0,
    "linear": lambda batch_size: batch_size / 256,  # arXiv:1706.02677
    "sqrt": lambda batch_size: batch_size**0.5,  # SimCLR arXiv:2002.05709, appendix B.1
}


def scaled_learning_rate(base: Scalar, batch_size: int, scaling: str) -> Scalar:
    """The learning rate for a batch size, from a recipe's.

    Args:
      base: the recipe's learning rate; may be traced.
      batch_size: images (not views) of a global batch.
      scaling: "none": base; "linear": base * B / 256; "sqrt": base * sqrt(B).

    Raises:
      UserError: if `scaling` is none of these.
    """
    return base * choose("optimizer.scaling", scaling, SCALINGS)(batch_size)


# --- Optimizers ---------------------------------------------------------------------------------


def _with_groups(groups: dict[str, ParameterGroup], function: Callable, *trees: Any) -> Any:
    """Maps function(group, *leaves) over trees of one structure."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(groups[_path_name(path)], *leaves), *trees
    )


class Rule(NamedTuple):
    """An optimizer without what all share: `update(grads, state, params, rates)`."""

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any, "Rates"], tuple[Any, Any]]


class Rates(NamedTuple):
    """What an update is told of its step.

    Learning rates, scheduled and constant, the decay, and the factors that groups ask for by name.
    """

    scheduled: Scalar
    constant: Scalar
    weight_decay: Scalar
    factors: Mapping[str, Array | float]

    def of(self, group: ParameterGroup) -> Scalar:
        """The learning rate of a group."""
        return (self.scheduled if group.scheduled else self.constant) * self._factor(group)

    def unless_frozen(self, group: ParameterGroup, x: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """``x``, or zeros while the factor of the group is 0."""
        factor = self._factor(group)
        if isinstance(factor, int | float):  # no operation where nothing is asked by name
            return x if factor else jnp.zeros_like(x)
        return jnp.where(factor == 0, jnp.zeros_like(x), x)

    def _factor(self, group: ParameterGroup) -> Scalar:
        asked = group.learning_rate
        return self.factors[asked] if isinstance(asked, str) else asked


def _wide(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _sgd(config: ConfigDict, groups: dict[str, ParameterGroup]) -> Rule:
    """SGD in PyTorch's order: v = m v + (g + wd w); w -= lr v, or with Nesterov's look-ahead."""
    momentum = optax.trace(config.momentum, config.nesterov)

    def update(grads: Any, state: Any, params: Any, rates: Rates) -> tuple[Any, Any]:
        def decayed(group: ParameterGroup, g: Array, w: Array) -> Array:
            return rates.unless_frozen(
                group, _wide(g) + rates.weight_decay * group.weight_decay * w
            )

        def step(group: ParameterGroup, v: Array, w: Array) -> Array:
            return (-rates.of(group) * v).astype(w.dtype)

        velocity, state = momentum.update(_with_groups(groups, decayed, grads, params), state)
        return _with_groups(groups, step, velocity, params), state

    return Rule(momentum.init, update)


class Norms(NamedTuple):
    """What a trust ratio is made of: ||w||, ||g||, ||g + decay w|| and the decay itself."""

    weight: Float[Array, ""]
    gradient: Float[Array, ""]
    decayed: Float[Array, ""]
    decay: Scalar


class TrustFormula(NamedTuple):
    """||w|| over the size of the gradient with its decay; 1 where a norm of ``tested`` is zero."""

    ratio: Callable[[Norms], Float[Array, ""]]
    tested: Callable[[Norms], tuple[Float[Array, ""], ...]]


TRUST_FORMULAS = {
    # The code of SimCLR, BYOL, Barlow Twins and MoCo-v3: a weight whose gradient is zero still
    # shrinks, by the ratio that its decay alone has.
    "norm_of_sum": TrustFormula(lambda n: n.weight / n.decayed, lambda n: (n.weight, n.decayed)),
    # arXiv:1708.03888, apex's LARC (SwAV) and solo-learn, which test the gradient itself.
    "sum_of_norms": TrustFormula(
        lambda n: n.weight / (n.gradient + n.decay * n.weight + 1e-8),
        lambda n: (n.weight, n.gradient),
    ),
}


def _norm(x: Float[Array, "*s"]) -> Float[Array, ""]:
    return jnp.linalg.norm(jnp.ravel(_wide(x)))


def _trust_ratio(config: ConfigDict, norms: Norms, rate: Scalar) -> Float[Array, ""]:
    formula = TRUST_FORMULAS[config.trust_formula]
    zero = functools.reduce(jnp.logical_or, [norm == 0.0 for norm in formula.tested(norms)])
    ratio = config.trust_coefficient * formula.ratio(norms)
    if config.clip_trust:
        # A rate of 0 makes no step whatever the ratio, as long as the ratio is finite.
        ratio = jnp.minimum(ratio / jnp.maximum(rate, 1e-30), 1.0)
    return jnp.where(zero, 1.0, ratio)


def _lars(config: ConfigDict, groups: dict[str, ParameterGroup]) -> Rule:
    """LARS (arXiv:1708.03888) with the trust formula and the place of lr that the config says.

    With r the trust ratio and g' = g + wd w:
    `lr_in_momentum` True (SimCLR's code): v = m v + lr r g'; w -= v;
    False (BYOL, Barlow Twins, MoCo-v3, solo-learn): v = m v + r g'; w -= lr v.
    The two differ as soon as lr moves. `clip_trust`: r = min(r / lr, 1) (solo-learn, apex).
    """
    momentum = optax.trace(config.momentum)
    choose("optimizer.trust_formula", config.trust_formula, TRUST_FORMULAS)

    def update(grads: Any, state: Any, params: Any, rates: Rates) -> tuple[Any, Any]:
        def adapted(group: ParameterGroup, g: Array, w: Array) -> Array:
            decay, rate = rates.weight_decay * group.weight_decay, rates.of(group)
            decayed = _wide(g) + decay * w
            if group.trust:
                norms = Norms(_norm(w), _norm(g), _norm(decayed), decay)
                decayed = decayed * _trust_ratio(config, norms, rate)
            decayed = decayed * rate if config.lr_in_momentum else decayed
            return rates.unless_frozen(group, decayed)

        def step(group: ParameterGroup, v: Array, w: Array) -> Array:
            rate = 1.0 if config.lr_in_momentum else rates.of(group)
            return (-rate * v).astype(w.dtype)

        velocity, state = momentum.update(_with_groups(groups, adapted, grads, params), state)
        return _with_groups(groups, step, velocity, params), state

    return Rule(momentum.init, update)


def _adamw(config: ConfigDict, groups: dict[str, ParameterGroup]) -> Rule:
    """AdamW (arXiv:1711.05101) as PyTorch has it: w -= lr (m / (sqrt(v) + eps) + wd w)."""
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)

    def update(grads: Any, state: Any, params: Any, rates: Rates) -> tuple[Any, Any]:
        def step(group: ParameterGroup, u: Array, w: Array) -> Array:
            direction = u + rates.weight_decay * group.weight_decay * w
            return (-rates.of(group) * direction).astype(w.dtype)

        direction, state = adam.update(jax.tree.map(_wide, grads), state)
        return _with_groups(groups, step, direction, params), state

    return Rule(adam.init, update)


def _clipped(grads: Any, norm: Float[Array, ""], limit: float) -> Any:
    """Gradients scaled as `optax.clip_by_global_norm` does, by a norm that is given."""
    return jax.tree.map(
        lambda g: jnp.where(norm < limit, g, (g / norm.astype(g.dtype)) * limit), grads
    )


# What each reads from its group, besides names, switches and groups.
SETTINGS: dict[str, Ranges] = {
    "sgd": {"momentum": MOMENTUM},
    "lars": {"momentum": MOMENTUM, "trust_coefficient": POSITIVE},
    "adamw": {"b1": MOMENTUM, "b2": MOMENTUM, "eps": NON_NEGATIVE},
}

OPTIMIZERS: dict[str, Callable[[ConfigDict, dict[str, ParameterGroup]], Rule]] = {
    "sgd": _sgd,
    "lars": _lars,
    "adamw": _adamw,
}


def make_optimizer(config: ConfigDict, params: Any) -> optax.GradientTransformationExtraArgs:
    """The optimizer a config describes, for parameters of this structure.

    Args:
      config: `name`, a key of `OPTIMIZERS`; `groups`, rows as in `ParameterGroup`; `clip_norm`,
        the largest norm that the whole gradient, but for what is frozen, may have before
        anything else is done with it, 0 for no limit; and
        sgd: `momentum`, `nesterov`; lars: `momentum`, `trust_coefficient`, `trust_formula` (a key
        of `TRUST_FORMULAS`), `lr_in_momentum`, `clip_trust`; adamw: `b1`, `b2`, `eps`.
      params: the parameters, or their shapes.

    Returns:
      A transformation whose `update` takes the keywords `learning_rate`, `constant_learning_rate`
      (of groups that are not scheduled), `weight_decay` and, by name, the `factors` that groups ask
      for, all of which may be traced. Arithmetic is at least float32, updates have the parameters'
      dtype.

    Raises:
      UserError: if a name, a group or `clip_norm` has no meaning.
    """
    make = choose("optimizer.name", config.name, OPTIMIZERS)
    check_ranges("optimizer", config, {"clip_norm": NON_NEGATIVE, **SETTINGS[config.name]})
    groups = assign_groups(config.groups, params)
    rule = make(config, groups)

    def update(
        grads: Any,
        state: Any,
        params: Any,
        *,
        learning_rate: Scalar,
        constant_learning_rate: Scalar,
        weight_decay: Scalar,
        factors: Mapping[str, Array | float] = MappingProxyType({}),
    ) -> tuple[Any, Any]:
        rates = Rates(learning_rate, constant_learning_rate, weight_decay, factors)
        if config.clip_norm > 0:
            counted = _with_groups(groups, rates.unless_frozen, grads)
            grads = _clipped(grads, optax.tree.norm(counted), config.clip_norm)
        return rule.update(grads, state, params, rates)

    return optax.GradientTransformationExtraArgs(rule.init, update)
