"""Part d: SimCLR by lightly's CIFAR-10 recipe, 200 epochs, with its kNN curve and wall time.

    python benchmarks/gpu/anchor.py DATA_DIR --workdir DIR --out FILE.json --seconds 540 [--toy]

Goal: at most 8 minutes on one H100 or H200 and kNN (k=200, T=.1) of at least .85; lightly: 87
minutes on an A6000 for .848 at batch 512, best epoch on the test split. As there, all 50,000
images train and the test split is what the curve is of; the last epoch is our number. DATA_DIR is
what `unpack.py` makes. Stops in time with a checkpoint; the same call again goes on from there.
"""

import argparse
import json
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

from results import HERE, Results

SECONDS_TO_SAVE = 20.0


def command(arguments: argparse.Namespace) -> list[str]:
    """The pretraining program, as a user calls it."""
    recipe = "batch=32,epochs=2,width=4" if arguments.toy else "batch=512,epochs=200"
    flags = {
        "data.name": "npy",
        "data.data_dir": arguments.data_dir.absolute(),
        "data.validation_fraction": 0,
        "evals.knn.split": "test",
        "evals.knn.every": 1 if arguments.toy else 10,
        "encoder.dtype": "float32" if arguments.toy else "bfloat16",
        "run.checkpoint_every_steps": 1000,
        "run.keep_last": 1,
    }
    return [
        *(sys.executable, "-m", "jaxssl.pretrain"),
        *("--config", f"{HERE.parents[1]}/configs/pretrain/simclr.py:{recipe}"),
        *("--workdir", str(arguments.workdir)),
        *(f"--config.{key}={value}" for key, value in flags.items()),
    ]


def rows_of(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Whole rows of the run's metrics so far."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def told(rows: list[dict[str, Any]], calls: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """The curve, the speed, and how long it took so far."""
    rates = sorted(row["images_per_second"] for row in rows if "images_per_second" in row)
    curve = [[row["step"], row["knn"]] for row in rows if "knn" in row]
    return {
        "steps": rows[-1]["step"] if rows else 0,
        "steps_in_all": steps,
        "minutes_of_all_calls": round(sum(call["seconds"] for call in calls) / 60, 3),
        "knn_by_step": curve,
        "knn_last": curve[-1][1] if curve else None,
        "knn_best": max((knn for _, knn in curve), default=None),
        "images_per_second_median": rates[len(rates) // 2] if rates else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", type=pathlib.Path)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--toy", action="store_true")
    arguments = parser.parse_args()
    begin = time.monotonic()
    results = Results(arguments.out, arguments.toy)
    calls = results.found.get("calls", [])
    call = {"command": " ".join(map(str, command(arguments))), "seconds": 0.0}
    calls.append(call)
    running = subprocess.Popen(command(arguments), cwd=HERE.parents[1])
    stopped = False
    while True:
        done = running.poll() is not None
        call["seconds"] = round(time.monotonic() - begin, 2)
        config = arguments.workdir / "config.json"
        if config.exists():
            steps = json.loads(config.read_text())["spec"]["total_steps"]
            found = told(rows_of(arguments.workdir), calls, steps)
            results.found |= {"calls": calls}
            if found != results.found.get("run") or done:
                results.add("run", found)
        if done:
            break
        if not stopped and call["seconds"] > arguments.seconds - SECONDS_TO_SAVE:
            running.send_signal(signal.SIGTERM)  # it saves at the next step
            stopped = True
        time.sleep(1.0)
    run = results.found.get("run", {})
    if running.returncode == 0 and run.get("steps") == run.get("steps_in_all"):
        results.finish()
    elif not stopped:
        raise SystemExit(f"pretraining ended with {running.returncode}")


if __name__ == "__main__":
    main()
