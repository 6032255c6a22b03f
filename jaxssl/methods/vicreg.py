"""VICReg (arXiv:2105.04906): two views agree; each has variance, and no covariance."""

from typing import Any, ClassVar

from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.losses import vicreg
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
from jaxssl.ranges import NON_NEGATIVE, Ranges


class VICReg(Method):
    """Encoder and head (the paper's expander); BatchNorm sees one view at a time.

    Reads ``hyper["invariance_weight"]``, ``hyper["variance_weight"]`` and
    ``hyper["covariance_weight"]``, the paper's lambda, mu and nu.
    """

    HYPER: ClassVar[Ranges] = {
        "invariance_weight": NON_NEGATIVE,
        "variance_weight": NON_NEGATIVE,
        "covariance_weight": NON_NEGATIVE,
    }
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
        """The weighted sum of the three terms, over the global batch."""
        weights: dict[str, Any] = {name: hyper[name] for name in self.HYPER}
        return vicreg(*embeddings, **weights), {}

    def watched(self, embeddings: Projections) -> Projections:
        """The projections."""
        return embeddings

    def represent(self, images: Float[Array, "b h w c"]) -> Layers:
        """Encoder and head: ``head1`` ... and ``projection``."""
        return projected_layers(self.encoder, self.head, images)
