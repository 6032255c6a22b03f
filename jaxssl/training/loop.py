"""The loop: feeds the compiled step, watches it one step behind, saves without waiting."""

import dataclasses
import fractions
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxssl.checkpoint import CheckpointReader, Checkpoints
from jaxssl.distributed import agree, check_equal, global_batch
from jaxssl.errors import UserError
from jaxssl.evaluation.evals import Evaluation
from jaxssl.interruption import GivenUp, Interruption
from jaxssl.methods.method import Metrics
from jaxssl.reporting import MetricWriter, Progress, read_metrics
from jaxssl.storage import Path
from jaxssl.training.state import Hyper, TrainState
from jaxssl.training.step import Step

EpochHook = Callable[[TrainState, Any, Hyper], TrainState]
Fill = Callable[[TrainState, Mapping[str, Any], Any, Hyper], TrainState]


@dataclasses.dataclass(frozen=True)
class Cadence:
    """When the loop stops and does what, in steps; 0 means never.

    Attributes:
      stop: the step to stop at.
      batch_size: images a step.
      num_examples: images an epoch; batches straddle epochs.
      log: metrics are written at its multiples and at the last step.
      save: checkpoints at its multiples and at the last step.
      save_minutes: checkpoints also after so many minutes without one.
    """

    stop: int
    batch_size: int
    num_examples: int
    log: int
    save: int
    save_minutes: float

    def due(self, every: int | fractions.Fraction, step: int) -> bool:
        """Whether something that happens at multiples of ``every`` happens after ``step``.

        Multiples that are no whole steps count from the next step on.
        """
        if every <= 0:
            return False
        return step // every > (step - 1) // every or step == self.stop

    def epoch(self, step: int) -> int:
        """The epoch of the first image of the batch of ``step``."""
        return step * self.batch_size // self.num_examples

    def starts_epoch(self, step: int) -> bool:
        """Whether the batch of ``step`` is the first that begins in its epoch."""
        return step == 0 or self.epoch(step) > self.epoch(step - 1)

    @classmethod
    def from_config(
        cls, run: ConfigDict, batch_size: int, num_examples: int, total_steps: int
    ) -> "Cadence":
        """The cadence that the ``run`` group of a config asks for."""
        return cls(
            stop=min(run.stop_step or total_steps, total_steps),
            batch_size=batch_size,
            num_examples=num_examples,
            log=run.log_every_steps,
            save=run.checkpoint_every_steps,
            save_minutes=run.save_every_minutes,
        )


class SaveClock:
    """Says when a checkpoint is due by the time, which process 0 measures."""

    def __init__(self, cadence: Cadence):
        self._seconds, self._log = 60 * cadence.save_minutes, cadence.log
        self._saved = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to save after this step; every process asks and hears the same."""
        if not self._seconds:
            return False
        # Others than process 0 wait for its answer, so that they ask seldom.
        if jax.process_count() > 1 and step % (self._log or 1):
            return False
        return agree("whether to save", lambda: time.monotonic() - self._saved >= self._seconds)

    def saved(self) -> None:
        """Starts anew."""
        self._saved = time.monotonic()


class Reporter:
    """Writes the metrics of a step once the next one is under way, and refuses a bad loss."""

    def __init__(
        self,
        writer: MetricWriter,
        progress: Progress,
        batch_size: int,
        checkpoints: CheckpointReader,
    ):
        self._writer, self._progress, self._batch_size = writer, progress, batch_size
        self._checkpoints = checkpoints
        self._pending: tuple[int, Metrics] | None = None
        self._mark: tuple[int, float] | None = None

    def hold(self, step: int, metrics: Metrics) -> None:
        """Keeps a step's metrics, still being computed, for the next `flush`."""
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Writes what is held.

        Raises:
          UserError: if the loss is not finite.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"the loss is {values['loss']} at step {step}: lower "
                "--config.hyper.learning_rate, or let it rise more slowly, and start in a new "
                f"--workdir; {self._checkpoints.newest_in_words()}."
            )
        now = time.monotonic()
        if self._mark is not None:
            steps, seconds = step - self._mark[0], now - self._mark[1]
            values["images_per_second"] = steps * self._batch_size / seconds
        self._mark = (step, now)
        self._writer.write(step, values)
        self._progress.update(step, values)

    def settle(self) -> None:
        """`flush`, and all rows are where they belong: a checkpoint may follow."""
        self.flush()
        self._writer.sync()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes values that are at hand; the time since the last flush is not counted."""
        self._writer.write(step, values)
        self._progress.update(step, values)
        self._mark = None


def filled(
    state: TrainState,
    *,
    fill: Fill,
    hyper: Hyper,
    batches: Iterator[Mapping[str, Any]],
    mesh: Mesh,
    interruption: Interruption,
) -> TrainState:
    """A fresh state after `Method.fill` has seen each of the batches, which cover epoch 0.

    Raises:
      Interrupted: if ``interruption`` asked for it.
    """
    for number, batch in enumerate(batches):
        if interruption.stop_requested:
            raise interruption.stopped(0, saved=False)
        state = fill(state, global_batch(mesh, batch), jnp.int32(number), hyper)
    return state


def owed(evals: Mapping[str, Evaluation], cadence: Cadence, workdir: Path, step: int) -> list[str]:
    """The evaluations due at a step that a run was asked to stop at before they were done.

    Args:
      evals: all of the run, by name.
      cadence: of the run.
      workdir: of the run, with its rows of metrics.
      step: of the checkpoint that the run continues from.

    Raises:
      UserError: if a row is unreadable.
    """
    due = _due(evals, cadence, step) if step <= cadence.stop else []
    if not due:
        return due

    def missing() -> list[str]:
        rows = (row for row in read_metrics(workdir) if row["step"] == step)
        return sorted(set(due).difference(*rows), key=due.index)

    return agree("the evaluations to catch up with", missing)


def _due(evals: Mapping[str, Evaluation], cadence: Cadence, step: int) -> list[str]:
    return [name for name, each in evals.items() if cadence.due(each.every, step)]


def _evaluated(
    evaluations: Iterable[Evaluation],
    state: TrainState,
    step: int,
    reporter: Reporter,
    interruption: Interruption,
) -> bool:
    """Runs evaluations and writes their rows; False if a request to stop came before the end."""
    try:
        for evaluation in evaluations:
            interruption.check()
            reporter.write(step, evaluation.run(state, interruption.check))
    except GivenUp:
        return False
    return True


def train(
    state: TrainState,
    *,
    step_fn: Step,
    epoch_hook: EpochHook | None,
    hyper: Hyper,
    batches: Iterator[Mapping[str, Any]],
    mesh: Mesh,
    cadence: Cadence,
    checkpoints: Checkpoints,
    evals: Mapping[str, Evaluation],
    first: Sequence[str] = (),
    reporter: Reporter,
    interruption: Interruption,
) -> TrainState:
    """Trains from ``state.step`` to ``cadence.stop``, after the evaluations named by ``first``.

    Everything written up to a step is on disk before that step's checkpoint is begun, so a run
    that is killed and resumed leaves the same rows behind as one that was not. A request to stop
    does not wait for evaluations: those of the last step are `owed`.

    Raises:
      UserError: if the loss or the state is not finite, or the processes begin at different steps.
      Interrupted: if ``interruption`` asked for it; the last step done is saved.
      Exception: what ``batches`` raise; the last step done is saved, but for several processes,
        of which one alone may have failed.
    """
    start = int(state.step)
    check_equal("the step to begin at", start)
    clock = SaveClock(cadence)
    if not _evaluated([evals[name] for name in first], state, start, reporter, interruption):
        raise interruption.stopped(start, saved=False)
    for step in range(start, cadence.stop):
        if step == start and interruption.stop_requested:  # before minutes of compilation
            raise interruption.stopped(step, saved=False)
        try:
            batch = next(batches)  # before the hook, after which no step may be saved
        except Exception as error:
            if step > start and jax.process_count() == 1:
                reporter.settle()
                checkpoints.save(step, state)
                checkpoints.wait()
            if interruption.stop_requested:
                raise interruption.stopped(step, saved=step > start) from error
            raise
        if epoch_hook is not None and cadence.starts_epoch(step):
            state = epoch_hook(state, jnp.int32(cadence.epoch(step)), hyper)
        state, metrics = step_fn(state, global_batch(mesh, batch), hyper)
        reporter.flush()
        done = step + 1
        saves = cadence.due(cadence.save, done) or done == cadence.stop or clock.due(done)
        evaluations = [evals[name] for name in _due(evals, cadence, done)]
        if cadence.due(cadence.log, done):
            reporter.hold(done, metrics)
        if evaluations or saves:
            reporter.flush()
        whole = _evaluated(evaluations, state, done, reporter, interruption)
        stops = not whole or (interruption.stop_requested and done < cadence.stop)
        if saves or stops:
            reporter.settle()
            checkpoints.save(done, state)
            clock.saved()
        if stops:
            checkpoints.wait()
            raise interruption.stopped(done, saved=True)
    checkpoints.wait()
    return state
