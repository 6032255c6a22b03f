"""SupCon (arXiv:2004.11362): all images of a class attract, all others in the batch repel."""

from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.errors import choose
from jaxssl.losses import supcon
from jaxssl.methods.method import (
    Hyper,
    Keys,
    Layers,
    Method,
    Metrics,
    Projections,
    Spec,
    check_classes,
    projected_layers,
    require_labels,
)
from jaxssl.methods.multi_crop import project_views
from jaxssl.models import Encoder
from jaxssl.models.heads import build_head
from jaxssl.ranges import TEMPERATURE, Ranges


class SupCon(Method):
    """Encoder and head over the global batch; BatchNorm sees both views jointly.

    Reads ``hyper["temperature"]``.
    """

    HYPER: ClassVar[Ranges] = {"temperature": TEMPERATURE}
    VIEWS: ClassVar[int | None] = 2

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        check_classes("supcon", spec.num_classes)
        positives = {"outside": "outside", "inside": "inside"}
        self.positives = choose("method.positives", config.positives, positives)
        super().__init__(config, encoder, spec, rngs)
        self.head = build_head(config.head, encoder.feature_dim, encoder.dtype, rngs)

    def embed(self, views: Views, keys: Keys) -> Projections:
        """Projections [B, D] of the two views."""
        return project_views(self.encoder, self.head, views.images)

    def objective(
        self, embeddings: Projections, views: Views, key: Key[Array, ""], hyper: Hyper
    ) -> tuple[Float[Array, ""], Metrics]:
        """Mean over the 2B anchors and their positives, outside or inside the logarithm."""
        labels = require_labels(views, "supcon")
        first, second = embeddings
        temperature = hyper["temperature"]
        loss = supcon(first, second, labels, temperature=temperature, positives=self.positives)
        return loss, {}

    def watched(self, embeddings: Projections) -> Projections:
        """The projections."""
        return embeddings

    def represent(self, images: Float[Array, "b h w c"]) -> Layers:
        """Encoder and head: ``head1`` ... and ``projection``."""
        return projected_layers(self.encoder, self.head, images)
