"""Host cost of the input pipeline, with no augmentation and no device.

Claim: from a 32x32 set in memory the pipeline delivers at least 200,000 images a second in batches
of 512 on two CPU cores, so that it is never what a training step waits for.

    python benchmarks/pipeline.py [--tfds_dir DIR] [--folder DIR] [--runs 5]

CIFAR-10 where it is prepared under ``--tfds_dir``, otherwise random pixels of the same shape. The
folder is one with ``train/<class>/*``; without ``--folder`` JPEGs of 500 x 375 are made.
"""

import argparse
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time

import numpy as np
import PIL.Image
from ml_collections import ConfigDict

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from configs.common import data_group
from jaxssl.data.pipeline import train_batches
from jaxssl.data.sources import Source, array_source, load
from jaxssl.randomness import Split

GOAL = 200_000
WARM_UP_STEPS = 4


def data(name: str, data_dir: str, image_size: int) -> ConfigDict:
    config = data_group()
    config.update(name=name, data_dir=data_dir, image_size=image_size, validation_fraction=0.0)
    return config


def images_per_second(
    source: Source, *, batch_size: int, steps: int, prefetch: int, workers: int = 0
) -> float:
    """Throughput of ``steps`` batches after the first few, which start threads or processes."""
    batches = train_batches(
        source,
        data_seed=0,
        batch_size=batch_size,
        start_step=0,
        num_steps=WARM_UP_STEPS + steps,
        process_index=0,
        process_count=1,
        prefetch=prefetch,
        workers=workers,
    )
    for _ in range(WARM_UP_STEPS):
        next(batches)
    start = time.perf_counter()
    for _ in range(steps):
        next(batches)
    rate = batch_size * steps / (time.perf_counter() - start)
    batches.close()
    return rate


def report(label: str, rates: list[float]) -> float:
    median = statistics.median(rates)
    print(f"{label:<44} {median:>12,.0f}   ({min(rates):,.0f} .. {max(rates):,.0f})", flush=True)
    return median


def memory(tfds_dir: pathlib.Path, runs: int) -> None:
    if (tfds_dir / "cifar10").is_dir():
        start = time.perf_counter()
        source = load(data("cifar10", str(tfds_dir), 0), "train")
        print(f"CIFAR-10, decoded into memory in {time.perf_counter() - start:.1f} s")
    else:
        images = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), np.uint8)
        labels = np.zeros(50_000, np.int32)
        source = array_source("noise", Split.TRAIN, images, {"label": labels}, num_classes=10)
        print("random pixels, 50,000 images of 32x32x3")
    for prefetch in (0, 2):
        for batch_size in (128, 512, 1024, 4096):
            steps = max(20, 200_000 // batch_size)
            rates = [
                images_per_second(source, batch_size=batch_size, steps=steps, prefetch=prefetch)
                for _ in range(runs)
            ]
            median = report(f"in memory, batch {batch_size}, prefetch {prefetch}", rates)
            if batch_size == 512:
                print(f"    goal of {GOAL:,}: {'met' if median >= GOAL else 'missed'}")


def make_folder(root: pathlib.Path) -> None:
    """64 smooth JPEGs of the size that ImageNet photographs usually have."""
    rng = np.random.default_rng(0)
    (root / "train" / "noise").mkdir(parents=True)
    for number in range(64):
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (47, 63, 3), np.uint8))
        image = coarse.resize((500, 375), PIL.Image.Resampling.BICUBIC)
        image.save(root / "train" / "noise" / f"{number}.jpg", quality=90)


def decode(folder: pathlib.Path, runs: int) -> None:
    source = load(data("folder", str(folder), 224), "train", memory_limit_bytes=0)
    print(f"{len(source)} files of {source.name}, decoded to 224x224")
    for workers in (0, 2):
        rates = [
            images_per_second(source, batch_size=32, steps=60, prefetch=2, workers=workers)
            for _ in range(runs)
        ]
        report(f"folder, batch 32, {workers or 'no'} worker processes", rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = pathlib.Path(__file__).parents[2] / "shared" / "data" / "tfds"
    default = pathlib.Path(os.environ.get("TFDS_DATA_DIR", shared))
    parser.add_argument("--tfds_dir", type=pathlib.Path, default=default)
    parser.add_argument("--folder", type=pathlib.Path, default=None)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}")
    print(f"{'images a second':<44} {'median':>12}   (of {arguments.runs} runs)")
    memory(arguments.tfds_dir, arguments.runs)
    if arguments.folder is not None:
        decode(arguments.folder, arguments.runs)
        return
    with tempfile.TemporaryDirectory() as made:
        make_folder(pathlib.Path(made))
        decode(pathlib.Path(made), arguments.runs)


if __name__ == "__main__":
    main()
