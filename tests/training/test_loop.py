"""Cadence, the reporter, and the hook that runs before an epoch."""

import jax
import jax.numpy as jnp
import pytest
from tiny import Run, config_for

from jaxssl.checkpoint import CheckpointReader
from jaxssl.distributed import data_mesh
from jaxssl.errors import UserError
from jaxssl.methods import METHODS
from jaxssl.methods.method import Counter
from jaxssl.methods.simclr import SimCLR
from jaxssl.reporting import MetricWriter, Progress, read_metrics
from jaxssl.training.loop import Cadence, Reporter
from jaxssl.training.state import merge, traced_scalars
from jaxssl.training.step import make_epoch_hook


def test_epochs_of_batches_that_straddle():
    cadence = Cadence(
        stop=10, batch_size=4, num_examples=10, log=3, save=5, save_minutes=0.0, monitor=0
    )
    assert [cadence.epoch(step) for step in range(6)] == [0, 0, 0, 1, 1, 2]
    assert [step for step in range(10) if cadence.starts_epoch(step)] == [0, 3, 5, 8]


def test_due_at_multiples_and_at_the_end():
    cadence = Cadence(
        stop=10, batch_size=4, num_examples=10, log=3, save=5, save_minutes=0.0, monitor=0
    )
    assert [step for step in range(1, 11) if cadence.due(3, step)] == [3, 6, 9, 10]
    assert not any(cadence.due(0, step) for step in range(1, 11))


def test_cadence_of_a_config():
    config = config_for("simclr")
    with config.unlocked():
        config.run.stop_step = 7
        config.monitor.knn_every_epochs = 0.5
    cadence = Cadence.from_config(config, num_examples=100, total_steps=50)
    assert (cadence.stop, cadence.monitor) == (7, 1)
    with config.unlocked():
        config.run.stop_step = 999
    assert Cadence.from_config(config, num_examples=100, total_steps=50).stop == 50


@pytest.fixture
def reporter(tmp_path):
    with MetricWriter(tmp_path, None) as writer, Progress(10, 0, 8, active=False) as progress:
        yield Reporter(writer, progress, batch_size=8, checkpoints=CheckpointReader(tmp_path))


def test_reporter_writes_what_it_held_and_its_rate(reporter, tmp_path):
    reporter.flush()
    assert read_metrics(tmp_path) == []
    for step in (5, 10):
        reporter.hold(step, {"loss": jnp.float32(step)})
        assert len(read_metrics(tmp_path)) == step // 5 - 1
        reporter.flush()
    rows = read_metrics(tmp_path)
    assert [(row["step"], row["loss"]) for row in rows] == [(5, 5.0), (10, 10.0)]
    assert "images_per_second" not in rows[0]
    assert rows[1]["images_per_second"] > 0
    reporter.flush()
    assert len(read_metrics(tmp_path)) == 2


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_reporter_refuses_a_loss_that_is_not_finite(loss, reporter):
    reporter.hold(5, {"loss": jnp.float32(loss)})
    with pytest.raises(UserError, match=r"loss is (nan|inf) at step 5.*learning_rate"):
        reporter.flush()


class CountsEpochs(SimCLR):
    """A method with an epoch hook that leaves a trace."""

    def __init__(self, config, encoder, spec, rngs):
        super().__init__(config, encoder, spec, rngs)
        self.seen = Counter(jnp.zeros((), jnp.int32))
        self.drawn = Counter(jnp.zeros((), jnp.float32))

    def on_epoch(self, epoch, key):
        self.seen[...] = self.seen[...] + epoch
        self.drawn[...] = jax.random.uniform(key)


def test_epoch_hook(monkeypatch):
    monkeypatch.setitem(METHODS, "simclr", CountsEpochs)
    run = Run(config_for("simclr"))
    mesh = data_mesh(2)
    hook = make_epoch_hook(run.blueprint, mesh)
    hyper = traced_scalars(run.config)
    state = run.blueprint.create(0, mesh)
    state = hook(state, jnp.int32(2), hyper)
    first = float(merge(run.blueprint.graph, state.params, state.rest).drawn[...])
    state = hook(state, jnp.int32(3), hyper)
    method = merge(run.blueprint.graph, state.params, state.rest)
    assert int(method.seen[...]) == 5
    assert float(method.drawn[...]) != first
