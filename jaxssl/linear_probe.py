"""Probes a checkpoint: ``python -m jaxssl.linear_probe --run DIR [--step N] [--baselines]``.

checkpoint -> frozen encoder -> features -> linear classifiers -> accuracy on the test split. Reads
the run's ``config.json`` and the encoder's leaves of one checkpoint, nothing else; whatever is
chosen is chosen on the validation split. Images are corrupted as the run's were, the test images
otherwise if ``--probe.test_corruption`` says so. Writes
``evaluations/linear_probe-<step>[-<target>][-<size>][-<test corruption>]/card.json``.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxssl import cli, distributed
from jaxssl.augment.policies import make_clean_view
from jaxssl.checkpoint import CheckpointReader
from jaxssl.corruptions.apply import setting_name
from jaxssl.data.examples import Source
from jaxssl.data.splits import Splits
from jaxssl.errors import UserError
from jaxssl.evaluation import probe
from jaxssl.evaluation.features import Batch, FeatureSet, extract
from jaxssl.evaluation.frozen import (
    Network,
    fresh_encoder,
    make_cropped_view,
    raw_pixels,
    restored_encoder,
)
from jaxssl.evaluation.monitor import check_neighbours
from jaxssl.metrics.knn import knn_accuracy
from jaxssl.randomness import check_seed
from jaxssl.reporting import print_table, results_table
from jaxssl.run_directory import read_config, read_info, run_info
from jaxssl.storage import Path, as_path, write_json

Scores = dict[str, Any]


class Part(NamedTuple):
    """A split and its test-time images."""

    source: Source
    view: Callable[[Batch], jax.Array]


def linear_probe(
    run: Path,
    step: int | None,
    settings: ConfigDict,
    baselines: bool,
    sources: Mapping[str, Source] | None = None,
) -> tuple[dict[str, Any], Path]:
    """Probes the encoder of a checkpoint and writes the card; see `probe_run`."""
    card, path = probe_run(run, step, settings, baselines, sources)
    write_card(card, path)
    return card, path


def write_card(card: Mapping[str, Any], path: Path) -> None:
    """Writes a card, from the first process."""
    if jax.process_index() == 0:
        write_json(path, card)


def probe_run(
    run: Path,
    step: int | None,
    settings: ConfigDict,
    baselines: bool,
    sources: Mapping[str, Source] | None = None,
) -> tuple[dict[str, Any], Path]:
    """Probes the encoder of a checkpoint and writes nothing.

    Args:
      run: directory of a pretraining run.
      step: which checkpoint; None: the newest sound one.
      settings: see `jaxssl.evaluation.probe.default_config`.
      baselines: also probe the encoder as it was before training, and raw pixels.
      sources: the splits of a run whose data came from Python.

    Returns:
      The card, for each network its accuracies on the test split, all in [0, 1], and what was
      chosen; and the file that it belongs in.

    Raises:
      UserError: for whatever the user can mend.
    """
    config = read_config(run)
    if read_info(run).get("data", {}).get("from_python") and sources is None:
        raise UserError(
            f"{run} was trained on data that came from Python: call linear_probe from Python too, "
            "with its sources."
        )
    check_settings(settings)
    mesh = distributed.data_mesh()
    splits = open_splits(config, settings, sources)
    check_neighbours(config, len(splits["train"].source))
    channels = _channels(splits["train"], settings.target)
    encoder, step = restored_encoder(
        CheckpointReader(run / "checkpoints"), step, config, channels, mesh
    )
    networks: dict[str, Network] = {"trained": encoder}
    if baselines:
        networks["untrained"] = fresh_encoder(config, channels, mesh)
        networks["pixels"] = raw_pixels()

    before = encoder.digest()
    results = {}
    for name, network in networks.items():
        _say(f"probing: {name}")
        results[name] = probe_network(network, splits, settings, config, mesh)
    after = encoder.digest()
    if before != after:
        raise RuntimeError("probing changed the encoder: this is a bug, please report it.")
    card = {
        "program": "linear_probe",
        "run": str(run),
        "step": step,
        "settings": settings.to_dict(),
        "knn_protocol": config.monitor.protocol,
        "examples": {name: len(part.source) for name, part in splits.items()},
        "encoder_sha256": {"before": before, "after": after},
        "results": results,
        **run_info(),
    }
    path = run / "evaluations" / _card_name(step, settings) / "card.json"
    return card, path


def check_settings(settings: ConfigDict) -> None:
    """Raises UserError for a setting that no probe can have."""
    check_seed("probe.seed", settings.seed)
    least = {
        "feature_batch_size": (settings.feature_batch_size, 1),
        "labels_per_class": (settings.labels_per_class, 1),
        "evaluation_size": (settings.evaluation_size, 0),
        "sgd.epochs": (settings.sgd.epochs, 0),
        "sgd.batch_size": (settings.sgd.batch_size, 1),
        "lbfgs.max_iterations": (settings.lbfgs.max_iterations, 1),
    }
    for name, (value, minimum) in least.items():
        if value < minimum:
            raise UserError(f"probe.{name}={value} cannot be: give {minimum} or more.")
    if not settings.lbfgs.l2_grid or min(settings.lbfgs.l2_grid) < 0:
        raise UserError(
            f"probe.lbfgs.l2_grid={settings.lbfgs.l2_grid} cannot be: give numbers of 0 or more."
        )


def open_splits(
    config: ConfigDict, settings: ConfigDict, sources: Mapping[str, Source] | None
) -> dict[str, Part]:
    """The three splits of a run, the test images corrupted as ``settings.test_corruption`` says.

    Raises:
      UserError: if there is none of them, or the corruption cannot be.
    """
    if settings.evaluation_size:
        if config.data.name != "multi_digits" or sources is not None:
            raise UserError(
                f"probe.evaluation_size={settings.evaluation_size} is for runs on multi_digits, "
                "and this run's data are others: leave it at 0."
            )
        config = config.copy_and_resolve_references()
        config.data.compose.evaluation_size = settings.evaluation_size
    examples, view = Splits(config, sources), make_clean_view(config)
    parts = {name: Part(examples[name], view) for name in ("train", "validation")}
    if settings.test_corruption.name == probe.AS_TRAINED:
        _, *ignored = setting_name(settings.test_corruption).split("-", 1)
        if ignored:
            raise UserError(
                f"probe.test_corruption has {ignored[0]} but no name, and without one the test "
                "images are corrupted as in training: give --probe.test_corruption.name too."
            )
        return parts | {"test": Part(examples["test"], view)}
    other = config.copy_and_resolve_references()
    other.corruption = settings.test_corruption
    return parts | {"test": Part(Splits(other, sources)["test"], make_clean_view(other))}


def _channels(part: Part, target: str) -> int:
    row = part.source.gather(np.zeros(1, np.int64))
    if target not in row["targets"]:
        held = ", ".join(sorted(row["targets"])) or "none at all"
        raise UserError(
            f"{part.source.name} has no target {target!r} to probe: it has {held}; choose one by "
            "--probe.target, or a labelled set."
        )
    return jax.eval_shape(part.view, row).shape[-1]


def _card_name(step: int, settings: ConfigDict) -> str:
    parts = ["linear_probe", str(step)]
    if settings.target != "label":
        parts.append(settings.target)
    if settings.evaluation_size:
        parts.append(f"evaluation_size={settings.evaluation_size}")
    if settings.test_corruption.name != probe.AS_TRAINED:
        parts.append(setting_name(settings.test_corruption))
    return "-".join(parts)


def probe_network(
    network: Network,
    splits: Mapping[str, Part],
    settings: ConfigDict,
    config: ConfigDict,
    mesh: Mesh,
) -> Scores:
    """Every accuracy of one frozen network on the test split.

    Returns:
      ``sgd`` (the published protocol), ``lbfgs`` (all labels) and ``lbfgs_few`` (the first
      ``settings.labels_per_class`` of each class): top-1, top-5 and what was chosen; ``knn``.
    """
    # The last batch is padded, so any device count works.
    parts = mesh.shape[distributed.DATA_AXIS]
    batch_size = -(-settings.feature_batch_size // parts) * parts
    how = {"mesh": mesh, "batch_size": batch_size, "target": settings.target}
    embeds = {view: network.through(view) for view in {part.view for part in splits.values()}}
    clean = {name: extract(embeds[part.view], part.source, **how) for name, part in splits.items()}
    train = clean["train"]
    num_classes = int(train.labels.max()) + 1
    counts = np.bincount(train.labels)
    if counts[counts > 0].min() < settings.labels_per_class:
        raise UserError(
            f"probe.labels_per_class={settings.labels_per_class} but a class has only "
            f"{counts[counts > 0].min()} training images: lower it."
        )
    few = probe.per_class_subset(train.labels, settings.labels_per_class)
    scores: Scores = {
        "lbfgs": _lbfgs(train, clean, num_classes, settings.lbfgs),
        "lbfgs_few": _lbfgs(
            FeatureSet(train.features[few], train.labels[few]),
            clean,
            num_classes,
            settings.lbfgs,
        ),
        "knn": knn_accuracy(
            train.features,
            train.labels,
            clean["test"].features,
            clean["test"].labels,
            protocol=config.monitor.protocol,
        ),
    }
    if settings.sgd.epochs:
        cropped = network.through(make_cropped_view(config))

        def augmented(epoch: int) -> tuple[Any, Any]:
            draw = jnp.uint32(settings.seed), jnp.int32(epoch)
            fresh = extract(lambda batch: cropped(batch, *draw), splits["train"].source, **how)
            return fresh.features, fresh.labels

        fitted = probe.fit_sgd(augmented, num_classes, seed=settings.seed, **settings.sgd)
        scores["sgd"] = _score(fitted, clean["test"])
    return scores


def _lbfgs(
    train: FeatureSet, clean: Mapping[str, FeatureSet], num_classes: int, settings: ConfigDict
) -> Scores:
    limits = {"max_iterations": settings.max_iterations, "tolerance": settings.tolerance}
    held_out = clean["validation"]
    l2, tried = probe.select_l2(
        (train.features, train.labels),
        (held_out.features, held_out.labels),
        num_classes,
        grid=settings.l2_grid,
        **limits,
    )
    fit = probe.fit_lbfgs(train.features, train.labels, num_classes, l2=l2, **limits)
    return _score(fit.classifier, clean["test"]) | {
        "l2": l2,
        "validation_top1": {str(candidate): accuracy for candidate, accuracy in tried.items()},
        "iterations": fit.iterations,
        "gradient": fit.gradient,
    }


def _score(classifier: probe.LinearClassifier, test: FeatureSet) -> Scores:
    accuracies = probe.topk_accuracy(classifier.logits(test.features), test.labels)
    return {f"top{k}": accuracy for k, accuracy in accuracies.items()}


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def print_card(card: Mapping[str, Any]) -> None:
    """The card's accuracies as a table."""
    few = card["settings"]["labels_per_class"]
    rows = [
        (
            name,
            scores["lbfgs"]["top1"],
            scores["lbfgs_few"]["top1"],
            scores["knn"],
            scores["sgd"]["top1"] if "sgd" in scores else None,
        )
        for name, scores in card["results"].items()
    ]
    columns = ("encoder", "linear, all labels", f"linear, {few} a class", "kNN", "linear, SGD")
    title = f"Top-1 on {card['examples']['test']:,} test images, step {card['step']}"
    print_table(results_table(rows, columns, title))


def _main(values: flags.FlagValues) -> None:
    run = as_path(values.run, "--run")
    card, path = probe_run(run, values.step, values.probe, values.baselines)
    if jax.process_index() == 0:
        print_card(card)  # first, for the directory may be read-only
    write_card(card, path)
    if jax.process_index() == 0:
        print(f"card: {path}")


if __name__ == "__main__":
    flags.DEFINE_string("run", None, "Directory of a pretraining run.", required=True)
    flags.DEFINE_integer("step", None, "Checkpoint to probe; the newest sound one if not given.")
    flags.DEFINE_bool("baselines", False, "Also probe the untrained encoder and raw pixels.")
    cli.define_settings("probe", probe.default_config())
    cli.launch(_main)
