"""Alignment and uniformity (Wang and Isola, arXiv:2005.10242), the two terms themselves."""

from typing import Any, ClassVar

from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.losses import alignment_and_uniformity
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
from jaxssl.methods.multi_crop import project_views
from jaxssl.models import Encoder
from jaxssl.models.heads import build_head
from jaxssl.ranges import NON_NEGATIVE, POSITIVE, Ranges


class AlignUniform(Method):
    """Encoder and head over the global batch; BatchNorm sees both views jointly.

    Reads ``hyper["alignment_weight"]``, ``hyper["uniformity_weight"]``, and the exponents
    ``hyper["alpha"]`` of the distance and ``hyper["t"]`` of the potential.
    """

    HYPER: ClassVar[Ranges] = {
        "alignment_weight": NON_NEGATIVE,
        "uniformity_weight": NON_NEGATIVE,
        "alpha": POSITIVE,
        "t": POSITIVE,
    }
    VIEWS: ClassVar[int | None] = 2

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        super().__init__(config, encoder, spec, rngs)
        self.head = build_head(config.head, encoder.feature_dim, encoder.dtype, rngs)

    def embed(self, views: Views, keys: Keys) -> Projections:
        """Projections [B, D] of the two views."""
        return project_views(self.encoder, self.head, views.images)

    def objective(
        self, embeddings: Projections, views: Views, key: Key[Array, ""], hyper: Hyper
    ) -> tuple[Float[Array, ""], Metrics]:
        """Weighted alignment, and the mean of the two views' weighted uniformity."""
        numbers: dict[str, Any] = {name: hyper[name] for name in self.HYPER}
        return alignment_and_uniformity(*embeddings, **numbers), {}

    def watched(self, embeddings: Projections) -> Projections:
        """The projections."""
        return embeddings

    def represent(self, images: Float[Array, "b h w c"]) -> Layers:
        """Encoder and head: ``head1`` ... and ``projection``."""
        return projected_layers(self.encoder, self.head, images)
