import errno
import io
import json
import os
import pathlib
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
import tensorboardX.proto.event_pb2

from jaxssl import reporting
from jaxssl.errors import UserError
from jaxssl.reporting import MetricWriter, Progress, read_metrics, results_table


def scalars(workdir):
    """(step, tag, value) of all TensorBoard events that a purge has not taken back."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir(), key=lambda p: p.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = tensorboardX.proto.event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == event.session_log.START:
                found = [row for row in found if row[0] < event.step]
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return found


def test_rows_are_in_the_file_at_once_and_exact(tmp_path):
    loss = jnp.float32(0.1)
    with MetricWriter(tmp_path, None) as writer:
        writer.write(20, {"loss": loss, "knn": 0.5, "count": np.int64(3)})
        assert read_metrics(tmp_path) == [
            {"step": 20, "loss": float(np.float32(0.1)), "knn": 0.5, "count": 3}
        ]
    with MetricWriter(tmp_path, 20) as writer:
        writer.write(21, {"step": 0.5})
    assert read_metrics(tmp_path)[-1] == {"step": 21}  # or no run could go on from here
    assert np.float32(read_metrics(tmp_path)[0]["loss"]) == np.float32(0.1)
    assert (20, "knn", 0.5) in scalars(tmp_path)


def test_rows_after_the_restored_step_are_cut_and_written_again(tmp_path):
    with MetricWriter(tmp_path, None) as writer:
        for step in (10, 20, 30, 40):
            writer.write(step, {"loss": step / 100})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    events = scalars(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "lo')  # killed within a line
    with MetricWriter(tmp_path, 20) as writer:
        assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20]
        for step in (30, 40):
            writer.write(step, {"loss": step / 100})
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    assert scalars(tmp_path) == events
    with MetricWriter(tmp_path, None):
        assert read_metrics(tmp_path) == []


@pytest.mark.parametrize(
    "tail", ['{"step": 2, "loss": 1}', '{"step": 2, "loss', "{}\n", "\x00\x00"]
)
def test_a_torn_last_line_is_left_out(tmp_path, tail):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n' + tail)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
    with MetricWriter(tmp_path, 5) as writer:
        writer.write(6, {})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 6]


def test_another_unreadable_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nhello\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"line 2 of .*metrics\.jsonl"):
        MetricWriter(tmp_path, 1)
    assert "hello" in (tmp_path / "metrics.jsonl").read_text()


def test_an_inactive_writer_touches_nothing(tmp_path):
    with MetricWriter(tmp_path / "new", None, active=False, wandb=True) as writer:
        writer.write(1, {"loss": 0.0})
    assert list(tmp_path.iterdir()) == []


def descriptors(directory):
    """The open files of this process in a directory: path -> descriptor."""
    found = {}
    for link in pathlib.Path("/proc/self/fd").iterdir():
        try:
            path = pathlib.Path(os.readlink(link))
        except OSError:
            continue  # the listing's own
        if directory in path.parents:
            found[path] = int(link.name)
    return found


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("full", ["metrics.jsonl", "events.out.tfevents"])
def test_a_full_disk_is_an_error_at_once_and_leaves_nothing_open(tmp_path, full):
    writer = MetricWriter(tmp_path, None)
    writer.write(1, {"loss": 2.0})
    (number,) = [fd for path, fd in descriptors(tmp_path).items() if path.name.startswith(full)]
    with open("/dev/full", "w") as device:
        os.dup2(device.fileno(), number)
    with pytest.raises(OSError, match="No space") as raised:
        writer.write(2, {"loss": 1.0})
    assert raised.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space"):
        writer.close()
    assert descriptors(tmp_path) == {}
    assert read_metrics(tmp_path)[0] == {"step": 1, "loss": 2.0}


def test_weights_and_biases_only_if_installed_and_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        MetricWriter(tmp_path / "a", None, wandb=True)
    calls = []
    run = types.SimpleNamespace(
        log=lambda row, step: calls.append((step, row)), finish=lambda: calls.append("finish")
    )
    fake = types.SimpleNamespace(init=lambda **settings: calls.append(settings["name"]) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with MetricWriter(tmp_path / "b", None, wandb=False) as writer:
        writer.write(1, {"loss": 2.0})
    assert calls == []
    with MetricWriter(tmp_path / "c", None, wandb=True) as writer:
        writer.write(1, {"loss": 2.0})
    assert calls == ["c", (1, {"loss": 2.0}), "finish"]


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(reporting, "time", clock)
    return clock


def plain_console():
    return rich.console.Console(file=io.StringIO(), force_terminal=False, width=60)


def test_without_a_terminal_a_line_now_and_then(clock):
    console = plain_console()
    with Progress(1000, 0, 64, console=console) as progress:
        for step in range(1, 1001):
            clock.now += 0.1 if step > 1 else 30.0  # the first step compiles
            progress.update(step, {"loss": 5.0 / step, **({"knn": 0.5} if step == 500 else {})})
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "step 1/1000  loss 5.0000"
    assert 10 <= len(lines) <= 12  # 100 seconds, one each 10
    assert "640 images/s" in lines[1]
    assert "1:30 left" in lines[1]
    assert lines[-1].startswith("step 1000/1000  640 images/s  0:00 left  loss 0.0050  kNN 50.0 %")
    assert all("kNN" not in line for line in lines[:5])


def test_the_rate_counts_steps_not_updates(clock):
    progress = Progress(100, 40, 10, active=False)
    for step in (60, 80):
        progress.update(step, {"loss": 0.0})
        clock.now += 4.0
    assert progress.images_per_second == pytest.approx(20 * 10 / 4.0)


def test_on_a_terminal_one_bar_within_100_columns():
    console = rich.console.Console(file=io.StringIO(), force_terminal=True, width=100)
    with Progress(12345678, 12000000, 4096, console=console) as progress:
        for step in range(12000001, 12000060):
            progress.update(step, {"loss": 1234.5678, "knn": 0.99999})
    text = rich.text.Text.from_ansi(console.file.getvalue()).plain
    frames = text.replace("\r", "\n").splitlines()
    assert any("step 12000059/12345678" in frame for frame in frames)
    assert any("kNN 100.0 %" in frame for frame in frames)
    assert max(len(frame.rstrip()) for frame in frames) <= 100
    # The numbers are whole: nothing was cut to fit.
    assert not any("…" in frame for frame in frames)


def test_an_output_that_nobody_reads_is_told_once_and_does_not_end_the_program(monkeypatch):
    """rich would end it without a word."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        monkeypatch.setattr(reporting, "_SECONDS_BETWEEN_LINES", 0.0)
        told = []
        with Progress(10, 0, 1, on_closed=lambda: told.append("closed")) as progress:
            for step in (1, 2, 3):
                progress.update(step, {"loss": 1.0})
        assert told == ["closed"]
        with Progress(10, 0, 1) as progress, pytest.raises(BrokenPipeError):
            progress.update(1, {"loss": 1.0})
        with pytest.raises(BrokenPipeError):
            reporting.print_table(results_table([["a"]], ["b"], "c"))
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)


def test_an_inactive_progress_prints_nothing(clock):
    console = plain_console()
    with Progress(10, 0, 1, active=False, console=console) as progress:
        progress.update(1, {"loss": 1.0})
    assert console.file.getvalue() == ""


def test_a_table_of_accuracies():
    table = results_table(
        [["trained", 0.98765, "l2=1e-3"], ["raw pixels", None, ""]],
        ["encoder", "top-1", "note"],
        "Linear probe",
    )
    console = plain_console()
    console.print(table)
    text = console.file.getvalue()
    assert "98.77 %" in text
    assert "Linear probe" in text
    assert " - " in text
    with pytest.raises(ValueError, match="3 cells for 2 columns"):
        results_table([[1.0, 2.0, 3.0]], ["a", "b"], "")


def test_the_rows_are_strict_json_and_the_clock_is_named(tmp_path):
    with MetricWriter(tmp_path, None) as writer:
        writer.write(1, {"loss": 1.0, "images_per_second": 3.0})
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert set(row) - reporting.CLOCK_KEYS == {"step", "loss"}
