"""What is watched while training: kNN accuracy of the features as they are."""

from collections.abc import Callable, Mapping

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxssl.augment.policies import make_clean_view
from jaxssl.data.examples import abstract_batch
from jaxssl.data.splits import Splits
from jaxssl.distributed import replicated, sharded
from jaxssl.errors import UserError, choose
from jaxssl.evaluation.features import Embed, extract
from jaxssl.metrics.collapse import feature_std
from jaxssl.metrics.knn import PROTOCOLS, knn_accuracy
from jaxssl.training.state import Blueprint, TrainState, merge


def embedder(graph: nnx.GraphDef, config: ConfigDict, mesh: Mesh) -> Callable[[TrainState], Embed]:
    """From a state to what `extract` takes: ``config.monitor.layer`` of clean images.

    One compilation serves every state.
    """
    layer = config.monitor.layer
    clean_view = make_clean_view(config)

    def embed(params: nnx.State, rest: nnx.State, batch: Mapping) -> jax.Array:
        layers = merge(graph, params, rest).represent(clean_view(batch))
        return choose("monitor.layer", layer, layers)

    whole = replicated(mesh)
    jitted = jax.jit(embed, in_shardings=(whole, whole, sharded(mesh)), out_shardings=whole)
    return lambda state: lambda batch: jitted(state.params, state.rest, batch)


def check_neighbours(config: ConfigDict, bank_size: int) -> None:
    """Raises UserError unless so many training images serve the run's kNN protocol."""
    protocol = choose("monitor.protocol", config.monitor.protocol, PROTOCOLS)
    if protocol.k > bank_size:
        raise UserError(
            f"monitor.protocol={config.monitor.protocol!r} asks for {protocol.k} neighbours but "
            f"there are {bank_size} training images: use more, or a protocol with fewer "
            "neighbours, such as 'dino'."
        )


def make_monitor(
    blueprint: Blueprint, config: ConfigDict, examples: Splits, mesh: Mesh
) -> Callable[[TrainState], Mapping[str, float]]:
    """The kNN monitor of a run: accuracy on ``monitor.split`` against the training images.

    Returns:
      From a state to ``knn``, top-1 in [0, 1], and ``feature_std``, the mean standard
      deviation of the normalised features times sqrt(D): 0 where the encoder has collapsed.

    Raises:
      UserError: if the split holds no image, the set has no labels or too few images, or the
        method no such layer.
    """
    if config.monitor.knn_every_epochs <= 0:
        return lambda state: {}
    bank, queries = examples["train"], examples[config.monitor.split]
    if bank.num_classes is None:
        raise UserError(
            "the kNN monitor needs labels but the data set has none: "
            "set monitor.knn_every_epochs=0."
        )
    check_neighbours(config, len(bank))
    to_embed = embedder(blueprint.graph, config, mesh)
    # Traced once before training, so that a wrong layer is refused now and not after an epoch.
    jax.eval_shape(to_embed(blueprint.abstract(mesh)), abstract_batch(bank, config.batch_size))

    def monitor(state: TrainState) -> dict[str, float]:
        embed = to_embed(state)
        known = extract(embed, bank, mesh=mesh, batch_size=config.batch_size)
        asked = extract(embed, queries, mesh=mesh, batch_size=config.batch_size)
        accuracy = knn_accuracy(
            known.features,
            known.labels,
            asked.features,
            asked.labels,
            protocol=config.monitor.protocol,
        )
        return {
            "knn": float(accuracy),
            "feature_std": float(feature_std(asked.features)),
        }

    return monitor
