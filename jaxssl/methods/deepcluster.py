"""DeepCluster-v2 (arXiv:2006.09882, appendix A.3): the clusters of one epoch label the next."""

import fractions
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.errors import UserError
from jaxssl.losses import prototype_cross_entropy
from jaxssl.losses.arrays import normalize
from jaxssl.methods.kmeans import spherical_kmeans
from jaxssl.methods.method import (
    Bank,
    Hyper,
    Keys,
    Layers,
    Method,
    Metrics,
    Projections,
    Spec,
    projected_layers,
)
from jaxssl.methods.multi_crop import KEPT, check_kept, project_views
from jaxssl.methods.queue import put_rows
from jaxssl.models import Encoder
from jaxssl.models.heads import build_head
from jaxssl.models.layers import param_dtype
from jaxssl.ranges import AT_LEAST_ONE, TEMPERATURE, Ranges


class DeepClusterV2(Method):
    """Encoder and head; several sets of centroids, which are not trained, classify every view.

    A bank holds the last projections of every training image, one for each of the two global views.
    Before an epoch each set of centroids is made anew by spherical k-means on the bank, on the
    first view's half and the second's in turn, and each image gets one label a set.

    Reads ``hyper["temperature"]``.
    """

    HYPER: ClassVar[Ranges] = {"temperature": TEMPERATURE}
    SETTINGS: ClassVar[Ranges] = {
        "num_prototypes": AT_LEAST_ONE,
        "num_clusterings": AT_LEAST_ONE,
        "kmeans_iterations": AT_LEAST_ONE,
    }

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        super().__init__(config, encoder, spec, rngs)
        if config.num_prototypes > spec.num_examples:
            raise UserError(
                f"--config.method.num_prototypes={config.num_prototypes} must be at most the "
                f"{spec.num_examples} training images that are clustered."
            )
        self.steps_per_epoch = fractions.Fraction(spec.steps_per_epoch)
        self.iterations, dim = config.kmeans_iterations, config.head.out_dim
        self.head = build_head(config.head, encoder.feature_dim, encoder.dtype, rngs)
        sets, dtype = config.num_clusterings, param_dtype(encoder.dtype)
        self.centroids = Bank(jnp.zeros((sets, config.num_prototypes, dim), dtype))
        self.assignments = Bank(jnp.full((sets, spec.num_examples), -1, jnp.int32))
        # By position in the original split; images that are not trained on stay 0.
        self.bank = Bank(jnp.zeros((spec.num_examples, KEPT, dim), dtype))

    def embed(self, views: Views, keys: Keys) -> Projections:
        """Projections [B, D] of every view, of unit length.

        Raises:
          UserError: unless two of the views are global.
        """
        check_kept(views.images)
        return tuple(map(normalize, project_views(self.encoder, self.head, views.images)))

    def fill(self, embeddings: Projections, views: Views) -> None:
        """The bank's first rows, before epoch 0.

        Raises:
          UserError: if a set has more centroids than there are images that are trained on.
        """
        # Known when traced: a batch is the share of an epoch that a step takes.
        trained, prototypes = self.steps_per_epoch * len(views.index), self.centroids.shape[1]
        if prototypes > trained:
            raise UserError(
                f"--config.method.num_prototypes={prototypes} must be at most the {int(trained):,} "
                "images that are trained on: lower it, or leave more to training "
                "(--config.data.train_examples, --config.data.validation_fraction)."
            )
        rows = jnp.stack(embeddings[:KEPT], axis=1)
        self.bank[...] = put_rows(self.bank[...], views.index, rows)

    def on_epoch(self, epoch: Int[Array, ""], key: Key[Array, ""], hyper: Hyper) -> None:
        """k-means on the bank: centroids, and the label of each image, one a set."""
        sets, prototypes, _ = self.centroids.shape

        def cluster(number: Int[Array, ""]) -> tuple[Array, Array]:
            features = jnp.take(self.bank[...], number % KEPT, axis=1)
            key_of_set = jax.random.fold_in(key, number)
            return spherical_kmeans(
                features, key_of_set, count=prototypes, iterations=self.iterations
            )

        # One after the other: of two that run side by side, a collective of one could hang beside
        # the other's where many devices share a few cores.
        self.centroids[...], self.assignments[...] = jax.lax.map(cluster, jnp.arange(sets))

    def objective(
        self, embeddings: Projections, views: Views, key: Key[Array, ""], hyper: Hyper
    ) -> tuple[Float[Array, ""], Metrics]:
        """Cross-entropy of every view and set of centroids; then the bank takes the projections."""
        scores = jnp.einsum("vbd,skd->svbk", jnp.stack(embeddings), self.centroids[...])
        labels = self.assignments[...][:, views.index]
        loss = functools.partial(prototype_cross_entropy, temperature=hyper["temperature"])
        # Over views, which share the labels of a set, and over sets.
        losses = jax.vmap(jax.vmap(loss, (0, None)))(scores, labels)
        self.fill(embeddings, views)
        return losses.mean(), {}

    def watched(self, embeddings: Projections) -> Projections:
        """The projections."""
        return embeddings

    def represent(self, images: Float[Array, "b h w c"]) -> Layers:
        """Encoder and head: ``head1`` ... and ``projection``."""
        return projected_layers(self.encoder, self.head, images)
