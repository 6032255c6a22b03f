"""Barlow Twins (arXiv:2103.03230): the cross-correlation of two views is to be the identity."""

from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.losses import barlow_twins
from jaxssl.methods.method import (
    Hyper,
    Keys,
    Layers,
    Method,
    Metrics,
    Projections,
    Spec,
    project,
    projected_layers,
)
from jaxssl.models import Encoder
from jaxssl.models.heads import build_head
from jaxssl.ranges import NON_NEGATIVE, POSITIVE, Ranges

EPSILON = 1e-5  # of the BatchNorm that standardises the projections in the authors' code


class BarlowTwins(Method):
    """Encoder and head; correlations over the global batch, BatchNorm sees one view at a time.

    Reads ``hyper["off_diagonal_weight"]``, the paper's lambda, and ``hyper["scale"]``, a factor of
    the whole.
    """

    HYPER: ClassVar[Ranges] = {"off_diagonal_weight": NON_NEGATIVE, "scale": POSITIVE}
    VIEWS: ClassVar[int | None] = 2

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        super().__init__(config, encoder, spec, rngs)
        self.head = build_head(config.head, encoder.feature_dim, encoder.dtype, rngs)

    def embed(self, views: Views, keys: Keys) -> Projections:
        """Projections [B, D] of the two views."""
        return tuple(project(self.encoder, self.head, images) for images in views.images)

    def objective(
        self, embeddings: Projections, views: Views, key: Key[Array, ""], hyper: Hyper
    ) -> tuple[Float[Array, ""], Metrics]:
        """Squared differences of the correlations from 1 on the diagonal and 0 beside it."""
        weight = hyper["off_diagonal_weight"]
        loss = barlow_twins(*embeddings, off_diagonal_weight=weight, epsilon=EPSILON)
        return hyper["scale"] * loss, {}

    def watched(self, embeddings: Projections) -> Projections:
        """The projections."""
        return embeddings

    def represent(self, images: Float[Array, "b h w c"]) -> Layers:
        """Encoder and head: ``head1`` ... and ``projection``."""
        return projected_layers(self.encoder, self.head, images)
