"""Cadence, the reporter, and the hook that runs before an epoch."""

import dataclasses
import fractions
import inspect
import json
import os
import signal
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from tiny import Run, config_for

from jaxssl import cli, linear_probe
from jaxssl.checkpoint import CheckpointReader
from jaxssl.distributed import data_mesh
from jaxssl.errors import UserError
from jaxssl.evaluation import evals, probe
from jaxssl.evaluation.probe_data import data_settings
from jaxssl.interruption import Interrupted, Interruption
from jaxssl.methods import METHODS
from jaxssl.methods.method import Bank
from jaxssl.methods.simclr import SimCLR
from jaxssl.pretrain import pretrain
from jaxssl.reporting import CLOCK_KEYS, MetricWriter, Progress, read_metrics
from jaxssl.run_directory import owned
from jaxssl.training import loop
from jaxssl.training.loop import Cadence, Reporter, SaveClock
from jaxssl.training.state import merge, traced_scalars
from jaxssl.training.step import make_epoch_hook


def test_epochs_of_batches_that_straddle():
    cadence = Cadence(stop=10, batch_size=4, num_examples=10, log=3, save=5, save_minutes=0.0)
    assert [cadence.epoch(step) for step in range(6)] == [0, 0, 0, 1, 1, 2]
    assert [step for step in range(10) if cadence.starts_epoch(step)] == [0, 3, 5, 8]


def test_due_at_multiples_and_at_the_end():
    cadence = Cadence(stop=10, batch_size=4, num_examples=10, log=3, save=5, save_minutes=0.0)
    assert [step for step in range(1, 11) if cadence.due(3, step)] == [3, 6, 9, 10]
    assert not any(cadence.due(0, step) for step in range(1, 11))


@pytest.mark.parametrize(
    ("epochs", "images", "batch", "first"),
    [
        (0.07, 50_000, 500, [7, 14, 21]),
        (1.0, 1000, 256, [4, 8, 12]),
        (1, 96, 64, [2, 3, 5]),
        (0.001, 1000, 8, [1, 2, 3]),
        (10.0, 126_689, 256, [4949]),
    ],
)
def test_an_evaluation_follows_the_step_that_completes_its_epochs(epochs, images, batch, first):
    every = evals.steps_of(epochs, images, batch)
    cadence = Cadence(9_000, batch, images, log=0, save=0, save_minutes=0.0)
    due = [step for step in range(1, 9_000) if cadence.due(every, step)]
    assert due[:3] == first
    # In thousandths of an epoch, as whole numbers: those that are complete after each step.
    part = round(epochs * 1000) * images
    complete = [step * batch * 1000 // part for step in range(9_000)]
    assert due == [step for step in range(1, 9_000) if complete[step] > complete[step - 1]]
    assert cadence.due(every, 9_000)


def test_cadence_of_a_config():
    run = config_for("simclr").run
    run.stop_step = 7
    cadence = Cadence.from_config(run, batch_size=8, num_examples=100, total_steps=50)
    assert (cadence.stop, cadence.log, cadence.save) == (7, 5, 10)
    run.stop_step = 999
    assert Cadence.from_config(run, 8, num_examples=100, total_steps=50).stop == 50


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
        self.seen = Bank(jnp.zeros((), jnp.int32))
        self.drawn = Bank(jnp.zeros((), jnp.float32))
        self.rate = Bank(jnp.zeros((), jnp.float32))

    def on_epoch(self, epoch, key, hyper):
        self.seen[...] = 10 * self.seen[...] + epoch + 1
        self.drawn[...] = jax.random.uniform(key)
        self.rate[...] = hyper["learning_rate"]


def test_epoch_hook(monkeypatch):
    monkeypatch.setitem(METHODS, "simclr", CountsEpochs)
    run = Run(config_for("simclr"))
    mesh = data_mesh(2)
    hook = make_epoch_hook(
        run.blueprint, run.schedules, mesh, batch_size=64, learning_rate_scaling="linear"
    )
    hyper = traced_scalars(run.config)
    state = run.blueprint.create(0, mesh)
    state = hook(state, jnp.int32(2), hyper)
    first = float(merge(run.blueprint.graph, state.params, state.rest).drawn[...])
    state = hook(state, jnp.int32(3), hyper)
    method = merge(run.blueprint.graph, state.params, state.rest)
    assert int(method.seen[...]) == 34
    assert float(method.drawn[...]) != first
    assert float(method.rate[...]) == pytest.approx(run.config.hyper.learning_rate.value / 4)


@pytest.mark.slow
def test_the_loop_calls_the_hook_once_an_epoch_and_a_resumed_run_does_not_call_it_again(
    monkeypatch, tmp_path
):
    """1,294 images in batches of 256: epochs begin at steps 0, 6, 11, 16."""
    monkeypatch.setitem(METHODS, "simclr", CountsEpochs)
    config = config_for("simclr")
    with config.unlocked():
        config.batch_size = 256
        config.evals.knn.every = 0.0
        config.run.update(num_devices=1, log_every_steps=1, stop_step=12)
    whole = pretrain(config, tmp_path / "whole")
    with config.unlocked():
        config.run.stop_step = 7  # after the hook of epoch 1, before that of epoch 2
    pretrain(config, tmp_path / "parts")
    with config.unlocked():
        config.run.stop_step = 12
    parts = pretrain(config, tmp_path / "parts")
    assert int(whole.rest["seen"][...]) == 123
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def drive(monkeypatch):
    """The loop around a state that is the number of its step; and what is saved, in order."""
    monkeypatch.setattr(loop, "global_batch", lambda mesh, batch: batch)
    # Types are checked in tests, and the stand-ins are none of them.
    monkeypatch.setattr(loop, "_evaluated", inspect.unwrap(loop._evaluated))
    train = inspect.unwrap(loop.train)
    events = []

    class Recorder:
        """Stands in for the reporter and the checkpoints."""

        def flush(self):
            pass

        wait = flush

        def hold(self, step, metrics):
            events.append(("row", step))

        def settle(self):
            events.append("settled")

        def write(self, step, values):
            events.append((*values, step))

        def save(self, step, state):
            events.append(("saved", step, int(state.step)))

    def run(batches, *, start=0, stop=4, hook=None, first=(), interruption=None, **asked):
        state = train(
            types.SimpleNamespace(step=start),
            step_fn=lambda state, batch, hyper: (types.SimpleNamespace(step=state.step + 1), {}),
            epoch_hook=hook,
            hyper={},
            batches=iter(batches),
            mesh=None,
            cadence=Cadence(stop, batch_size=1, num_examples=1, log=0, save=0, save_minutes=0.0),
            checkpoints=Recorder(),
            evals=asked,
            first=first,
            reporter=Recorder(),
            interruption=interruption or Interruption(),
        )
        return state.step

    run.events = events
    return run


def failing(after, error, interruption=None):
    """So many batches and an error, with or without a request to stop."""
    yield from range(after)
    if interruption is not None:
        interruption.output_closed()
    raise error


def test_the_last_whole_step_is_saved_when_the_batches_fail(drive):
    """As it was before the hook of the next epoch, which runs again in a resumed run."""

    def hook(state, epoch, hyper):
        return types.SimpleNamespace(step=state.step + 0.5) if epoch == 2 else state

    with pytest.raises(OSError, match="the disk is gone"):
        drive(failing(2, OSError("the disk is gone")), hook=hook)
    assert drive.events == ["settled", ("saved", 2, 2)]
    drive.events.clear()
    with pytest.raises(OSError, match="the disk is gone"):
        drive(failing(0, OSError("the disk is gone")), start=2)
    assert drive.events == []


def test_batches_that_fail_as_the_run_is_asked_to_stop_are_no_error(drive):
    interruption = Interruption()
    with pytest.raises(Interrupted, match="output was closed: step 2 is saved"):
        drive(failing(2, RuntimeError("killed"), interruption), interruption=interruption)
    assert drive.events == ["settled", ("saved", 2, 2)]
    interruption = Interruption()
    with pytest.raises(Interrupted, match="no step was done"):
        drive(failing(0, RuntimeError("killed"), interruption), interruption=interruption)


def evaluation(name, stop_in=None):
    """Every second step; within it a request to stop may come, which it hears of."""

    def run(state, check):
        if stop_in is not None:
            stop_in.output_closed()
        check()
        return {name: 0.0}

    return evals.Evaluation(fractions.Fraction(2), run)


def test_a_request_to_stop_within_an_evaluation_saves_its_step_at_once(drive):
    interruption = Interruption()
    asked = {"a": evaluation("a"), "b": evaluation("b", interruption), "c": evaluation("c")}
    with pytest.raises(Interrupted, match="step 2 is saved"):
        drive(range(4), interruption=interruption, **asked)
    assert drive.events == [("a", 2), "settled", ("saved", 2, 2)]
    drive.events.clear()
    asked["b"] = evaluation("b")
    assert drive(range(2, 4), start=2, first=["b", "c"], **asked) == 4
    rows = [("b", 2), ("c", 2), ("a", 4), ("b", 4), ("c", 4)]
    assert drive.events == [*rows, "settled", ("saved", 4, 4)]


def test_a_request_to_stop_does_not_wait_for_evaluations_even_at_the_end(drive):
    interruption = Interruption()

    def batches():
        yield from range(3)
        interruption.output_closed()
        yield 3

    with pytest.raises(Interrupted, match="step 4 is saved"):
        drive(batches(), interruption=interruption, a=evaluation("a"))
    assert drive.events == [("a", 2), "settled", ("saved", 4, 4)]
    assert drive([], start=4, first=["a"], a=evaluation("a")) == 4
    assert drive.events[-1] == ("a", 4)
    with pytest.raises(Interrupted, match="no step was done"):
        drive([], start=4, first=["a"], interruption=interruption, a=evaluation("a"))


def test_evaluations_without_a_row_are_owed(tmp_path):
    cadence = Cadence(stop=5, batch_size=1, num_examples=1, log=0, save=0, save_minutes=0.0)
    asked = {name: evaluation(name) for name in "abc"}
    rows = [{"step": 2, "a": 0.0}, {"step": 4, "loss": 0.0}, {"step": 4, "b": 0.0, "b_std": 0.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    owed = {step: loop.owed(asked, cadence, tmp_path, step) for step in range(1, 7)}
    assert owed == {1: [], 2: ["b", "c"], 3: [], 4: ["a", "c"], 5: ["a", "b", "c"], 6: []}


def short(**changes):
    config = config_for("simclr")
    with config.unlocked():
        config.update_from_flattened_dict(
            {
                "run.stop_step": 8,
                "run.checkpoint_every_steps": 5,
                "run.log_every_steps": 2,
                "run.num_devices": 1,
                "evals.knn.every": 0.0,
            }
            | changes
        )
    return config


def losses(workdir):
    return [(row["step"], row["loss"]) for row in read_metrics(workdir)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("loop") / "undisturbed"
    pretrain(short(), workdir)
    return workdir


def test_a_signal_loses_no_step_and_the_rows_go_on(undisturbed, tmp_path, monkeypatch):
    write, begun = MetricWriter.write, []

    def write_and_signal(self, step, metrics):
        write(self, step, metrics)
        if not begun:
            begun.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)  # the thread that listens is another

    monkeypatch.setattr(MetricWriter, "write", write_and_signal)
    with pytest.raises(Interrupted, match=r"it got SIGTERM: step 3 is saved") as caught:
        pretrain(short(), tmp_path / "run")
    assert caught.value.status == 143
    assert CheckpointReader(tmp_path / "run" / "checkpoints").steps() == [3]
    assert losses(tmp_path / "run") == losses(undisturbed)[:1]
    assert not (tmp_path / "run" / "lock.json").exists()
    assert int(pretrain(short(), tmp_path / "run").step) == 8
    assert losses(tmp_path / "run") == losses(undisturbed)


@pytest.mark.slow
def test_a_signal_within_an_evaluation_leaves_it_to_the_resumed_run(tmp_path, monkeypatch):
    config = short(
        **{"run.stop_step": 4, "evals.knn.every": 0.15, "evals.knn.protocol": "dino"},
    )
    pretrain(config, tmp_path / "whole")
    extract, asked = evals.extract, []

    def extract_and_signal(embed, *args, **options):
        def embed_and_signal(batch):
            if not asked:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)
            asked.append(batch)
            return embed(batch)

        return extract(embed_and_signal, *args, **options)

    monkeypatch.setattr(evals, "extract", extract_and_signal)
    with pytest.raises(Interrupted, match="it got SIGTERM: step 4 is saved"):
        pretrain(config, tmp_path / "run")
    assert len(asked) == 1  # the check came with the first batch
    assert not any("knn" in row for row in read_metrics(tmp_path / "run"))
    assert int(pretrain(config, tmp_path / "run").step) == 4
    found, expected = (
        [{k: v for k, v in row.items() if k not in CLOCK_KEYS} for row in read_metrics(folder)]
        for folder in (tmp_path / "run", tmp_path / "whole")
    )
    assert found == expected
    assert "knn" in found[-1]


def test_a_signal_before_the_first_step_waits_for_no_compilation(tmp_path, monkeypatch):
    monkeypatch.setattr(Interruption, "stop_requested", True)
    monkeypatch.setattr(Interruption, "_reason", "it got SIGTERM", raising=False)
    with pytest.raises(Interrupted, match="no step was done"):
        pretrain(short(), tmp_path / "run")
    assert CheckpointReader(tmp_path / "run" / "checkpoints").steps() == []


def test_an_output_that_closes_is_a_reason_to_stop_too(tmp_path, monkeypatch):
    def show(self, step):
        raise BrokenPipeError

    monkeypatch.setattr(Progress, "_show", show)
    with pytest.raises(Interrupted, match=r"output was closed: step 3 is saved") as caught:
        pretrain(short(), tmp_path / "run")
    assert caught.value.status == 141


def test_saves_by_the_clock(undisturbed, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    run = short(**{"run.save_every_minutes": 2.0}).run
    cadence = Cadence.from_config(run, 64, 1000, 50)
    clock = SaveClock(cadence)
    now[0] = 119.0
    assert not clock.due(1)
    now[0] = 120.0
    assert clock.due(2)
    clock.saved()
    assert not clock.due(3)
    assert not SaveClock(dataclasses.replace(cadence, save_minutes=0.0)).due(1)
    monkeypatch.undo()
    pretrain(short(**{"run.save_every_minutes": 1e-9, "run.keep_last": 9}), tmp_path / "run")
    assert CheckpointReader(tmp_path / "run" / "checkpoints").steps() == list(range(1, 9))
    assert losses(tmp_path / "run") == losses(undisturbed)


def test_a_run_that_goes_on_is_left_alone_by_a_second_start(undisturbed):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    with owned(undisturbed), pytest.raises(UserError, match=f"in use by process {os.getpid()} "):
        pretrain(short(), undisturbed)
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


def test_finished_reads_well_where_fewer_steps_are_asked_for(undisturbed, capsys):
    pretrain(short(), undisturbed)
    assert "is finished: step 8 of 8." in capsys.readouterr().out
    pretrain(short(**{"run.stop_step": 3}), undisturbed)
    said = capsys.readouterr().out
    assert "is finished: it has 8 steps and --config.run.stop_step asks for 3." in said


def test_a_probe_prints_before_it_writes(undisturbed, capsys):
    (undisturbed / "evaluations").touch()  # where a directory should be
    settings = probe.default_config()
    settings.update_from_flattened_dict({"sgd.epochs": 0, "lbfgs.l2_grid": (0.1,)})
    values = flags.FlagValues()
    flags.DEFINE_string("run", str(undisturbed), "", flag_values=values)
    flags.DEFINE_integer("step", None, "", flag_values=values)
    flags.DEFINE_bool("baselines", False, "", flag_values=values)
    settings.protocol = "none"
    flags.DEFINE_string("data_dir", "", "", flag_values=values)
    flags.DEFINE_string("digits_dir", "", "", flag_values=values)
    for name, group in (("probe", settings), ("data", data_settings())):
        config_flags.DEFINE_config_dict(name, group, flag_values=values, sys_argv=[""])
    values.mark_as_parsed()
    with pytest.raises((NotADirectoryError, FileExistsError)) as caught:
        linear_probe._main(values)
    assert "Top-1 on 360 test images" in capsys.readouterr().out
    assert cli._explain(caught.value)[1].startswith(("a file lies", "something else lies"))
