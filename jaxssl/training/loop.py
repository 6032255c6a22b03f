"""The loop: feeds the compiled step, watches it one step behind, saves without waiting."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxssl.checkpoint import Checkpoints
from jaxssl.distributed import global_batch
from jaxssl.errors import UserError
from jaxssl.methods.method import Hyper, Metrics
from jaxssl.reporting import MetricWriter, Progress
from jaxssl.training.state import TrainState
from jaxssl.training.step import Step

Monitor = Callable[[TrainState], Mapping[str, float]]
EpochHook = Callable[[TrainState, Any, Hyper], TrainState]


@dataclasses.dataclass(frozen=True)
class Cadence:
    """When the loop stops and does what, in steps; 0 means never.

    Attributes:
      stop: the step to stop at.
      batch_size: images a step.
      num_examples: images an epoch; batches straddle epochs.
      log: metrics are written at its multiples and at the last step.
      save: checkpoints at its multiples and at the last step.
      monitor: the monitor runs at its multiples and at the last step.
    """

    stop: int
    batch_size: int
    num_examples: int
    log: int
    save: int
    monitor: int

    def due(self, every: int, step: int) -> bool:
        """Whether something that happens at multiples of ``every`` happens after ``step``."""
        return every > 0 and (step % every == 0 or step == self.stop)

    def epoch(self, step: int) -> int:
        """The epoch of the first image of the batch of ``step``."""
        return step * self.batch_size // self.num_examples

    def starts_epoch(self, step: int) -> bool:
        """Whether the batch of ``step`` is the first that begins in its epoch."""
        return step == 0 or self.epoch(step) > self.epoch(step - 1)

    @classmethod
    def from_config(cls, config: ConfigDict, num_examples: int, total_steps: int) -> "Cadence":
        """The cadence a config asks for."""
        return cls(
            stop=min(config.run.stop_step or total_steps, total_steps),
            batch_size=config.batch_size,
            num_examples=num_examples,
            log=config.run.log_every_steps,
            save=config.run.checkpoint_every_steps,
            monitor=math.ceil(config.monitor.knn_every_epochs * num_examples / config.batch_size),
        )


class Reporter:
    """Writes the metrics of a step once the next one is under way, and refuses a bad loss."""

    def __init__(self, writer: MetricWriter, progress: Progress, batch_size: int):
        self._writer, self._progress, self._batch_size = writer, progress, batch_size
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
                f"the loss is {values['loss']} at step {step}: lower hyper.learning_rate or raise "
                "schedule.warmup_epochs and start in a new workdir; earlier checkpoints are intact."
            )
        now = time.monotonic()
        if self._mark is not None:
            steps, seconds = step - self._mark[0], now - self._mark[1]
            values["images_per_second"] = steps * self._batch_size / seconds
        self._mark = (step, now)
        self._writer.write(step, values)
        self._progress.update(step, values)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes values that are at hand; the time since the last flush is not counted."""
        self._writer.write(step, values)
        self._progress.update(step, values)
        self._mark = None


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
    monitor: Monitor,
    reporter: Reporter,
) -> TrainState:
    """Trains from ``state.step`` to ``cadence.stop``.

    Everything written up to a step is on disk before that step's checkpoint is begun, so a run
    that is killed and resumed leaves the same rows behind as one that was not.

    Raises:
      UserError: if the loss or the state is not finite.
    """
    for step in range(int(state.step), cadence.stop):
        if epoch_hook is not None and cadence.starts_epoch(step):
            state = epoch_hook(state, jnp.int32(cadence.epoch(step)), hyper)
        state, metrics = step_fn(state, global_batch(mesh, next(batches)), hyper)
        reporter.flush()
        done = step + 1
        saves = cadence.due(cadence.save, done) or done == cadence.stop
        monitors = cadence.due(cadence.monitor, done)
        if cadence.due(cadence.log, done):
            reporter.hold(done, metrics)
        if monitors or saves:
            reporter.flush()
        if monitors:
            reporter.write(done, monitor(state))
        if saves:
            checkpoints.save(done, state)
    checkpoints.wait()
    return state
