"""Optimizers against their rules written out in float64 NumPy, groups, scaling and schedules."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from jaxssl.errors import UserError
from jaxssl.ranges import NON_NEGATIVE
from jaxssl.training.optim import (
    DECAY_ALL,
    EXCLUDE_BIAS_AND_NORM,
    ParameterGroup,
    _clipped,
    assign_groups,
    group_hyper,
    make_optimizer,
    parameter_paths,
    scaled_learning_rate,
)

RATES = (0.1, 0.4, 0.0, 0.2, 0.05)  # moves, so that the order of lr and momentum shows
DECAY = 0.03
CONSTANT_RATE = 0.3  # of groups that do not follow the schedule

OPTIMIZERS = {
    "sgd": {"name": "sgd", "momentum": 0.9, "nesterov": False},
    "nesterov": {"name": "sgd", "momentum": 0.9, "nesterov": True},
    "adamw": {"name": "adamw", "b1": 0.9, "b2": 0.95, "eps": 1e-6},
}
LARS = {
    "name": "lars",
    "momentum": 0.9,
    "trust_coefficient": 0.02,
    "trust_formula": "norm_of_sum",
    "lr_in_momentum": True,
    "clip_trust": False,
}
OPTIMIZERS["lars_simclr"] = LARS
OPTIMIZERS["lars_fair"] = {**LARS, "lr_in_momentum": False}
OPTIMIZERS["lars_solo"] = {**OPTIMIZERS["lars_fair"], "trust_formula": "sum_of_norms"}
OPTIMIZERS["lars_solo_clip"] = {**OPTIMIZERS["lars_solo"], "clip_trust": True}


def config(settings, groups=EXCLUDE_BIAS_AND_NORM):
    return ConfigDict({"clip_norm": 0.0, **settings, "groups": groups})


def parameters(dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "encoder": {
            "conv": {"kernel": rng.normal(size=(3, 4)).astype(dtype)},
            "norm": {
                "scale": rng.normal(size=4).astype(dtype),
                "bias": rng.normal(size=4).astype(dtype),
            },
        },
        "head": {"kernel": rng.normal(size=(4, 2)).astype(dtype)},
    }


def device(tree):
    return jax.tree.map(jnp.asarray, tree)


def gradients(step, dtype=np.float64):
    # Steps differ in size too, so that a wrong norm shows.
    return jax.tree.map(lambda g: (step + 1) * g, parameters(dtype, seed=100 + step))


def run(settings, groups=EXCLUDE_BIAS_AND_NORM, rates=RATES, dtype=np.float64):
    params = device(parameters(dtype))
    optimizer = make_optimizer(config(settings, groups), params)
    state = optimizer.init(params)

    @jax.jit
    def step(grads, state, params, learning_rate, weight_decay):
        updates, state = optimizer.update(
            grads,
            state,
            params,
            learning_rate=learning_rate,
            constant_learning_rate=jnp.float32(CONSTANT_RATE),
            weight_decay=weight_decay,
        )
        return optax.apply_updates(params, updates), state

    for k, rate in enumerate(rates):
        params, state = step(gradients(k, dtype), state, params, jnp.asarray(rate), DECAY)
    return params


# --- the rules, one parameter at a time -----------------------------------------------------------


def trust_ratio(s, w, g, decay, lr):
    if s["name"] != "lars" or not np.any(w) or not np.any(g):
        return 1.0
    norm = np.linalg.norm
    if s["trust_formula"] == "sum_of_norms":
        ratio = s["trust_coefficient"] * norm(w) / (norm(g) + decay * norm(w) + 1e-8)
    else:
        ratio = s["trust_coefficient"] * norm(w) / norm(g + decay * w)
    if s["clip_trust"]:
        return min(ratio / lr, 1.0) if lr > 0 else 1.0
    return ratio


def reference(s, w, grads, excluded, rates=RATES, multiplier=1.0):
    decay = 0.0 if excluded else DECAY
    v = m = np.zeros_like(w)
    for k, (g, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        lr = rate * multiplier
        if s["name"] == "adamw":
            m = s["b1"] * m + (1 - s["b1"]) * g
            v = s["b2"] * v + (1 - s["b2"]) * g**2
            direction = (m / (1 - s["b1"] ** k)) / (np.sqrt(v / (1 - s["b2"] ** k)) + s["eps"])
            w = w - lr * decay * w - lr * direction
            continue
        step = g + decay * w
        step = step * (1.0 if excluded else trust_ratio(s, w, g, decay, lr))
        if s.get("lr_in_momentum"):
            v = s["momentum"] * v + lr * step
            w = w - v
        else:
            v = s["momentum"] * v + step
            w = w - lr * (step + s["momentum"] * v if s.get("nesterov") else v)
    return w


def expected(settings, **kwargs):
    paths = parameter_paths(parameters())
    leaves = jax.tree.leaves(parameters())
    grads = [jax.tree.leaves(gradients(k)) for k in range(len(RATES))]
    return [
        reference(settings, leaf, [g[i] for g in grads], path.endswith(("bias", "scale")), **kwargs)
        for i, (path, leaf) in enumerate(zip(paths, leaves, strict=True))
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_several_steps_follow_the_rule(name):
    with jax.enable_x64(True):
        ours = jax.tree.leaves(run(OPTIMIZERS[name]))
    for a, b in zip(ours, expected(OPTIMIZERS[name]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
    single = jax.tree.leaves(run(OPTIMIZERS[name], dtype=np.float32))
    for a, b in zip(single, expected(OPTIMIZERS[name]), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_the_reference_rules_differ_where_recipes_do():
    """Each pair of rules must be told apart by the trajectory above, or it would prove nothing."""
    kernels = {name: expected(settings)[0] for name, settings in OPTIMIZERS.items()}
    names = list(kernels)
    for i, a in enumerate(names):
        for b in names[:i]:
            assert np.abs(kernels[a] - kernels[b]).max() > 1e-4, (a, b)


def test_place_of_the_learning_rate_matters_exactly_when_it_moves():
    inside, outside = LARS, {**LARS, "lr_in_momentum": False}
    constant, moving = (0.1,) * 4, (0.1, 0.2, 0.3, 0.4)

    def difference(rates):
        a, b = (run(s, rates=rates, dtype=np.float32) for s in (inside, outside))
        return max(np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))

    assert difference(constant) < 1e-5
    assert difference(moving) > 1e-2


def test_sgd_agrees_with_optax_where_the_two_are_the_same():
    # optax.sgd multiplies by lr after the momentum as well.
    params = parameters(np.float32)
    peer = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(0.1, 0.9, nesterov=True))
    state = peer.init(params)
    for k in range(4):
        updates, state = peer.update(gradients(k, np.float32), state, params)
        params = optax.apply_updates(params, updates)
    ours = run(OPTIMIZERS["nesterov"], groups=DECAY_ALL, rates=(0.1,) * 4, dtype=np.float32)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, params)


@pytest.mark.parametrize("name", ["lars_simclr", "lars_fair", "lars_solo", "lars_solo_clip"])
def test_a_zero_norm_gives_a_trust_ratio_of_one_but_for_a_weight_that_decays(name):
    s = {**OPTIMIZERS[name], "lr_in_momentum": False}
    kernel = jnp.ones((2, 2))
    for w, g in [(0 * kernel, kernel), (kernel, 0 * kernel), (0 * kernel, 0 * kernel)]:
        params = {"a": {"kernel": w}}
        optimizer = make_optimizer(config(s, DECAY_ALL), params)
        updates, _ = optimizer.update(
            {"a": {"kernel": g}},
            optimizer.init(params),
            params,
            learning_rate=jnp.float32(0.5),
            constant_learning_rate=jnp.float32(0.5),
            weight_decay=jnp.float32(DECAY),
        )
        ratio = 1.0
        if np.any(w) and s["trust_formula"] == "norm_of_sum":
            ratio = s["trust_coefficient"] / DECAY  # of the decay alone, as SimCLR's code has it
        expected = -0.5 * ratio * (g + DECAY * w)
        np.testing.assert_allclose(updates["a"]["kernel"], expected, rtol=1e-6)


def test_lars_step_does_not_depend_on_the_scale_of_the_gradient_except_where_excluded():
    params = device(parameters(np.float32))
    optimizer = make_optimizer(config(LARS), params)

    def update(scale):
        grads = jax.tree.map(lambda g: scale * g, device(gradients(0, np.float32)))
        rates = dict.fromkeys(("learning_rate", "constant_learning_rate"), jnp.float32(0.1))
        rates["weight_decay"] = jnp.float32(0.0)
        return optimizer.update(grads, optimizer.init(params), params, **rates)[0]

    one, thousand = update(1.0), update(1000.0)
    np.testing.assert_allclose(thousand["head"]["kernel"], one["head"]["kernel"], rtol=1e-5)
    norm, scaled = one["encoder"]["norm"], thousand["encoder"]["norm"]
    np.testing.assert_allclose(scaled["bias"], 1000 * norm["bias"], rtol=1e-5)


# --- parameter groups -----------------------------------------------------------------------------


def test_multipliers_apply_to_the_rate_and_zero_freezes_exactly():
    groups = (
        ParameterGroup("head/.*", 1.0, True, 0.25, True),
        ParameterGroup("encoder/norm/.*", 1.0, True, 0.0, True),
        ParameterGroup(".*", 1.0, True, 1.0, True),
    )
    for name in ("sgd", "adamw", "lars_simclr", "lars_solo_clip"):
        ours = run(OPTIMIZERS[name], groups=groups, dtype=np.float32)
        start = parameters(np.float32)
        jax.tree.map(
            np.testing.assert_array_equal, ours["encoder"]["norm"], start["encoder"]["norm"]
        )
        slow = expected(OPTIMIZERS[name], multiplier=0.25)[-1]
        full = expected(OPTIMIZERS[name])
        np.testing.assert_allclose(ours["head"]["kernel"], slow, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(ours["encoder"]["conv"]["kernel"], full[0], rtol=1e-4, atol=1e-5)
        assert np.abs(slow - full[-1]).max() > 1e-3


def test_a_group_that_does_not_follow_the_schedule_keeps_its_rate():
    groups = (ParameterGroup("head/.*", 1.0, True, 0.5, False), *EXCLUDE_BIAS_AND_NORM)
    for name in ("sgd", "adamw", "lars_simclr", "lars_fair"):
        ours = run(OPTIMIZERS[name], groups=groups, dtype=np.float32)
        constant = expected(OPTIMIZERS[name], rates=(0.5 * CONSTANT_RATE,) * len(RATES))[-1]
        moving = expected(OPTIMIZERS[name])
        np.testing.assert_allclose(ours["head"]["kernel"], constant, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            ours["encoder"]["conv"]["kernel"], moving[0], rtol=1e-4, atol=1e-5
        )


def test_the_whole_gradient_is_clipped_before_anything_else():
    settings = {**OPTIMIZERS["sgd"], "clip_norm": 0.7}
    grads = [jax.tree.leaves(gradients(k)) for k in range(len(RATES))]
    clipped = []
    for leaves in grads:
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in leaves))
        assert norm > 0.7
        clipped.append([leaf * 0.7 / norm for leaf in leaves])
    with jax.enable_x64(True):
        ours = jax.tree.leaves(run(settings))
    for i, (path, start) in enumerate(
        zip(parameter_paths(parameters()), jax.tree.leaves(parameters()), strict=True)
    ):
        excluded = path.endswith(("bias", "scale"))
        end = reference(settings, start, [g[i] for g in clipped], excluded)
        np.testing.assert_allclose(ours[i], end, rtol=1e-9)
    with pytest.raises(UserError, match=r"--config.optimizer.clip_norm=-1.0 must be"):
        run({**settings, "clip_norm": -1.0})


def test_the_first_matching_row_governs_and_a_config_read_from_json_means_the_same():
    groups = (
        *EXCLUDE_BIAS_AND_NORM[:1],
        ParameterGroup("head/.*", 0.5, True, 1.0, True),
        *DECAY_ALL,
    )
    assigned = assign_groups(groups, parameters())
    assert {path: group.pattern for path, group in assigned.items()} == {
        "encoder/conv/kernel": ".*",
        "encoder/norm/bias": EXCLUDE_BIAS_AND_NORM[0].pattern,
        "encoder/norm/scale": EXCLUDE_BIAS_AND_NORM[0].pattern,
        "head/kernel": "head/.*",
    }
    restored = json.loads(ConfigDict({"groups": groups}).to_json())["groups"]
    assert assign_groups(restored, parameters()) == assigned


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ((".*", 1.0, True, 1.0, True), r"is '\.\*': give \(pattern, .*a comma after a row"),
        (((".*", 1.0, True, 1.0),), r"is \('\.\*', 1\.0, True, 1\.0\): give"),
        (((".*", "a", True, 1.0, True),), r"the numbers of a row .*=\['a', 1\.0\] must be"),
    ],
)
def test_a_row_of_another_form_is_refused_by_whoever_reads_it_first(groups, said):
    for read in (group_hyper, lambda rows: assign_groups(rows, parameters())):
        with pytest.raises(UserError, match=said):
            read(groups)


def test_paths_are_the_same_for_a_module_state_and_a_dict():
    class Net(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Linear(2, 3, rngs=nnx.Rngs(0))])

    state = nnx.state(Net(), nnx.Param)
    assert parameter_paths(state) == ["layers/0/bias", "layers/0/kernel"]
    assert parameter_paths(nnx.to_pure_dict(state)) == parameter_paths(state)
    assert parameter_paths({"value": [np.ones(1), np.ones(1)]}) == ["value/0", "value/1"]


def test_updates_of_a_module_state_keep_its_structure():
    params = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    groups = (ParameterGroup("bias", 0.0, False, 1.0, True), *DECAY_ALL)
    optimizer = make_optimizer(config(LARS, groups), params)
    updates, state = optimizer.update(
        params,
        optimizer.init(params),
        params,
        learning_rate=0.1,
        constant_learning_rate=0.1,
        weight_decay=0.0,
    )
    updated = optax.apply_updates(params, updates)
    assert jax.tree.structure(updated) == jax.tree.structure(params)
    assert jax.tree.structure(state) == jax.tree.structure(optimizer.init(params))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_factor_may_be_a_number_of_hyper(name):
    """0 keeps the parameter to the bit; any other value multiplies the rate as a number does."""
    groups = (ParameterGroup("head/.*", 1.0, True, "slow", True), *DECAY_ALL)
    assert group_hyper(groups) == {"slow": NON_NEGATIVE}
    assert group_hyper(DECAY_ALL) == {}
    params = device(parameters(np.float32))
    optimizer = make_optimizer(config(OPTIMIZERS[name], groups), params)
    fixed = (ParameterGroup("head/.*", 1.0, True, 0.25, True), *DECAY_ALL)
    expected = make_optimizer(config(OPTIMIZERS[name], fixed), params)

    @functools.partial(jax.jit, static_argnums=0)
    def update(optimizer, slow):
        rates = dict.fromkeys(("learning_rate", "constant_learning_rate"), jnp.float32(0.1))
        return optimizer.update(
            device(gradients(0, np.float32)),
            optimizer.init(params),
            params,
            weight_decay=jnp.float32(DECAY),
            factors={"slow": slow, "other": jnp.float32(7.0)},
            **rates,
        )[0]

    assert not np.any(update(optimizer, jnp.float32(0.0))["head"]["kernel"])
    ours, theirs = update(optimizer, jnp.float32(0.25)), update(expected, jnp.float32(1.0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)
    assert np.any(ours["head"]["kernel"])


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw"])
def test_what_is_frozen_at_first_starts_from_nothing(name):
    """As where it has no gradient: no momentum of those steps, and no part of the clipped norm."""
    groups = (ParameterGroup("head/.*", 1.0, True, "rate", True), *DECAY_ALL)
    settings = {**OPTIMIZERS[name], "clip_norm": 0.7}
    with jax.enable_x64(True):
        params = device(parameters())
        optimizer = make_optimizer(config(settings, groups), params)
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        for k, rate in enumerate(RATES):
            rates = dict.fromkeys(("learning_rate", "constant_learning_rate"), rate)
            factors = {"rate": jnp.float64(k >= 2)}
            updates, state = update(
                device(gradients(k)), state, params, weight_decay=DECAY, factors=factors, **rates
            )
            params = optax.apply_updates(params, updates)
    clipped = []
    for k in range(len(RATES)):
        leaves = jax.tree.leaves(gradients(k))  # the head is the last one
        counted = leaves if k >= 2 else leaves[:-1]
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in counted))
        assert norm > 0.7
        clipped.append([leaf * 0.7 / norm for leaf in leaves])
    for i, start in enumerate(jax.tree.leaves(parameters())):
        first = 2 if i == len(clipped[0]) - 1 else 0
        taken = [leaves[i] for leaves in clipped[first:]]
        end = reference(settings, start, taken, False, rates=RATES[first:])
        np.testing.assert_allclose(jax.tree.leaves(params)[i], end, rtol=1e-9)


def test_clipping_is_optax_to_the_bit_where_nothing_is_frozen():
    grads = device(gradients(0, np.float32))
    for limit in (0.7, 100.0):
        clip = optax.clip_by_global_norm(limit)
        theirs = jax.jit(lambda g, clip=clip: clip.update(g, clip.init(g))[0])(grads)
        ours = jax.jit(lambda g, limit=limit: _clipped(g, optax.tree.norm(g), limit))(grads)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_patterns_that_govern_nothing_and_parameters_without_a_group_are_named():
    with pytest.raises(UserError, match=r"pattern 'header/\.\*' .* governs no parameter"):
        assign_groups((ParameterGroup("header/.*", 1.0, True, 1.0, True), *DECAY_ALL), parameters())
    with pytest.raises(UserError, match=r"pattern 'head/\.\*' .* governs no parameter"):
        assign_groups((*DECAY_ALL, ParameterGroup("head/.*", 1.0, True, 1.0, True)), parameters())
    with pytest.raises(UserError, match=r"pattern 'head' .* governs no parameter"):
        assign_groups((ParameterGroup("head", 1.0, True, 1.0, True), *DECAY_ALL), parameters())
    with pytest.raises(UserError, match="matches the parameter 'encoder/conv/kernel'"):
        assign_groups((ParameterGroup("head/.*", 1.0, True, 1.0, True),), parameters())
    with pytest.raises(UserError, match="matches the parameter 'head/kernel'"):
        assign_groups((ParameterGroup("encoder/.*", 1.0, True, 1.0, True),), parameters())


def test_a_row_of_an_older_form_is_refused_with_the_form_of_today():
    with pytest.raises(UserError, match=r"give \(pattern, weight_decay, trust, .*scheduled\)"):
        assign_groups(((".*", 1.0, True, 1.0),), parameters())


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"name=adam is unknown: choose one of adamw, lars"):
        make_optimizer(config({"name": "adam"}), parameters())
    with pytest.raises(UserError, match="trust_formula=apex"):
        make_optimizer(config({**LARS, "trust_formula": "apex"}), parameters())
    with pytest.raises(UserError, match="scaling=cube"):
        scaled_learning_rate(0.1, 256, "cube")


# --- learning rate --------------------------------------------------------------------------------


def test_scaling_reproduces_published_peaks():
    assert scaled_learning_rate(0.06, 512, "none") == 0.06
    assert scaled_learning_rate(1.0, 512, "linear") == 2.0  # SimCLR, CIFAR-10
    # SimCLR, ImageNet: .3 * 4096 / 256 and .075 * sqrt(4096) are the same rate.
    assert scaled_learning_rate(0.3, 4096, "linear") == pytest.approx(4.8)
    assert scaled_learning_rate(0.075, 4096, "sqrt") == pytest.approx(4.8)
    assert scaled_learning_rate(0.2, 512, "sqrt") == pytest.approx(4.525, abs=1e-3)  # 2011.02803


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_population_over_learning_rate_and_decay_is_its_members_alone(name):
    params = device(parameters(np.float32))
    optimizer = make_optimizer(config(OPTIMIZERS[name]), params)
    grads = [device(gradients(k, np.float32)) for k in range(3)]

    def train(base, weight_decay):
        state, w = optimizer.init(params), params
        for k in range(3):
            rate = scaled_learning_rate(base, 64, "sqrt") * (k + 1) / 3
            updates, state = optimizer.update(
                grads[k],
                state,
                w,
                learning_rate=rate,
                constant_learning_rate=rate,
                weight_decay=weight_decay,
            )
            w = optax.apply_updates(w, updates)
        return w

    rates, decays = jnp.asarray([0.01, 0.03]), jnp.asarray([0.0, 0.1])
    both = jax.jit(jax.vmap(train))(rates, decays)
    alone = jax.jit(train)
    for member in range(2):
        one = alone(rates[member], decays[member])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[member], b, rtol=2e-6, atol=1e-7),  # noqa: B023
            both,
            one,
        )
    assert np.abs(both["head"]["kernel"][0] - both["head"]["kernel"][1]).max() > 1e-4
    assert alone._cache_size() == 1
