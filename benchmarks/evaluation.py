"""What an evaluation costs beside its peers, in one run on one machine.

    python benchmarks/evaluation.py [--only knn uniformity probe fingerprint memory]
        [--peer-python PYTHON] [--rounds 5] [--bank 50000] [--queries 10000] [--out FILE.json]

Each contestant is a process of its own, for the thread pools of two libraries in one process
disturb each other; runs alternate and medians count, of wall time and of the CPU time of all
threads, which a busy machine distorts less. All get the same features of 512 components and must
find the same number: an accuracy, or U. ``--peer-python``: an interpreter with torch and
scikit-learn, and faiss if it is to take part.

The product is what kNN needs whatever is done with it: the same blocks of the same similarities,
of each of which the largest is kept. The fingerprint, of a ResNet-18 of width 16 on made images of
32 pixels, stands beside the forward passes of its images alone, already corrupted. Both probes stop
at scikit-learn's default tolerance, ten times the one that `jaxssl.evaluate` has.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import side_by_side
from evaluation_peers import BLOCK, L2, TOLERANCE, serve

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
D, CLASSES = 512, 10
CARD_EPOCHS = 10  # of the SGD classifier; lightly's own default is 90
Arrays = dict[str, np.ndarray]


def make(folder: pathlib.Path, bank: int, queries: int) -> None:
    """Features of ten overlapping classes, and of nothing in common with any real encoder's."""
    rng = np.random.default_rng(0)
    centres = 0.12 * rng.normal(size=(CLASSES, D))
    for name, count in (("bank", bank), ("query", queries)):
        labels = rng.integers(0, CLASSES, count)
        features = np.maximum(centres[labels] + rng.normal(size=(count, D)), 0)
        plural = "queries" if name == "query" else name
        np.save(folder / f"{plural}.npy", features.astype(np.float32))
        np.save(folder / f"{name}_labels.npy", labels)


# Ours ---------------------------------------------------------------------------------------------


def our_knn(files: Arrays) -> Callable[[], float]:
    from jaxssl.metrics.knn import knn_accuracy

    arrays = [files[name] for name in ("bank", "bank_labels", "queries", "query_labels")]
    return lambda: knn_accuracy(*arrays, protocol="moco")


def our_four_protocols(files: Arrays) -> Callable[[], float]:
    """All of the named protocols in one pass, of which `our_knn` is one."""
    from jaxssl.metrics.knn import knn_predictions

    def run() -> float:
        found = knn_predictions(files["bank"], files["bank_labels"], files["queries"])
        return float(np.mean(np.asarray(found["moco"]) == files["query_labels"]))

    return run


def our_product(files: Arrays) -> Callable[[], float]:
    import jax
    import jax.numpy as jnp

    @jax.jit
    def product(bank: Any, queries: Any) -> Any:
        bank, queries = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries))
        blocks = jnp.pad(queries, ((0, -len(queries) % BLOCK), (0, 0))).reshape(-1, BLOCK, D)
        return jax.lax.map(lambda block: (block @ bank.T).max(axis=1), blocks)

    def run() -> float:
        product(files["bank"], files["queries"]).block_until_ready()
        return float("nan")

    return run


def our_uniformity(files: Arrays) -> Callable[[], float]:
    from jaxssl.metrics.uniformity import uniformity

    return lambda: float(uniformity(files["bank"]))


def our_uniformity_with_interval(files: Arrays) -> Callable[[], float]:
    """With what each image adds to it, which computes every pair twice."""
    from jaxssl.metrics.uniformity import uniformity_per_image

    return lambda: float(uniformity_per_image(files["bank"]).value)


def our_probe(files: Arrays) -> Callable[[], float]:
    from jaxssl.evaluation.probe import default_config, fit_lbfgs

    settings = default_config().lbfgs

    def run() -> float:
        fit = fit_lbfgs(
            files["bank"],
            files["bank_labels"].astype(np.int32),
            CLASSES,
            l2=L2,
            max_iterations=settings.max_iterations,
            tolerance=TOLERANCE,
        )
        found = fit.classifier.logits(files["queries"]).argmax(axis=1)
        return float(np.mean(found == files["query_labels"]))

    return run


# A run --------------------------------------------------------------------------------------------


def make_run(folder: pathlib.Path, width: int) -> None:
    """A run of one step on images of ten overlapping classes, and its splits and weights."""
    from configs.pretrain.simclr import get_config
    from jaxssl.distributed import data_mesh
    from jaxssl.evaluation.frozen import restored_method
    from jaxssl.leaves import named_leaves
    from jaxssl.pretrain import pretrain

    rng = np.random.default_rng(0)
    classes = rng.normal(size=(CLASSES, 32, 32, 3))
    for split, count in (("train", 4000), ("validation", 128), ("test", 2000)):
        labels = np.arange(count) % CLASSES
        images = 128 + 32 * (0.4 * classes[labels] + rng.normal(size=(count, 32, 32, 3)))
        np.save(folder / f"{split}_images.npy", images.clip(0, 255).astype(np.uint8))
        np.save(folder / f"{split}_labels.npy", labels)
    config = get_config(f"batch=128,width={width},epochs=1")
    with config.unlocked():
        config.evals.knn.every = 0.0
        config.run.stop_step = 1
    pretrain(config, folder / "run", sources_in(folder))
    arrays = restored_method(folder / "run", None, data_mesh(1)).network.arrays
    weights = {
        name.removesuffix("/value").removeprefix("encoder/"): np.asarray(leaf)
        for tree in arrays
        for name, leaf in named_leaves(tree).items()
        if name.startswith("encoder/")
    }
    np.savez(folder / "weights.npz", **weights)


def sources_in(folder: pathlib.Path) -> dict[str, Any]:
    """The splits that `make_run` has written."""
    from jaxssl.data.examples import array_source
    from jaxssl.randomness import Split

    return {
        name: array_source(
            "ten classes",
            split,
            np.load(folder / f"{name}_images.npy"),
            {"label": np.load(folder / f"{name}_labels.npy")},
            num_classes=CLASSES,
        )
        for name, split in (
            ("train", Split.TRAIN),
            ("validation", Split.VALIDATION),
            ("test", Split.TEST),
        )
    }


def opened_run(folder: pathlib.Path, settings: Any) -> Any:
    """The run in a folder, opened for evaluation."""
    from jaxssl.evaluation.opened import open_run
    from jaxssl.evaluation.probe_data import WHERE_TRAINED, data_settings
    from jaxssl.storage import as_path

    return open_run(
        as_path(folder / "run", "run"),
        None,
        settings,
        False,
        sources_in(folder),
        data_settings(),
        WHERE_TRAINED,
        reuse_classifiers=False,
    )


def our_card(folder: pathlib.Path) -> Callable[[], float]:
    """kNN, the converged linear classifiers and that of SGD, from the checkpoint on."""
    from jaxssl.evaluation.card import Wanted, make_card
    from jaxssl.evaluation.probe import default_config

    settings = default_config()
    settings.sgd.epochs = CARD_EPOCHS

    def run() -> float:
        card = make_card(opened_run(folder, settings), Wanted(("linear", "knn")), settings)
        return card.content["sections"]["knn"]["trained"]["as_is"]["moco"]

    return run


def fingerprint_contestants(
    folder: pathlib.Path,
) -> tuple[Callable[[], float], Callable[[], float]]:
    """The fingerprint from images to its last interval, and the passes that it cannot spare."""
    from jaxssl.evaluation.opened import suitable_conditions
    from jaxssl.evaluation.probe import default_config
    from jaxssl.evaluation.probe_data import Opening
    from jaxssl.evaluation.sections import Predictions
    from jaxssl.evaluation.sections.fingerprint import fingerprint

    sources = sources_in(folder)
    settings = default_config()
    settings.lbfgs.max_iterations = 100
    opened = opened_run(folder, settings)
    probed = opened.probes["trained"]
    conditions = suitable_conditions(opened.opening, "test", every_severity=False)

    def whole() -> float:
        opening = Opening(opened.restored.config, settings, sources)
        opening._views = opened.opening._views  # compiled once, as in a long evaluation
        fresh = dataclasses.replace(probed, opening=opening)
        predictions = Predictions(sources["test"].positions, fresh.test.labels)
        found = fingerprint(fresh, settings, predictions, conditions)
        return found["clean"]["accuracy"]["value"]

    parts = [probed.parts[name] for name in ("train", "validation", "test")]
    parts += [opened.opening.part("test", condition.corruption) for condition in conditions]

    def passes() -> float:
        for part in parts:
            probed.features_of(part)
        return float("nan")

    return whole, passes


def memory_of(count: int) -> None:
    """Prints by how many MB the peak rises for ``count`` features: kNN, U and the probe."""
    import jax

    files = {}
    rng = np.random.default_rng(0)
    for name, rows in (("bank", count), ("queries", 1000)):
        files[name] = rng.normal(size=(rows, D)).astype(np.float32)
    files["bank_labels"], files["query_labels"] = (
        np.arange(len(files[name])) % CLASSES for name in ("bank", "queries")
    )
    jax.devices()
    # The peak is counted from here on: what the start took and gave back would hide a rise.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    for contestant in (our_knn, our_uniformity, our_probe):
        contestant(files)()
    print((_status("VmHWM") - before) / 1024)


def _status(name: str) -> int:
    """kB, of this process, as Linux tells."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def quiet(run: Callable[[], float]) -> Callable[[], float]:
    """The same, printing nothing where the answers go."""

    def silent() -> float:
        with contextlib.redirect_stdout(sys.stderr):
            return run()

    return silent


# Measuring ----------------------------------------------------------------------------------------

OURS = {
    "ours": our_knn,
    "ours, four protocols": our_four_protocols,
    "the product alone": our_product,
    "ours, U": our_uniformity,
    "ours, U with its interval": our_uniformity_with_interval,
    "ours, probe": our_probe,
}
CONTESTS = {
    "knn": ("ours", "ours, four protocols", "the product alone", "torch", "faiss"),
    "uniformity": ("ours, U", "ours, U with its interval", "blocked NumPy"),
    "probe": ("ours, probe", "scikit-learn"),
    "fingerprint": ("fingerprint", "its forward passes"),
    "card": ("kNN and linear", "lightly"),
}
TITLES = {
    "knn": "kNN, {bank:,} x {queries:,} features of 512, k=200",
    "uniformity": "U of {bank:,} features of 512",
    "probe": "L-BFGS probe, {bank:,} features of 512, 10 classes, accuracy on {queries:,}",
    "fingerprint": "Fingerprint of 2,000 images of 32 pixels, ResNet-18 of width 16",
    "card": "kNN and linear classifier, 4,000 x 2,000 images of 32 pixels, ResNet-18 of width 16",
}
AGREE_TO = {"knn": 1e-3, "uniformity": 1e-3, "probe": 2e-3, "fingerprint": 0.0, "card": 2e-3}


def command_of(name: str, folder: str, peer_python: str) -> list[str] | None:
    """How a contestant is started; None if its interpreter lacks its module."""
    if name in OURS or name in (*CONTESTS["fingerprint"], *CONTESTS["card"][:1]):
        return [sys.executable, __file__, "--serve", name, folder]
    module = {"scikit-learn": "sklearn", "blocked NumPy": "numpy"}.get(name, name)
    looked = subprocess.run([peer_python, "-c", f"import {module}"], capture_output=True)
    if looked.returncode:
        print(f"  skipped: {peer_python} has no {module}")
        return None
    if name == "lightly":
        return [peer_python, str(HERE / "evaluation_lightly.py"), folder, str(CARD_EPOCHS)]
    return [peer_python, str(HERE / "evaluation_peers.py"), name, folder]


def contest(section: str, folder: str, peer_python: str, rounds: int) -> dict[str, dict]:
    """Prints and returns medians, and ratios to the first."""
    commands = {}
    for name in CONTESTS[section]:
        if (command := command_of(name, folder, peer_python)) is None:
            continue
        commands[name] = command
    return reported(section, side_by_side.time_servers(commands, rounds))


def reported(section: str, times: dict[str, list[list[float]]]) -> dict[str, dict]:
    first = np.median(np.array(times[next(iter(times))]), axis=0)
    rows = {}
    for name, rounds in times.items():
        walls, processors, found = zip(*rounds, strict=True)
        wall, processor = statistics.median(walls), statistics.median(processors)
        rows[name] = {
            "milliseconds": round(wall, 1),
            "fastest_slowest": [round(min(walls), 1), round(max(walls), 1)],
            "times_first": round(wall / first[0], 3),
            "cpu_milliseconds": round(processor, 1),
            "cpu_times_first": round(processor / first[1], 3),
            "found": None if np.isnan(found[0]) else round(found[0], 5),
        }
        row = rows[name]
        print(
            f"  {name:28s} {wall:10.0f} ms {row['times_first']:6.2f} x   "
            f"CPU {processor:10.0f} ms {row['cpu_times_first']:6.2f} x   {row['found'] or ''}",
            flush=True,
        )
        if row["found"] is not None and abs(row["found"] - first[2]) > AGREE_TO[section]:
            print(f"  {name} finds {row['found']} and the first {first[2]:.5f}: no comparison")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    sections = (*CONTESTS, "memory")
    parser.add_argument("--only", nargs="+", choices=sections, default=sections)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bank", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        memory_of(arguments.memory_of)
        return
    if arguments.serve:
        name, folder = arguments.serve[0], pathlib.Path(arguments.serve[1])
        if name in OURS:
            serve(OURS[name]({path.stem: np.load(path) for path in folder.glob("*.npy")}))
        elif name in CONTESTS["card"]:
            with contextlib.redirect_stdout(sys.stderr):
                run = our_card(folder)
            serve(quiet(run))
        else:
            with contextlib.redirect_stdout(sys.stderr):
                pair = fingerprint_contestants(folder)
            serve(pair[CONTESTS["fingerprint"].index(name)])
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        make(pathlib.Path(folder), arguments.bank, arguments.queries)
        if {"fingerprint", "card"} & {*arguments.only}:
            make_run(pathlib.Path(folder), 16)
        for section in (s for s in CONTESTS if s in arguments.only):
            title = TITLES[section].format(bank=arguments.bank, queries=arguments.queries)
            print(title, flush=True)
            found[title] = contest(section, folder, arguments.peer_python, arguments.rounds)
    if "memory" in arguments.only:
        title = "Rise of peak memory of kNN, U and the probe together, MB, by number of features"
        print(title, flush=True)
        found[title] = {str(count): memory(count) for count in (12_500, 25_000, 50_000, 100_000)}
    found["environment"] = side_by_side.environment()
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


def memory(count: int) -> float:
    command = [sys.executable, __file__, "--memory-of", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rise = float(done.stdout)
    features = count * D * 4 / 2**20
    print(f"  {count:7,} features of {features:6.1f} MB: {rise:8.1f} MB", flush=True)
    return round(rise, 1)


if __name__ == "__main__":
    main()
