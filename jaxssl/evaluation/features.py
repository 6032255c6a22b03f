"""One pass of a frozen network over a set."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxssl.data.examples import Source
from jaxssl.data.pipeline import eval_batches
from jaxssl.distributed import DATA_AXIS, fetch, global_batch
from jaxssl.errors import UserError
from jaxssl.words import counted

Batch = Mapping[str, Any]
Embed = Callable[[Batch], Float[Array, "b d"]]


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features of every image of a set, in its order.

    Attributes:
      features: float32 [N, D].
      labels: int32 [N], empty where the set has none.
    """

    features: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " _"]


def check_finite(found: FeatureSet, where: str, flag: str) -> None:
    """Refuses features that hold NaN or infinity, which no classifier can be fitted on.

    Args:
      found: the features.
      where: which images they are of.
      flag: who names the layer.

    Raises:
      UserError: if there are some.
    """
    bad = int(np.sum(~np.isfinite(found.features).all(axis=1)))
    if bad:
        told = f"{bad:,} of {counted(len(found.features), where)}"
        raise UserError(
            f"the network gives NaN or infinity for {told}: choose another layer by {flag}, or "
            "another checkpoint by --step."
        )


def as_vectors(layer: Float[Array, "b *space d"]) -> Float[Array, "b d"]:
    """A layer as one vector an image: a map is averaged over its positions."""
    return layer.mean(axis=tuple(range(1, layer.ndim - 1))) if layer.ndim > 2 else layer


def whole_batch(batch_size: int, mesh: Mesh) -> int:
    """The smallest batch of at least that many images that divides over the mesh."""
    parts = mesh.shape[DATA_AXIS]
    return -(-batch_size // parts) * parts


def extract(
    embed: Embed, source: Source, *, mesh: Mesh, batch_size: int, target: str = "label"
) -> FeatureSet:
    """Runs ``embed`` over the whole set, sharded over the mesh.

    The devices work on one batch while the one before is fetched.

    Args:
      embed: jitted, from a batch (uint8 images) to features [B, D]; of the targets it sees
        ``target`` alone.
      source: the set.
      mesh: devices to share each batch.
      batch_size: images a pass over all devices, a multiple of the mesh's size.
      target: name of the target that serves as the label.
    """
    features, labels = [], []

    def keep(running: tuple[Any, Any, dict[str, Any]]) -> None:
        embedded, mask, targets = fetch(running)
        features.append(np.asarray(embedded[mask], np.float32))
        if target in targets:
            labels.append(targets[target][mask])

    before = None
    for batch in eval_batches(
        source,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    ):
        asked = {name: values for name, values in batch["targets"].items() if name == target}
        rows = global_batch(mesh, {**batch, "targets": asked})
        running = (embed(rows), rows["mask"], rows["targets"])
        if before is not None:
            keep(before)
        before = running
    if before is not None:
        keep(before)
    return FeatureSet(
        np.concatenate(features),
        np.concatenate(labels) if labels else np.zeros(0, np.int32),
    )
