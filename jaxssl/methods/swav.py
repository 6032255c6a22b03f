"""SwAV (arXiv:2006.09882): each view predicts the cluster that another view is assigned to."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.distributed import shard_rows
from jaxssl.losses import cross_view_entropy, sinkhorn_knopp
from jaxssl.methods.method import (
    Hyper,
    Keys,
    Layers,
    Method,
    Metrics,
    Projections,
    Spec,
    projected_layers,
)
from jaxssl.methods.multi_crop import KEPT, check_kept, check_pair, global_views, project_views
from jaxssl.methods.prototypes import Prototypes
from jaxssl.methods.queue import Queue
from jaxssl.models import Encoder
from jaxssl.models.heads import build_head
from jaxssl.models.layers import param_dtype
from jaxssl.ranges import AT_LEAST_ONE, NON_NEGATIVE, POSITIVE, SHARE, TEMPERATURE, Ranges

Embeddings = dict[str, tuple[Float[Array, "b _"], ...]]


class SwAV(Method):
    """Encoder, head, trained prototypes of unit length; assignments by Sinkhorn's iteration.

    The global views (the first one's size) are assigned to the prototypes, over the global batch;
    every view predicts the assignments of the others. With a queue, earlier projections of the
    same view take part in the assignment, and their rows are dropped from it.

    Reads ``hyper["temperature"]``, ``hyper["epsilon"]`` of the assignment, and ``hyper["queue"]``:
    0 as long as the queue is filled but takes no part. Recipes freeze ``prototypes/kernel`` at
    first by a row of ``optimizer.groups``.
    """

    HYPER: ClassVar[Ranges] = {"temperature": TEMPERATURE, "epsilon": POSITIVE, "queue": SHARE}
    SETTINGS: ClassVar[Ranges] = {
        "num_prototypes": AT_LEAST_ONE,
        "sinkhorn_iterations": AT_LEAST_ONE,
        "queue_size": NON_NEGATIVE,
    }

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        super().__init__(config, encoder, spec, rngs)
        self.iterations, dim = config.sinkhorn_iterations, config.head.out_dim
        self.head = build_head(config.head, encoder.feature_dim, encoder.dtype, rngs)
        self.prototypes = Prototypes(dim, config.num_prototypes, encoder.dtype, rngs)
        size, dtype = config.queue_size, param_dtype(encoder.dtype)
        queues = KEPT if size else 0
        self.queues = nnx.List([Queue(size, dim, rngs.params(), dtype) for _ in range(queues)])

    def embed(self, views: Views, keys: Keys) -> Embeddings:
        """Of every view its projections ``z`` [B, D] and ``scores`` [B, K], both a tuple.

        Raises:
          UserError: if there is one view alone.
        """
        check_pair(views.images)
        z = project_views(self.encoder, self.head, views.images)
        return {"z": z, "scores": tuple(self.prototypes(view) for view in z)}

    def objective(
        self, embeddings: Embeddings, views: Views, key: Key[Array, ""], hyper: Hyper
    ) -> tuple[Float[Array, ""], Metrics]:
        """Cross-entropy of each view against the assignments of each *other* global view.

        Raises:
          UserError: with a queue, unless two views are global and a batch divides the queue.
        """
        if self.queues:
            check_kept(views.images)
        past = [queue.rows[...] for queue in self.queues]  # as they were before this step
        for queue, z in zip(self.queues, embeddings["z"], strict=False):
            queue.push(z)
        scores = jnp.stack(embeddings["scores"])
        assigning = scores[: len(global_views(views.images))]
        targets = self._assign(assigning, past, hyper)
        return cross_view_entropy(scores, targets, temperature=hyper["temperature"]), {}

    def _assign(
        self, scores: Float[Array, "g b k"], past: list[Float[Array, "q d"]], hyper: Hyper
    ) -> Float[Array, "g b k"]:
        """Assignments of a batch to equally used prototypes, each view by itself.

        Args:
          scores: of the global views.
          past: earlier projections of each of them, or none.
          hyper: ``epsilon`` and ``queue``.
        """
        views, batch, prototypes = scores.shape
        rows = scores[:, :, None]
        if past:
            # Each image beside its share of the queue, so that every row stays on its device.
            shares = [shard_rows(old.reshape(batch, -1, old.shape[-1])) for old in past]
            earlier = jnp.stack([self.prototypes(share) for share in shares])
            # Copies of the batch leave its own assignments as they are: no queue, and no branch.
            earlier = jnp.where(hyper["queue"] > 0, earlier, rows)
            rows = jnp.concatenate([rows, earlier], axis=2)
        rows = jax.lax.stop_gradient(rows).reshape(views, -1, prototypes)
        # All views in one iteration: collectives that do not wait for each other can hang where
        # many devices share a few cores.
        assign = functools.partial(
            sinkhorn_knopp, epsilon=hyper["epsilon"], iterations=self.iterations
        )
        return jax.vmap(assign)(rows).reshape(views, batch, -1, prototypes)[:, :, 0]

    def watched(self, embeddings: Embeddings) -> Projections:
        """The projections."""
        return embeddings["z"]

    def after_update(self, hyper: Hyper) -> None:
        """The prototypes are of unit length again."""
        self.prototypes.normalize()

    def represent(self, images: Float[Array, "b h w c"]) -> Layers:
        """Encoder and head: ``head1`` ... and ``projection``."""
        return projected_layers(self.encoder, self.head, images)
