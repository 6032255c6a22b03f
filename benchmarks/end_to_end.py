"""From images in memory to a trained encoder and its kNN accuracy: jaxssl beside lightly.

    python benchmarks/end_to_end.py --peer-python PYTHON --cifar10 DIR --out FILE.json
        [--cases width16 width64 quickstart] [--images 5000] [--epochs 4] [--seeds 0 1 2]

Both get the same arrays, recipe, net (the parameters are counted), number of training images and
epochs, and as many cores. Ours is `jaxssl.pretrain.pretrain`, as the program runs it; lightly's is
a plain loop of its parts (`end_to_end_lightly.py`): its dataset, transform, ResNet, head, loss and
kNN on CPU PyTorch, channels_last, fed by a DataLoader. Each run is a process of its own; they take
turns, and ours compiles from nothing (an empty cache) unless ``--warm``.

``seconds`` count from the arrays in memory to the accuracy, compilation included, imports not;
``seconds_of_the_process`` hold everything. kNN is computed by each library, in one protocol, after
the last epoch, on test images that choose nothing. What differs: lightly crops bilinearly, starts
from PyTorch's default weights, normalises each view's batch apart, and leaves the last incomplete
batch of an epoch out.

``--out`` is written after each run; runs that it has already are not repeated. ``--peer-python``:
an interpreter with torch, torchvision and lightly; without it ours runs alone. ``--cifar10``: root
of TFDS; the quickstart's digits come with scikit-learn, and fill the image here (``canvas=8``):
lightly has no set that places them anew in each epoch.
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
from typing import Any

import numpy as np
from side_by_side import environment

HERE = pathlib.Path(__file__).parent
OURS, LIGHTLY = "jaxssl", "lightly"
CASES = ("width16", "width64", "quickstart")
CLASSES = 10


def recipe(case: str, images: int, epochs: float) -> Any:
    """The config of a case; ``images`` and ``epochs`` are of CIFAR-10's cases alone."""
    from configs import quickstart
    from configs.pretrain import simclr

    if case == "quickstart":
        config = quickstart.get_config("canvas=8" + (f",epochs={epochs}" if epochs else ""))
    else:
        width = case.removeprefix("width")
        config = simclr.get_config(f"batch=128,width={width},epochs={epochs or 4.0}")
        config.data.train_examples = images
    with config.unlocked():
        config.data.validation_fraction = 0.0
        config.evals.knn.split = "test"
        config.evals.knn.every = config.epochs
    return config


def arrays(config: Any, cifar10: str) -> dict[str, np.ndarray]:
    """Images and labels of the training and the test split."""
    from jaxssl.data.sources import load

    config = config.copy_and_resolve_references()
    config.data.data_dir = cifar10 if config.data.name == "cifar10" else ""
    found = {}
    for split in ("train", "test"):
        source = load(config.data, split)
        found[f"{split}_images"] = source.images
        found[f"{split}_labels"] = source.targets["label"]
    return found


def described(config: Any) -> dict[str, Any]:
    """What the peer has to know of a recipe, for JSON."""
    from jaxssl.metrics.knn import PROTOCOLS
    from jaxssl.training.optim import scaled_learning_rate

    view, protocol = config.views.global_crops, PROTOCOLS[config.evals.knn.protocol]
    rate, head = config.hyper.learning_rate, config.method.head
    return {
        "net": {"name": config.encoder.name, "width": config.encoder.width},
        "head": {"hidden": head.hidden_dim, "out": head.out_dim},
        "batch": config.batch_size,
        "epochs": config.epochs,
        "size": view.size,
        "crop_scale": list(view.crop_scale),
        "colour": view.jitter_p > 0,
        "learning_rate": float(
            scaled_learning_rate(rate.value, config.batch_size, config.optimizer.scaling)
        ),
        "warmup_epochs": rate.warmup_epochs,
        "momentum": config.optimizer.momentum,
        "weight_decay": config.hyper.weight_decay,
        "temperature": config.hyper.temperature,
        "knn": {"k": protocol.k, "temperature": protocol.temperature},
    }


def run_ours(folder: pathlib.Path, case: str, seed: int, images: int, epochs: float) -> dict:
    """One run of ours on the arrays in ``folder``."""
    import jax

    from jaxssl.data.sources import array_source
    from jaxssl.pretrain import pretrain
    from jaxssl.randomness import Split
    from jaxssl.reporting import read_metrics

    config = recipe(case, images, epochs)
    with config.unlocked():
        config.seed = seed
        config.data.train_examples = 0  # cut already
    given = dict(np.load(folder / "arrays.npz"))
    sources = {
        split: array_source(
            case,
            number,
            given[f"{split}_images"],
            {"label": given[f"{split}_labels"]},
            num_classes=CLASSES,
        )
        for split, number in (("train", Split.TRAIN), ("test", Split.TEST))
    }
    workdir = folder / f"run-{time.time_ns()}"
    start, spent = time.perf_counter(), time.process_time()
    state = pretrain(config, workdir, sources)
    seconds, cpu = time.perf_counter() - start, time.process_time() - spent
    rows = read_metrics(workdir)
    return {
        "knn": next(row["knn"] for row in reversed(rows) if "knn" in row),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "images_seen": int(state.step) * config.batch_size,
        "last_loss": next(row["loss"] for row in reversed(rows) if "loss" in row),
        "versions": {"jax": jax.__version__},
    }


def launched(
    contestant: str, folder: pathlib.Path, case: str, seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Starts one run in a process of its own, and reads what it found."""
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    environment = dict(os.environ)
    if contestant == OURS:
        command = [sys.executable, __file__, "--contestant", str(folder), case, str(seed)]
        command += ["--images", str(arguments.images), "--epochs", str(arguments.epochs)]
        cache = folder / ("cache" if arguments.warm else f"cache-{time.time_ns()}")
        environment |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu"}
    else:
        command = [arguments.peer_python, str(HERE / "end_to_end_lightly.py"), str(folder)]
        command += [str(seed), str(arguments.peer_workers)]
        environment.pop("PYTHONPATH", None)
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True)
    found = json.loads(result.read_text())
    return {"contestant": contestant, "seed": seed, **found} | {
        "seconds_of_the_process": time.perf_counter() - start,
        "load": round(os.getloadavg()[0], 2),
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the times, mean and extremes of the accuracies, by contestant."""
    found: dict[str, Any] = {}
    for name in (OURS, LIGHTLY):
        own = [run for run in runs if run["contestant"] == name]
        if own:
            accuracies = [run["knn"] for run in own]
            found[name] = {
                key: round(statistics.median(run[key] for run in own), 2)
                for key in ("seconds", "cpu_seconds", "seconds_of_the_process")
            } | {
                "knn": round(statistics.mean(accuracies), 4),
                "knn_lowest_highest": [round(f(accuracies), 4) for f in (min, max)],
                "seeds": len(own),
            }
    if len(found) == 2:
        found["times_lightly"] = round(found[OURS]["seconds"] / found[LIGHTLY]["seconds"], 3)
    return found


def measure(case: str, found: dict[str, Any], arguments: argparse.Namespace) -> None:
    """All runs of a case that ``found`` lacks; it is written after each."""
    config = recipe(case, arguments.images, arguments.epochs)
    contestants = [OURS] + ([LIGHTLY] if arguments.peer_python else [])
    case_found = found["cases"].setdefault(case, {"recipe": described(config), "runs": []})
    if case_found["recipe"] != described(config):
        raise SystemExit(f"{arguments.out} holds {case} with another recipe: choose another --out")
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        given = arrays(config, arguments.cifar10)
        np.savez(folder / "arrays.npz", **given)
        (folder / "recipe.json").write_text(json.dumps(described(config)))
        case_found["images"] = {name: len(given[f"{name}_labels"]) for name in ("train", "test")}
        for number, seed in enumerate(arguments.seeds):
            for contestant in contestants[:: 1 if number % 2 == 0 else -1]:
                there = ((run["contestant"], run["seed"]) for run in case_found["runs"])
                if (contestant, seed) in there:
                    continue
                run = launched(contestant, folder, case, seed, arguments)
                case_found["runs"].append(run)
                sizes = {one["parameters"] for one in case_found["runs"]}
                assert len(sizes) == 1, f"the nets of {case} have {sizes} parameters"
                case_found["summary"] = summary(case_found["runs"])
                print(case, run, flush=True)
                if arguments.out:
                    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(case, case_found["summary"], flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--images", type=int, default=5000, help="training images of CIFAR-10")
    parser.add_argument("--epochs", type=float, default=0.0, help="0: 4, or the quickstart's own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cifar10", default=os.environ.get("TFDS_DATA_DIR", ""))
    parser.add_argument("--peer-python", default="", help="with torch, torchvision and lightly")
    parser.add_argument("--peer-workers", type=int, default=2, help="of the DataLoader")
    parser.add_argument("--warm", action="store_true", help="ours finds its programs compiled")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--contestant", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.contestant:
        folder, case, seed = pathlib.Path(arguments.contestant[0]), *arguments.contestant[1:]
        run = run_ours(folder, case, int(seed), arguments.images, arguments.epochs)
        (folder / "result.json").write_text(json.dumps(run))
        return
    found: dict[str, Any] = {"cases": {}}
    if arguments.out and arguments.out.exists():
        found = json.loads(arguments.out.read_text())
    elif arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    found["environment"] = environment()
    for case in arguments.cases:
        measure(case, found, arguments)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main()
