"""Whether every method learns: a linear probe of its encoder, trained and untrained, on MNIST.

    python benchmarks/learning.py --folder DIR [--methods simclr byol] [--seeds 0 1 2]
        [--epochs EPOCHS]
    python benchmarks/learning.py --folder DIR --table [--out FILE.json]
    python benchmarks/learning.py --folder DIR --curve --methods simclr byol --seeds 0
        --epochs 3 9 27

Runs are those of configs/pretrain/mnist.py, by `jaxssl.pretrain` and `jaxssl.evaluate` from Python,
all in one process, so that seeds share a compilation; `Run.commands` are the same from a shell. A
run's numbers lie in ``DIR/parts`` when it ends, and what lies there is not run again. The data are
found as the programs find them (TFDS_DATA_DIR).

``--table`` prints Markdown: of each method the accuracy on the test images of a linear classifier
on all labels (`jaxssl.evaluation.probe.fit_lbfgs`, its l2 chosen on held-out images), of the
trained encoder and of the same with its first weights, and their difference with the 95 % interval
of crossed random effects, seeds by images (`jaxssl.metrics.paired.crossed_interval`; of one seed by
the bootstrap over images); the mean loss of the first and of the last 20 steps; RankMe and the
spread of the test images' features. ``--out`` has the same as JSON. ``--curve`` prints the accuracy
by the length of the runs, each with a schedule of its own.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from side_by_side import environment

HOUSE = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(HOUSE))
RECIPE = "configs/pretrain/mnist.py"
SECTIONS = ("linear", "geometry")
NETWORKS = ("trained", "untrained")
LINEAR = "linear lbfgs"  # by what a card's predictions were made
AVERAGED = 20  # steps
HELD_FOR = ("hardware", "device", "python", "jax")  # of what a part says of its environment
L2_GRID = (1e-4, 1e-3, 1e-2)  # of the probe: of its own five the ends took most of the time


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the table.

    Attributes:
      method: a key of the recipe's ``ROWS``.
      seed: of the run.
      epochs: its length.
    """

    method: str
    seed: int
    epochs: float

    @property
    def name(self) -> str:
        """Of its folder and its part."""
        return f"{self.method}-{self.epochs:g}-{self.seed}"

    @property
    def arguments(self) -> str:
        """Of the recipe."""
        return f"method={self.method},epochs={self.epochs:g},seed={self.seed}"

    @property
    def layer(self) -> str:
        """What is probed."""
        from configs.pretrain.mnist import ROWS

        return ROWS[self.method].layer

    def commands(self) -> tuple[str, str]:
        """Training and evaluation, as a shell takes them."""
        run = f"runs/{self.name}"
        asked = f"--sections={','.join(SECTIONS)} --probe.sgd.epochs=0"
        asked += f" --probe.lbfgs.l2_grid='{L2_GRID}'"
        if self.layer != "pooled":
            asked += f" --probe.layer={self.layer}"
        return (
            f"python -m jaxssl.pretrain --config {RECIPE}:{self.arguments} --workdir {run}",
            f"python -m jaxssl.evaluate --run {run} {asked}",
        )


def config_of(run: Run) -> Any:
    """The config of a run."""
    from configs.pretrain.mnist import get_config

    return get_config(run.arguments)


def measure(run: Run, folder: pathlib.Path) -> dict[str, Any]:
    """Trains and evaluates one run; what it leaves in ``folder`` is its part alone."""
    from jaxssl.pretrain import pretrain
    from jaxssl.storage import as_path

    workdir = folder / "runs" / run.name
    start = time.perf_counter()
    state = pretrain(config_of(run), workdir)
    trained = time.perf_counter()
    found = evaluated(as_path(workdir, "--run"), run.layer, folder / "parts")
    losses = loss_curve(workdir)
    shutil.rmtree(workdir)
    return {
        **dataclasses.asdict(run),
        "steps": int(state.step),
        "seconds": {"training": trained - start, "probes": time.perf_counter() - trained},
        "loss": losses,
        **found,
    }


def loss_curve(workdir: pathlib.Path) -> dict[str, float]:
    """Means over the first and the last steps."""
    from jaxssl.reporting import read_metrics

    losses = [row["loss"] for row in read_metrics(workdir) if "loss" in row]
    return {
        "first": statistics.mean(losses[:AVERAGED]),
        "last": statistics.mean(losses[-AVERAGED:]),
    }


def evaluated(run: Any, layer: str, folder: pathlib.Path) -> dict[str, Any]:
    """By network: accuracies, whether each test image is classified rightly, rank and spread.

    First weights that several methods share are looked at once: what is found lies in ``folder``.
    """
    from jaxssl.evaluation import probe
    from jaxssl.evaluation.opened import open_run
    from jaxssl.evaluation.probe_data import WHERE_TRAINED, data_settings

    settings = probe.default_config()
    settings.layer = layer
    settings.sgd.epochs = 0
    settings.lbfgs.l2_grid = L2_GRID
    opened = open_run(
        run, None, settings, True, None, data_settings(), WHERE_TRAINED, reuse_classifiers=False
    )
    digest = opened.probes["untrained"].network.encoder_digest()[:16]
    kept = folder / f"untrained-{digest}-{layer}.json"
    if not kept.exists():
        write(kept, looked_at(opened, "untrained"))
    return {
        "examples": {name: len(part.source) for name, part in opened.parts.items()},
        "networks": {
            "trained": looked_at(opened, "trained"),
            "untrained": json.loads(kept.read_text()),
        },
    }


def looked_at(opened: Any, name: str) -> dict[str, Any]:
    """The linear and the geometry section of one network."""
    from jaxssl.evaluation.sections import SECTIONS as KNOWN
    from jaxssl.evaluation.sections import Predictions

    probed = opened.probes[name]
    predictions = Predictions(opened.parts["test"].source.positions, probed.test.labels)
    linear, geometry = (KNOWN[key](probed, probed.settings, predictions) for key in SECTIONS)
    return {
        "linear": linear["lbfgs"]["top1"],
        "linear_few": linear["lbfgs_few"]["top1"],
        "l2": linear["lbfgs"]["l2"],
        "right": np.packbits(predictions.right(name, LINEAR)).tobytes().hex(),
        **{key: geometry[key] for key in ("rankme", "dimensions", "feature_std")},
    }


def write(path: pathlib.Path, content: Any) -> None:
    """The whole file, or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".half")
    half.write_text(json.dumps(content, indent=1) + "\n")
    half.rename(path)


def part(run: Run, folder: pathlib.Path) -> pathlib.Path:
    """Where the numbers of a run lie."""
    return folder / "parts" / f"{run.name}.json"


def measure_all(runs: Sequence[Run], folder: pathlib.Path) -> None:
    """All runs whose parts are not there."""
    from jaxssl import compilation_cache

    compilation_cache.switch_on()
    for run in runs:
        path = part(run, folder)
        if path.exists():
            continue
        shutil.rmtree(folder / "runs" / run.name, ignore_errors=True)  # of a start that was killed
        found = measure(run, folder) | {"environment": environment()}
        write(path, found)
        print(summary_line(found), flush=True)


def summary_line(found: dict[str, Any]) -> str:
    trained, untrained = (found["networks"][name] for name in NETWORKS)
    seconds = found["seconds"]
    return (
        f"{found['method']} seed {found['seed']}: linear {untrained['linear']:.4f} -> "
        f"{trained['linear']:.4f}, few {untrained['linear_few']:.4f} -> "
        f"{trained['linear_few']:.4f}, loss {found['loss']['first']:.4g} -> "
        f"{found['loss']['last']:.4g}, rankme {trained['rankme']:.1f}, std "
        f"{trained['feature_std']:.2f}, {seconds['training']:.0f} + {seconds['probes']:.0f} s"
    )


def rights(parts: Sequence[dict[str, Any]], network: str) -> np.ndarray:
    """Whether each image is classified rightly, [seeds, images]."""
    rows = []
    for found in parts:
        packed = np.frombuffer(bytes.fromhex(found["networks"][network]["right"]), np.uint8)
        rows.append(np.unpackbits(packed)[: found["examples"]["test"]])
    return np.stack(rows).astype(np.float64)


def paired(first: np.ndarray, second: np.ndarray) -> list[float]:
    """The difference of two accuracies and its ends; both are [seeds, images].

    Of one seed the interval is over images alone, and tells nothing of other seeds.
    """
    from jaxssl.metrics.paired import crossed_interval, difference, image_bootstrap

    if len(first) == 1:
        return list(image_bootstrap(np.stack([first[0], second[0]], 1), difference, seed=0))
    return list(crossed_interval(first - second).interval)


def row_of(parts: Sequence[dict[str, Any]], simclr: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One method's row, of its seeds in their order, beside SimCLR's of those that both have."""
    seeds = [found["seed"] for found in parts]
    others = [found for found in simclr if found["seed"] in seeds]
    both = [found for found in parts if found["seed"] in [other["seed"] for other in others]]

    def mean(*keys: str) -> float:
        values = []
        for found in parts:
            for key in keys:
                found = found[key]
            values.append(found)
        return statistics.mean(values)

    return {
        "method": parts[0]["method"],
        "epochs": parts[0]["epochs"],
        "seeds": seeds,
        **{
            network: {
                key: mean("networks", network, key)
                for key in ("linear", "linear_few", "rankme", "dimensions", "feature_std")
            }
            for network in NETWORKS
        },
        "gain": paired(rights(parts, "trained"), rights(parts, "untrained")),
        "beside_simclr": paired(rights(both, "trained"), rights(others, "trained")),
        "loss": {key: mean("loss", key) for key in ("first", "last")},
        "seconds": {key: mean("seconds", key) for key in ("training", "probes")},
        "environment": {key: parts[0]["environment"][key] for key in HELD_FOR},
    }


def collected(runs: Sequence[Run], folder: pathlib.Path) -> list[dict[str, Any]]:
    """A row for each method, of those of its runs that have ended."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: (run.method, run.seed)):
        if part(run, folder).exists():
            found.setdefault(run.method, []).append(json.loads(part(run, folder).read_text()))
    if found and "simclr" not in found:
        raise SystemExit(f"simclr, which the others are put beside, has not ended in {folder}")
    return [row_of(parts, found["simclr"]) for parts in found.values()]


def points(interval: Sequence[float]) -> str:
    """A difference in points and half its interval."""
    value, low, high = (100 * number for number in interval)
    return f"{value:+.2f} ± {(high - low) / 2:.2f}"


HEADER = (
    "method",
    "seeds",
    "untrained, %",
    "trained, %",
    "gain, points",
    "10 a class, %",
    "against SimCLR, points",
    "loss",
    "RankMe",
    "std",
)


def cells(row: dict[str, Any]) -> list[str]:
    trained, untrained = (row[name] for name in NETWORKS)
    return [
        row["method"],
        str(len(row["seeds"])),
        f"{100 * untrained['linear']:.2f}",
        f"{100 * trained['linear']:.2f}",
        points(row["gain"]),
        f"{100 * untrained['linear_few']:.1f} → {100 * trained['linear_few']:.1f}",
        "" if row["method"] == "simclr" else points(row["beside_simclr"]),
        f"{row['loss']['first']:.4g} → {row['loss']['last']:.4g}",
        f"{untrained['rankme']:.0f} → {trained['rankme']:.0f} of {trained['dimensions']:.0f}",
        f"{untrained['feature_std']:.2f} → {trained['feature_std']:.2f}",
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    return markdown(HEADER, [cells(row) for row in rows])


def curve(by_length: dict[float, Sequence[dict[str, Any]]]) -> str:
    """The trained accuracy of each method by the length of its runs, as Markdown."""
    found: dict[str, list[str]] = {}
    for rows in by_length.values():
        for row in rows:
            cell = f"{100 * row['trained']['linear']:.2f}"
            found.setdefault(row["method"], []).append(cell)
    header = ["method", *(f"{epochs:g} epochs" for epochs in by_length)]
    whole = [[method, *row] for method, row in found.items() if len(row) == len(by_length)]
    return markdown(header, whole)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parse() -> argparse.Namespace:
    from configs.pretrain.mnist import ROWS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=tuple(ROWS), default=tuple(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, nargs="+", default=[0.0], help="0: a row's own")
    parser.add_argument("--table", action="store_true", help="of what lies in --folder")
    parser.add_argument("--curve", action="store_true", help="likewise, over --epochs")
    parser.add_argument("--out", type=pathlib.Path, help="of --table: the rows as JSON")
    return parser.parse_args()


def main() -> None:
    from configs.pretrain.mnist import ROWS

    arguments = parse()
    # Seed by seed, so that what is interrupted has every method.
    by_length = {
        epochs: [
            Run(method, seed, epochs or ROWS[method].epochs)
            for seed in sorted(arguments.seeds)
            for method in arguments.methods
        ]
        for epochs in arguments.epochs
    }
    if not (arguments.table or arguments.curve):
        for runs in by_length.values():
            measure_all(runs, arguments.folder)
        return
    rows = {epochs: collected(runs, arguments.folder) for epochs, runs in by_length.items()}
    if arguments.curve:
        print(curve(rows))
        return
    for found in rows.values():
        print(table(found))
    if arguments.out:
        content = [row for each in rows.values() for row in each]
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
