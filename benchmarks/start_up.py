"""How long a run takes to begin: from the command to its first line, and to its first step.

    python benchmarks/start_up.py [--cases quickstart resnet18] [--rounds 5] [--out FILE.json]

Each start is a process of its own, told to stop after two steps. Its first line of output says what
it is about to do, and the line of step 1 comes when that step is done and the second under way.
*Cold*: nothing is kept of earlier starts; *warm*: compiled programs are, and decoded images of
TFDS sets. `quickstart` are scikit-learn's digits and
the small net, `resnet18` SimCLR at width 64 and batch 128 on random pixels in the shape of CIFAR-10
(``--cifar10 DIR``, the root of TFDS: on CIFAR-10). Imports were compiled to
bytecode and are in the system's cache of files. CPU seconds are of the whole process.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from side_by_side import environment

HOUSE = pathlib.Path(__file__).parent.parent
COLD, WARM = "cold", "warm"
GOALS = {"first line": 1.0, "first step": 6.0}  # seconds, warm


def flags_of(case: str, data: pathlib.Path, cifar10: str) -> list[str]:
    """The recipe of a case, and where its data lie."""
    if case == "quickstart":
        return ["--config=configs/quickstart.py"]
    flags = ["--config=configs/pretrain/simclr.py:batch=128"]
    if cifar10:
        return [*flags, f"--config.data.data_dir={cifar10}"]
    return [*flags, "--config.data.name=npy", f"--config.data.data_dir={data}"]


def make_noise(folder: pathlib.Path) -> None:
    """``.npy`` arrays in the shape of CIFAR-10's training split."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.save(folder / "train_images.npy", rng.integers(0, 256, (50_000, 32, 32, 3), np.uint8))
    np.save(folder / "train_labels.npy", np.arange(50_000) % 10)


def start(flags: list[str], workdir: pathlib.Path, cache: pathlib.Path) -> dict[str, float]:
    """Seconds of one start."""
    more = {"run.stop_step": 2, "run.log_every_steps": 1, "evals.knn.every": 0}
    command = [sys.executable, "-u", "-m", "jaxssl.pretrain", *flags, f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in more.items()]
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    given = inherited | {"JAXSSL_CACHE": str(cache), "PYTHONPATH": str(HOUSE)}
    found: dict[str, float] = {}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    with subprocess.Popen(
        command, cwd=HOUSE, env=given, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            now = time.perf_counter() - begin
            found.setdefault("first line", now)
            if line.startswith("step 1/"):
                found["first step"] = now
    if running.returncode or "first step" not in found:
        raise RuntimeError(f"{' '.join(command)} ended with {running.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found | {"CPU, to the end": used, "to the end": time.perf_counter() - begin}


def measure(flags: list[str], folder: pathlib.Path, rounds: int) -> dict[str, Any]:
    """Medians and extremes of cold and of warm starts."""
    starts: dict[str, list[dict[str, float]]] = {COLD: [], WARM: []}
    cache = folder / "cache"
    starts[COLD].append(start(flags, folder / "cold", cache))
    for number in range(rounds):
        starts[WARM].append(start(flags, folder / f"warm{number}", cache))
    return {
        kind: {
            what: {
                "seconds": round(statistics.median(one[what] for one in times), 2),
                "lowest_highest": [round(f(one[what] for one in times), 2) for f in (min, max)],
            }
            for what in times[0]
        }
        for kind, times in starts.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cases = ["quickstart", "resnet18"]
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases)
    parser.add_argument(
        "--rounds", type=int, default=5, help="warm starts; of cold ones there is 1"
    )
    parser.add_argument("--cifar10", default="", help="root of TFDS")
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"environment": environment(), "cases": {}}
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        make_noise(folder / "noise")
        for case in arguments.cases:
            (folder / case).mkdir()
            flags = flags_of(case, folder / "noise", arguments.cifar10)
            found["cases"][case] = measure(flags, folder / case, arguments.rounds)
            for kind, times in found["cases"][case].items():
                print(case, kind, {what: time["seconds"] for what, time in times.items()})
            for what, goal in GOALS.items():
                seconds = found["cases"][case][WARM][what]["seconds"]
                print(
                    f"    {what}, warm: goal of {goal:g} {'met' if seconds <= goal else 'missed'}"
                )
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
