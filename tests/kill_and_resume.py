"""Kills a pretraining run again and again, and compares it with an undisturbed one.

    python tests/kill_and_resume.py --method moco_v2 --kills 100 [--signal TERM]

Each start is sent the signal at a random instant after it has begun to train, which is often in the
midst of a save: checkpoints are written every five steps of some ten milliseconds, and some between
by the clock. After SIGTERM and SIGINT it also looks whether a step was lost.
"""

import argparse
import dataclasses
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np

HOUSE = pathlib.Path(__file__).parent.parent


@dataclasses.dataclass
class Report:
    """What happened.

    Attributes:
      kills: processes that got the signal in the midst of their work.
      kills_while_saving: of those, how many left a checkpoint half written.
      restored_from: the step that each start after a kill went on from; 0 if from the beginning.
    """

    kills: int = 0
    kills_while_saving: int = 0
    restored_from: list[int] = dataclasses.field(default_factory=list)


def start(method: str, workdir: pathlib.Path) -> subprocess.Popen:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(HOUSE / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "PYTHONPATH": f"{HOUSE}:{HOUSE / 'tests'}",
    }
    command = [sys.executable, "-m", "jaxssl.pretrain", "--workdir", str(workdir)]
    command += ["--config", f"tests/tiny_config.py:{method}"]
    command += ["--config.run.save_every_minutes=0.002"]
    with open(f"{workdir}.log", "a") as log:
        # A shell starts what is in its background with SIGINT ignored, and a child inherits that.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.Popen(command, cwd=HOUSE, env=environment, stdout=log, stderr=log)
        finally:
            signal.signal(signal.SIGINT, before)


def finish(method: str, workdir: pathlib.Path) -> None:
    """Runs to the end, undisturbed."""
    if start(method, workdir).wait() != 0:
        raise RuntimeError(pathlib.Path(f"{workdir}.log").read_text()[-3000:])


def rows(workdir: pathlib.Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def newest(workdir: pathlib.Path) -> int:
    folder = workdir / "checkpoints"
    return max((int(p.name) for p in folder.glob("*") if p.name.isdecimal()), default=0)


def run_with_kills(
    method: str, workdir: pathlib.Path, kills: int, seed: int, number: int = signal.SIGKILL
) -> Report:
    """Sends a signal to ``kills`` starts, then lets one finish."""
    draw = random.Random(seed)
    report = Report()
    while report.kills < kills:
        report.restored_from.append(newest(workdir))
        process = start(method, workdir)
        # Rows come every five steps; their number falls first, when a resumed run cuts them.
        size, growths, wanted = rows(workdir), 0, draw.randint(1, 8)
        while process.poll() is None and growths < wanted:
            time.sleep(0.005)
            growths, size = growths + (rows(workdir) > size), rows(workdir)
        time.sleep(draw.uniform(0.0, 0.3))
        if process.poll() is not None:
            break  # it finished first; the comparison is still worth making
        process.send_signal(number)
        status = process.wait()
        if number != signal.SIGKILL:
            if status == 0:
                break  # the signal came with the last step
            check_no_step_lost(workdir, status, number)
        report.kills += 1
        half_written = list((workdir / "checkpoints").glob("*tmp*"))
        report.kills_while_saving += bool(half_written)
    finish(method, workdir)
    return report


def check_no_step_lost(workdir: pathlib.Path, status: int, number: int) -> None:
    """What a run says that was asked to stop is true, and all it did is in its checkpoint."""
    log = pathlib.Path(f"{workdir}.log").read_text()
    assert status == 128 + number, log[-3000:]
    last = log.splitlines()[-1]
    name = signal.Signals(number).name
    said = re.fullmatch(
        rf"error: stopped because it got {name}: step (\d+) is saved and the same .*", last
    )
    assert said, last
    saved = newest(workdir)
    assert int(said[1]) == saved
    rows_of_losses = [row["step"] for row in metric_rows(workdir) if "loss" in row]
    # One row each five steps: all that belong to the checkpoint, and none beyond it.
    assert rows_of_losses == list(range(5, saved + 1, 5))
    assert not list((workdir / "checkpoints").glob("*tmp*"))
    assert not (workdir / "lock.json").exists()


def checkpoint_arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Every leaf of the last checkpoint, by name, through the program's own template."""
    import jax
    from tiny import Run

    from jaxssl.checkpoint import CheckpointReader
    from jaxssl.distributed import data_mesh
    from jaxssl.run_directory import read_config

    run = Run(read_config(workdir))
    template = run.blueprint.abstract(data_mesh(1))
    _, state = CheckpointReader(workdir / "checkpoints").restore(template)
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        leaves[jax.tree_util.keystr(path)] = np.asarray(leaf)
    return leaves


def metric_rows(workdir: pathlib.Path) -> list[dict]:
    """All rows without what depends on the clock."""
    from jaxssl.reporting import CLOCK_KEYS, read_metrics

    return [
        {key: value for key, value in row.items() if key not in CLOCK_KEYS}
        for row in read_metrics(workdir)
    ]


def assert_identical(killed: pathlib.Path, undisturbed: pathlib.Path) -> None:
    """Bit for bit: every array of the state and every row of metrics."""
    mine, theirs = checkpoint_arrays(killed), checkpoint_arrays(undisturbed)
    assert mine.keys() == theirs.keys()
    assert len(mine) > 20
    different = [name for name in mine if mine[name].tobytes() != theirs[name].tobytes()]
    assert not different, f"{len(different)} of {len(mine)} arrays differ: {different[:5]}"
    assert metric_rows(killed) == metric_rows(undisturbed)


def killed_runs(
    method: str,
    folder: pathlib.Path,
    undisturbed: pathlib.Path,
    kills: int,
    seed: int,
    number: int = signal.SIGKILL,
) -> Iterator[Report]:
    """Runs until ``kills`` starts got the signal, each compared with the undisturbed one.

    One that finishes before its signal comes, as on a busy machine, is followed by another.
    """
    done = 0
    for turn in range(kills + 5):
        killed = folder / f"killed{turn}"
        report = run_with_kills(method, killed, kills - done, seed + turn, number)
        assert newest(killed) == newest(undisturbed) > max(report.restored_from)
        assert_identical(killed, undisturbed)
        yield report
        done += report.kills
        if done >= kills:
            return
    raise AssertionError(f"of {kills} signals {done} came before the end of a run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="moco_v2")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL")
    given = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kill_and_resume_"))
    undisturbed = folder / "undisturbed"
    finish(given.method, undisturbed)
    number = signal.Signals[f"SIG{given.signal}"]
    for report in killed_runs(given.method, folder, undisturbed, given.kills, given.seed, number):
        print(f"{report}, then bit-identical to the undisturbed run", flush=True)


if __name__ == "__main__":
    sys.path[:0] = [str(HOUSE), str(HOUSE / "tests")]
    main()
