"""One compiled step serves a population over seed, temperature and learning rate."""

import jax
import numpy as np
import pytest
from tiny import Run, config_for

from jaxssl.data.sources import load
from jaxssl.distributed import data_mesh, global_batch, replicated
from jaxssl.plan import make_spec, policy_of, resolve
from jaxssl.programs import programs_of
from jaxssl.training.schedules import Schedules
from jaxssl.training.state import traced_scalars
from jaxssl.training.step import compile_step

STEPS = 3


def member(method: str, **changes):
    config = config_for(method)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return Run(config)


@pytest.fixture
def lowerings():
    """Counts programs that are lowered, which precedes every compilation, cached or not."""
    seen = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def arrays(state):
    state = jax.tree.map(
        lambda x: (
            jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        ),
        state,
    )
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


@pytest.mark.parametrize("method", [pytest.param("simclr", marks=pytest.mark.slow), "moco_v2"])
def test_two_members_are_two_runs_and_compile_once(method, lowerings):
    mesh = data_mesh(2)
    members = [
        member(method),
        member(
            method,
            **{"init_seed": 7, "hyper.temperature": 0.9, "hyper.learning_rate.value": 0.02},
        ),
    ]
    # The population: one init, one step, both built for the first member.
    shared = members[0].blueprint
    init = jax.jit(shared.init, out_shardings=replicated(mesh))
    step = compile_step(members[0].step(), mesh)
    hypers = [traced_scalars(run.config) for run in members]
    states, compiled = [], []
    for hyper in hypers:
        state = init(hyper["init_seed"])
        for number in range(STEPS):
            state, _ = step(state, global_batch(mesh, members[0].batch(number)), hyper)
        states.append(jax.block_until_ready(state))
        compiled.append(len(lowerings))
    assert compiled[0] >= 2
    assert compiled[1] == compiled[0]
    # The runs: each builds everything for itself.
    for run, together, hyper in zip(members, states, hypers, strict=True):
        alone = run.blueprint.create(run.config.init_seed, mesh)
        own = compile_step(run.step(), mesh)
        for number in range(STEPS):
            alone, _ = own(alone, global_batch(mesh, run.batch(number)), hyper)
        for a, b in zip(arrays(alone), arrays(together), strict=True):
            assert a.tobytes() == b.tobytes()
    first, second = (np.concatenate([x.ravel() for x in arrays(s.params)]) for s in states)
    assert np.abs(first - second).max() > 0.01


def step_of(**changes):
    config = config_for("simclr", epochs=1.0)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    config = resolve(config)
    policy, source = policy_of(config), load(config.data, "pretrain")
    spec = make_spec(config, source, policy)
    schedules = Schedules.from_config(config.hyper, config.epochs, spec.steps_per_epoch)
    mesh = data_mesh(config.run.num_devices)
    return programs_of(config, policy, schedules, spec, mesh).step


def test_runs_that_differ_in_traced_numbers_alone_take_turns_through_one_program():
    one = step_of()
    for same in (
        {"seed": 3},
        {"hyper.temperature": 0.9},
        {"hyper.learning_rate.value": 0.02},
        {"run.stop_step": 2},
    ):
        assert step_of(**same) is one, same
    for other in (
        {"batch_size": 32},
        {"encoder.width": 8},
        {"method.head.out_dim": 8},
        {"epochs": 2.0},
        {"hyper.learning_rate.warmup_epochs": 0.5},
        {"optimizer.momentum": 0.5},
        {"views.global_crops.flip_p": 0.1},
    ):
        assert step_of(**other) is not one, other
    assert step_of() is one
    for other in (
        {"corruption.name": "gamma"},
        {"normalize.mean": (0.1,)},
        {"randbit.num_bits": 3},
        {"run.num_devices": 2},
        {"data.train_examples": 640},
    ):
        assert step_of(**other) is not one, other
    with jax.enable_x64(True):
        assert step_of() is not one
