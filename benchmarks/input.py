"""What the input side costs: view policies beside the peers', corruptions, composed sets.

    python benchmarks/input.py [--policies simclr_cifar ...] [--rounds 5] [--out FILE.json]
    python benchmarks/input.py --step [--batch 256] [--dtype bfloat16]

Claims: on a CPU our two views of 32 pixels are made at least twice as fast as by albumentations, at
224 pixels as fast as by Pillow; on an accelerator they take at most a tenth of a ResNet-50 step.

Images a second, all views of an image made, from uint8 arrays in memory to float32 in [0, 1]. Every
contestant has as many threads as there are cores: ours one virtual device a core and the batch cut
over them; Pillow (the operations of torchvision) and albumentations a process a core, which hand no
views back; kornia that many threads of PyTorch. They take turns and medians count. CPU milliseconds
an image are given beside: they hold on a busy machine too. Peers that are not installed are left
out. The photographs are scikit-learn's two, cropped at random.

``--step`` times the views of SimCLR alone against its whole training step on whatever JAX sees.
"""

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import input_peers
import input_step
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from side_by_side import environment
from sklearn.datasets import load_sample_images

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from jaxssl.augment import ops
from jaxssl.augment.augmentation import (
    Augmentation,
    byol,
    moco_v2,
    simclr_cifar,
    simclr_imagenet,
)
from jaxssl.augment.policies import PAIRS, paired_view, start_numbers
from jaxssl.augment.views import multi_view
from jaxssl.corruptions.apply import Corruptor, corruption_group
from jaxssl.corruptions.ops import CORRUPTIONS
from jaxssl.data.composed import multi_digits
from jaxssl.data.sources import array_source
from jaxssl.distributed import data_mesh, global_batch
from jaxssl.randomness import Split

CORES = len(os.sched_getaffinity(0))
OURS = "jaxssl"
YIQ = "jaxssl, hue in YIQ"
# Side of the views, and of the images they are made of.
CANONICAL = {32: 32, 224: 256}
BATCH = {32: 256, 224: 32}
PRESETS = {
    "simclr_cifar": simclr_cifar,
    "simclr_imagenet": simclr_imagenet,
    "moco_v2": moco_v2,
    "byol": byol,
}
BESIDE_PEERS = {"simclr_cifar": 32, "simclr_imagenet": 224, "moco_v2": 224, "byol": 224}
SPATIAL = ("overlap", "patch", "exclusive", "cutout_blur")
# Makes the views of a batch once; returns CPU seconds spent in other processes.
Contestant = Callable[[], float]


def photographs(count: int, side: int) -> np.ndarray:
    """uint8 [count, side, side, 3]."""
    rng = np.random.default_rng(0)
    whole = [Image.fromarray(image) for image in load_sample_images().images]
    images = []
    for number in range(count):
        image, length = whole[number % 2], int(rng.integers(300, 427))
        x, y = (int(rng.integers(0, side - length)) for side in image.size)
        cut = image.crop((x, y, x + length, y + length))
        images.append(np.asarray(cut.resize((side, side), Image.Resampling.BICUBIC)))
    return np.stack(images)


def batch_of(images: np.ndarray) -> dict[str, Any]:
    """A batch as the pipeline makes it."""
    rows = len(images)
    return {
        "image": images,
        "content": np.full((rows, 2), images.shape[1], np.int32),
        "index": np.arange(rows, dtype=np.int32),
        "split": np.full(rows, Split.TRAIN, np.int32),
        "epoch": np.zeros(rows, np.int32),
        "targets": {},
    }


def ours(images: np.ndarray, views: tuple[Augmentation, ...], pair: str | None) -> Contestant:
    """Our policy, compiled; the batch goes to the devices in every run."""
    mesh, batch = data_mesh(), batch_of(images)
    hyper = {"data_seed": jnp.uint32(0)} | (start_numbers(pair) if pair else {})

    def policy(batch: dict[str, Any], hyper: dict[str, Any]) -> tuple[jax.Array, ...]:
        if pair is None:
            return multi_view(batch, hyper["data_seed"], views).images
        return paired_view(batch, hyper, views, PAIRS[pair]).images

    compiled = jax.jit(policy).lower(global_batch(mesh, batch), hyper).compile()

    def run() -> float:
        jax.block_until_ready(compiled(global_batch(mesh, batch), hyper))
        return 0.0

    return run


def peer_contestants(pool: Any, name: str, images: np.ndarray) -> dict[str, Contestant]:
    """Those that are installed."""
    chunks = np.linspace(0, len(images), CORES + 1).astype(int)
    recipe = [dataclasses.asdict(view) for view in PRESETS[name](BESIDE_PEERS[name])]

    def in_processes(peer: str) -> Contestant:
        tasks = [(peer, name, *ends) for ends in itertools.pairwise(chunks)]
        return lambda: sum(pool.starmap(input_peers.work, tasks, chunksize=1))

    found = {"Pillow": in_processes("Pillow")}
    if input_peers.albumentations is not None:
        found["albumentations"] = in_processes("albumentations")
    if input_peers.kornia is not None:
        input_peers.torch.set_num_threads(CORES)
        views = [input_peers.kornia_views(view) for view in recipe]

        def run() -> float:
            for view in views:
                view(images)
            return 0.0

        found["kornia"] = run
    return found


def measure(contestants: dict[str, Contestant], images: int, rounds: int) -> dict[str, dict]:
    """Runs all in turns; rates and CPU times, medians, and ratios to the first contestant."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    cpu: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for _ in range(rounds):
        for name, run in contestants.items():
            start, spent = time.perf_counter(), time.process_time()
            elsewhere = run()
            cpu[name].append(time.process_time() - spent + elsewhere)
            seconds[name].append(time.perf_counter() - start)
    wall = {name: statistics.median(values) for name, values in seconds.items()}
    work = {name: statistics.median(values) for name, values in cpu.items()}
    first = next(iter(contestants))
    return {
        name: {
            "images_per_second": round(images / wall[name], 1),
            "slowest_fastest": [round(images / f(seconds[name]), 1) for f in (max, min)],
            "cpu_milliseconds_an_image": round(1e3 * work[name] / images, 4),
            "first_is_faster_by": round(wall[name] / wall[first], 2),
            "first_takes_less_cpu_by": round(work[name] / work[first], 2),
        }
        for name in contestants
    }


def show(console: Console, title: str, rows: dict[str, dict]) -> None:
    """Prints the rows of `measure`."""
    table = Table(title=title, title_justify="left")
    table.add_column("contestant")
    first = next(iter(rows))
    for heading in ("images/s (slowest .. fastest)", "CPU ms/image", f"{first}: x", "x in CPU"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        low, high = row["slowest_fastest"]
        table.add_row(
            name,
            f"{row['images_per_second']:,.0f} ({low:,.0f} .. {high:,.0f})",
            f"{row['cpu_milliseconds_an_image']:.3f}",
            f"{row['first_is_faster_by']:.2f}",
            f"{row['first_takes_less_cpu_by']:.2f}",
        )
    console.print(table)


def hue_difference(images: np.ndarray) -> dict[str, float]:
    """Mean absolute differences over photographs at shifts of -.1 and .1, pixels in [0, 1]."""
    image = jnp.asarray(images, jnp.float32) / 255
    turned = {
        space: jnp.stack([jax.vmap(turn, (0, None))(image, shift) for shift in (-0.1, 0.1)])
        for space, turn in ops.HUE_SPACES.items()
    }
    differences = {f"{space}_moves": value - image for space, value in turned.items()}
    differences["hsv_from_yiq"] = turned["hsv"] - turned["yiq"]
    return {name: round(float(jnp.abs(value).mean()), 4) for name, value in differences.items()}


def host_costs(console: Console, rounds: int) -> dict[str, dict]:
    """Corruptions of 512 images of 32 pixels and composition of 128 canvases, in NumPy."""
    batch = batch_of(photographs(512, 32))
    contestants: dict[str, Contestant] = {}
    for name in sorted(CORRUPTIONS.keys() - {"none"}):
        group = corruption_group()
        group.name = name
        corruptor = Corruptor.from_config(group)
        contestants[name] = lambda corruptor=corruptor: 0.0 * corruptor.on_host(batch).size
    found = {"corruptions": measure(contestants, 512, rounds)}
    show(console, "corruptions on the host, 32 px, one thread", found["corruptions"])

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (1000, 28, 28, 1), np.uint8), rng.integers(0, 10, 1000)
    digits = array_source("noise", Split.TRAIN, images, {"label": labels}, num_classes=10)
    composed = {}
    for count in (1, 4, 16):
        source = multi_digits(
            digits, canvas=112, count=count, sizes=(28,), placement="grid", combine="max", seed=0
        )
        composed[f"MultiDigits, {count}"] = lambda s=source: 0.0 * len(s.gather(np.arange(128)))
    found["composition"] = measure(composed, 128, rounds)
    show(console, "composition on the host, 112 px, one thread", found["composition"])
    return found


def on_the_cpu(console: Console, arguments: argparse.Namespace) -> dict[str, Any]:
    """All policies, beside the peers where those have them."""
    images = {size: photographs(BATCH[size], side) for size, side in CANONICAL.items()}
    found: dict[str, Any] = {"policies": {}, "spatial": {}}
    recipes = {
        name: tuple(dataclasses.asdict(view) for view in PRESETS[name](size))
        for name, size in BESIDE_PEERS.items()
    }
    given = {name: images[size] for name, size in BESIDE_PEERS.items()}
    with multiprocessing.get_context("spawn").Pool(
        CORES, input_peers.start_worker, (given, recipes)
    ) as pool:
        for name in arguments.policies:
            views = PRESETS[name](BESIDE_PEERS[name])
            in_yiq = tuple(dataclasses.replace(view, hue_space="yiq") for view in views)
            contestants = {
                OURS: ours(given[name], views, None),
                YIQ: ours(given[name], in_yiq, None),
            }
            contestants |= peer_contestants(pool, name, given[name])
            rows = measure(contestants, len(given[name]), arguments.rounds)
            found["policies"][name] = rows
            show(console, f"{name}, {BESIDE_PEERS[name]} px, two views", rows)
    for size, recipe in ((32, simclr_cifar), (224, simclr_imagenet)):
        contestants = {"multi_view": ours(images[size], recipe(size), None)}
        contestants |= {name: ours(images[size], recipe(size), name) for name in SPATIAL}
        rows = measure(contestants, BATCH[size], arguments.rounds)
        found["spatial"][size] = rows
        show(console, f"policies of SimCLR's views, {size} px", rows)
    found["hue_difference"] = hue_difference(images[224])
    console.print(
        "hue, mean absolute differences at shifts of -.1 and .1:", found["hue_difference"]
    )
    return found | host_costs(console, arguments.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = list(BESIDE_PEERS)
    parser.add_argument("--policies", nargs="*", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--step", action="store_true")
    for name, default in (("batch", 256), ("size", 224), ("width", 64), ("steps", 10)):
        parser.add_argument(f"--{name}", type=int, default=default, help="of --step")
    parser.add_argument("--encoder", default="resnet50", help="of --step")
    parser.add_argument("--dtype", default="bfloat16", help="of --step")
    arguments = parser.parse_args()
    if not arguments.step:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", CORES)
    console = Console(width=100)
    found: dict[str, Any] = {"environment": environment() | input_peers.versions()}
    found["environment"]["threads_or_processes_each"] = CORES
    console.print(found["environment"])
    if found["environment"]["load_at_start"] > 1:
        console.print("This machine is busy: trust CPU times only, and ratios above 1.3.")
    if arguments.step:
        images = photographs(arguments.batch, round(arguments.size * 8 / 7))
        found["step"] = input_step.against_a_step(images, arguments)
        console.print("milliseconds:", found["step"])
    else:
        found |= on_the_cpu(console, arguments)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
