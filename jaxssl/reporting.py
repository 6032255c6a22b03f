"""What a run tells the world while it works: metric rows, TensorBoard, progress and tables."""

import collections
import contextlib
import errno
import importlib
import io
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import rich.console
import rich.progress
import rich.table
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from jaxssl.errors import UserError
from jaxssl.storage import Path, as_path, is_local, write_whole

CLOCK_KEYS = frozenset({"images_per_second"})
"""Metrics that depend on the clock: all others of a resumed run equal an undisturbed run's."""

_ROWS = "metrics.jsonl"
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_UPLOADS = 30.0
_UPDATES_IN_RATE = 50


class MetricWriter:
    """Appends rows of numbers to ``metrics.jsonl``, TensorBoard and, if asked, W&B.

    Args:
      workdir: the run directory; ``metrics.jsonl`` and ``tensorboard/`` are made in it.
      restored_step: step of the checkpoint that the run continues from: later rows are cut, for
        they will be written again. None for a run from the beginning: all rows are cut.
      active: False makes an object that writes nothing (all processes but the first).
      wandb: also log to Weights & Biases, under the name of the run directory.

    Raises:
      UserError: W&B is asked for but not installed; a row in ``metrics.jsonl`` is unreadable.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        restored_step: int | None,
        *,
        active: bool = True,
        wandb: bool = False,
    ) -> None:
        self._active = active
        self._wandb: Any = None
        if not active:
            return
        workdir = as_path(workdir, "run directory")
        workdir.mkdir(parents=True, exist_ok=True)
        last = -1 if restored_step is None else restored_step
        _cut_rows(workdir / _ROWS, last)
        self._open = contextlib.ExitStack()
        if wandb:
            self._wandb = _start_wandb(workdir)
            self._open.callback(self._wandb.finish)
        self._rows = self._open.enter_context(_growing(workdir / _ROWS))
        (workdir / "tensorboard").mkdir(parents=True, exist_ok=True)
        # The full resolution: a restart within a second would overwrite the file.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{time.time_ns()}"
        self._events = self._open.enter_context(_growing(workdir / "tensorboard" / name))
        self._add_event(file_version="brain.Event:2")
        self._add_event(step=last + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one row; in a local file it is there when this returns.

        Args:
          step: number of updates behind the metrics. A row must be written, and `sync` called,
            before the checkpoint of its step is saved, or a kill between the two loses it.
          metrics: name -> scalar (Python, NumPy or JAX; the latter are waited for).
        """
        if not self._active:
            return
        row = {name: _number(value) for name, value in metrics.items()}
        self._rows.write(json.dumps({"step": step} | row | {"step": step}).encode() + b"\n")
        self._rows.flush()
        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items()]
        self._add_event(step=step, summary=Summary(value=values))
        if self._wandb is not None:
            self._wandb.log(row, step=step)

    def sync(self) -> None:
        """Returns once all rows are in the file, wherever it is."""
        if self._active:
            for file in (self._rows, self._events):
                if isinstance(file, _CloudFile):
                    file.upload()

    def close(self) -> None:
        """Flushes and closes everything; a second call does nothing."""
        if self._active:
            self._active = False
            self._open.close()

    def _add_event(self, **content: Any) -> None:
        # Not by tensorboardX's own writer: on a full disk its thread dies, and then its queue
        # fills and holds whoever adds to it for good.
        data = Event(wall_time=time.time(), **content).SerializeToString()
        length = struct.pack("<Q", len(data))
        for part in (length, data):
            self._events.write(part + struct.pack("<I", masked_crc32c(part)))
        self._events.flush()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _CloudFile(io.BytesIO):
    """A growing file on an object store, where nothing can be appended to: kept, and sent whole."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._sent = path, time.monotonic()
        if path.exists():
            self.write(path.read_bytes())

    def flush(self) -> None:
        """Sends it now and then: the loop does not wait for each row."""
        if time.monotonic() - self._sent >= _SECONDS_BETWEEN_UPLOADS:
            self.upload()

    def upload(self) -> None:
        """Sends it."""
        self._path.write_bytes(self.getvalue())
        self._sent = time.monotonic()

    def close(self) -> None:
        """Sends it for the last time; a second call does nothing."""
        if not self.closed:
            self.upload()
        super().close()


def _growing(path: Path) -> io.BufferedWriter | _CloudFile:
    return open(path, "ab") if is_local(path) else _CloudFile(path)


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl`` in order; a last line that was cut off by a kill is left out.

    Raises:
      UserError: another line is unreadable.
    """
    path = as_path(workdir, "run directory") / _ROWS
    content = path.read_bytes().decode(errors="replace") if path.exists() else ""
    lines = content.splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not line.endswith("\n") or not isinstance(row["step"], int):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise UserError(
                f"line {number} of {path} is not a row of metrics: mend or delete it."
            ) from None
        rows.append(row)
    return rows


def _cut_rows(path: Path, last: int) -> None:
    """Drops rows after a step, and a torn last line; the file is replaced in one step.

    Whoever calls it owns the run directory: another writer would go on with the old file.
    """
    if not path.exists():
        return
    kept = [row for row in read_metrics(path.parent) if row["step"] <= last]
    write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))


def _number(value: Any) -> int | float:
    return np.asarray(value).item()


def _start_wandb(workdir: Path) -> Any:
    try:
        wandb = importlib.import_module("wandb")
    except ImportError:
        raise UserError(
            "--config.run.wandb is on but W&B is not installed: pip install wandb."
        ) from None
    folder = {"dir": str(workdir)} if is_local(workdir) else {}
    return wandb.init(project="jaxssl", name=workdir.name, resume="auto", **folder)


class _Console(rich.console.Console):
    """rich's, which would end the program without a word where its reader is gone."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError(errno.EPIPE, "the standard output is closed")


class Progress:
    """One line that says how far a run is: a bar on a terminal, a line now and then elsewhere.

    Args:
      total_steps: steps of the whole run.
      first_step: steps done before this process started.
      batch_size: images a step, over all processes.
      active: False shows nothing (all processes but the first).
      on_closed: called once if the output cannot be written to (a pipe whose reader is gone, a
        terminal that is); nothing is shown from then on. None: the OSError is raised.
      console: where to show it; None is the standard output.

    Use as a context manager.
    """

    def __init__(
        self,
        total_steps: int,
        first_step: int,
        batch_size: int,
        *,
        active: bool = True,
        on_closed: Callable[[], None] | None = None,
        console: rich.console.Console | None = None,
    ) -> None:
        self._total = total_steps
        self._batch = batch_size
        self._console = console or _Console()
        self._on_closed = on_closed
        self._active = active
        # The first step compiles: the rate counts from its end.
        self._marks: collections.deque[tuple[float, int]] = collections.deque(
            maxlen=_UPDATES_IN_RATE
        )
        self._shown: dict[str, float] = {}
        self._next_line = 0.0
        self._bar: rich.progress.Progress | None = None
        if active and self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.BarColumn(bar_width=None),
                rich.progress.TextColumn("{task.fields[line]}", justify="left"),
                console=self._console,
                expand=True,
            )
            self._task = self._bar.add_task(
                "", total=total_steps, completed=first_step, line=f"step {first_step}/{total_steps}"
            )

    @property
    def images_per_second(self) -> float:
        """Over the last updates, compilation left out; 0 before the second update."""
        if len(self._marks) < 2:
            return 0.0
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return (last - first) * self._batch / max(end - start, 1e-9)

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Says that a step is done.

        Args:
          step: number of steps done, of this process and those before it.
          metrics: numbers to show, of which ``loss`` and ``knn`` are shown (the last ones seen).
        """
        self._marks.append((time.monotonic(), step))
        self._shown.update({name: metrics[name] for name in ("loss", "knn") if name in metrics})
        if not self._active:
            return
        try:
            self._show(step)
        except OSError:
            self._active = False
            if self._on_closed is None:
                raise
            self._on_closed()

    def _show(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step, line=self._line(step))
        elif time.monotonic() >= self._next_line or step == self._total:
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            self._console.print(self._line(step), highlight=False, soft_wrap=True)

    def _line(self, step: int) -> str:
        parts = [f"step {step}/{self._total}"]
        if rate := self.images_per_second:
            left = (self._total - step) * self._batch / rate
            parts += [f"{rate:,.0f} images/s", f"{_clock(left)} left"]
        if "loss" in self._shown:
            parts.append(f"loss {self._shown['loss']:.4f}")
        if "knn" in self._shown:
            parts.append(f"kNN {100 * self._shown['knn']:.1f} %")
        return "  ".join(parts)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):  # its terminal may be gone
                self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def results_table(
    rows: Sequence[Sequence[str | float | None]], columns: Sequence[str], title: str
) -> rich.table.Table:
    """A table of results for the terminal.

    Args:
      rows: cells in the order of the columns; a float is an accuracy in [0, 1] and is shown in
        percent with two digits, None as a dash.
      columns: headings; the first column is left-aligned, the others right-aligned.
      title: the line above the table.

    Raises:
      ValueError: a row has another number of cells than there are columns.
    """
    return text_table([[_cell(cell) for cell in row] for row in rows], columns, title)


def text_table(
    rows: Sequence[Sequence[str]], columns: Sequence[str], title: str
) -> rich.table.Table:
    """`results_table` of cells that are text already."""
    table = rich.table.Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"Row {row} has {len(row)} cells for {len(columns)} columns.")
        table.add_row(*row)
    return table


def _cell(value: str | float | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{100 * value:.2f} %"


def print_table(table: rich.table.Table) -> None:
    """Prints a table to the standard output, at most 100 columns wide."""
    console = _Console()
    console.print(table, width=min(console.width, 100))
