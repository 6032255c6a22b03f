"""Images a second from a folder of JPEGs: jaxssl beside torchvision's ImageFolder and DataLoader.

    python benchmarks/input_folder.py [--folder DIR] [--made 500x375 2000x1500] [--size 224]
        [--peer-python PYTHON] [--workers 0 1 2] [--rounds 5] [--out FILE.json]

Both open the same files with Pillow, bring them to ``--size`` pixels (short side, bicubic, centre)
and hand over uint8 batches; augmentation is the device's business with us, and is left out on both
sides. Each reading is a process of its own that starts, warms up and then reads for some seconds;
contestants take turns and medians count. CPU milliseconds an image are of all its processes, and
hold on a busy machine too. DIR has ``train/CLASS/*``; photographs of other sizes are made of
scikit-learn's two, cropped at random and enlarged. ``jaxssl, in full`` decodes every pixel
(data.jpeg_margin=0), as torchvision does. ``--workers``: 0 are threads with us, and the loop's own
thread with torchvision. ``--peer-python``: an interpreter with torch and torchvision.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL.Image

HERE = pathlib.Path(__file__).parent
SECONDS = 4.0
OURS, IN_FULL, TORCH = "jaxssl", "jaxssl, in full", "torchvision"


def make_photographs(root: pathlib.Path, width: int, height: int, count: int) -> None:
    """JPEGs of one size, of quality 90, below ``root/train``."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    whole = [PIL.Image.fromarray(image) for image in load_sample_images().images]
    (root / "train" / "photographs").mkdir(parents=True)
    for number in range(count):
        image = whole[number % 2]
        w = int(rng.integers(300, 427))
        h = w * height // width
        x, y = int(rng.integers(0, image.width - w)), int(rng.integers(0, image.height - h))
        enlarged = image.crop((x, y, x + w, y + h)).resize((width, height), 3)
        enlarged.save(root / "train" / "photographs" / f"{number}.jpg", quality=90)


def cpu_seconds() -> float:
    """Of this process and of all that it has started and that still run."""
    ticks: dict[int, tuple[int, int]] = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            ticks[int(entry.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    total, mine = 0, {os.getpid()}
    while mine:
        total += sum(ticks[pid][1] for pid in mine)
        mine = {pid for pid, (parent, _) in ticks.items() if parent in mine}
    return total / os.sysconf("SC_CLK_TCK")


def serve(folder: str, size: int, batch: int, workers: int, margin: float) -> None:
    """Reads with our pipeline; prints images and seconds."""
    sys.path.insert(0, str(HERE.parent))
    from configs.common import data_group
    from jaxssl.data.pipeline import train_batches
    from jaxssl.data.sources import load

    config = data_group()
    config.update(name="folder", data_dir=folder, image_size=size, validation_fraction=0.0)
    config.jpeg_margin = margin
    source = load(config, "train", memory_limit_bytes=0)
    batches = train_batches(
        source,
        data_seed=0,
        batch_size=batch,
        start_step=0,
        num_steps=10**9,
        process_index=0,
        process_count=1,
        workers=workers,
    )
    read(batches, lambda one: len(one["index"]), batches.close)


def read(batches: Iterator[Any], length: Callable[[Any], int], close: Callable[[], Any]) -> None:
    """Takes batches for `SECONDS`, after a few; prints images a second and CPU ms an image."""
    for _ in range(6):
        next(batches)
    images, begin, spent = 0, time.perf_counter(), cpu_seconds()
    while time.perf_counter() - begin < SECONDS:
        images += length(next(batches))
    seconds, spent = time.perf_counter() - begin, cpu_seconds() - spent
    close()
    print(json.dumps([images / seconds, 1e3 * spent / images]), flush=True)


def reading(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """What one process has printed last."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    rate, work = json.loads(done.stdout.splitlines()[-1])
    return rate, work


def measure(folder: pathlib.Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Median rates of all contestants."""
    house = {"PYTHONPATH": str(HERE.parent), "JAX_PLATFORMS": "cpu"}
    numbers = [str(folder), str(arguments.size), str(arguments.batch)]
    contestants = {}
    for workers in map(str, arguments.workers):
        for name, margin in ((OURS, "2"), (IN_FULL, "0")):
            command = [sys.executable, __file__, "--serve", *numbers, workers, margin]
            contestants[f"{name}, workers {workers}"] = (command, dict(os.environ) | house)
        if arguments.peer_python:
            command = [arguments.peer_python, str(HERE / "input_folder_torch.py"), *numbers]
            plain = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
            contestants[f"{TORCH}, workers {workers}"] = ([*command, workers], plain)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, (command, environment) in contestants.items():
            found[name].append(reading(command, environment))
    rates = {name: [rate for rate, _ in pairs] for name, pairs in found.items()}
    best = max((statistics.median(v) for k, v in rates.items() if TORCH in k), default=None)
    rows = {}
    for name, values in rates.items():
        median = statistics.median(values)
        rows[name] = {
            "images_per_second": round(median, 1),
            "slowest_fastest": [round(f(values), 1) for f in (min, max)],
            "cpu_milliseconds_an_image": round(statistics.median(w for _, w in found[name]), 3),
        }
        if best:
            rows[name]["times_the_best_of_torchvision"] = round(median / best, 2)
        print(f"  {name:28s} {rows[name]}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--made", nargs="*", default=["500x375", "2000x1500"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-python", default="")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--serve", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        folder, size, batch, workers, margin = arguments.serve
        serve(folder, int(size), int(batch), int(workers), float(margin))
        return
    from side_by_side import environment

    found: dict[str, Any] = {"environment": environment(), "folders": {}}
    with tempfile.TemporaryDirectory() as made:
        folders = {}
        if arguments.folder:
            folders[arguments.folder.name] = arguments.folder
        for sides in arguments.made:
            width, height = map(int, sides.split("x"))
            folders[f"photographs of {sides}"] = root = pathlib.Path(made) / sides
            make_photographs(root, width, height, 128)
        for name, root in folders.items():
            print(f"{name}, to {arguments.size} pixels, batch {arguments.batch}", flush=True)
            found["folders"][name] = measure(root, arguments)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
