"""SimCLR (arXiv:2002.05709): two views of each image attract, all others in the batch repel."""

from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.losses import nt_xent
from jaxssl.methods.method import (
    Hyper,
    Keys,
    Layers,
    Method,
    Metrics,
    Spec,
    projected_layers,
)
from jaxssl.methods.multi_crop import project_views
from jaxssl.models import Encoder
from jaxssl.models.heads import build_head
from jaxssl.ranges import TEMPERATURE, Ranges


class SimCLR(Method):
    """Encoder, projection head, NT-Xent over the global batch; BatchNorm sees both views jointly.

    Reads ``hyper["temperature"]``.
    """

    HYPER: ClassVar[Ranges] = {"temperature": TEMPERATURE}
    VIEWS: ClassVar[int | None] = 2

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        super().__init__(config, encoder, spec, rngs)
        self.head = build_head(config.head, encoder.feature_dim, encoder.dtype, rngs)

    def embed(self, views: Views, keys: Keys) -> dict[str, Array]:
        """Projections ``z1``, ``z2`` [B, D] of the two views."""
        z1, z2 = project_views(self.encoder, self.head, views.images)
        return {"z1": z1, "z2": z2}

    def objective(
        self, embeddings: dict[str, Array], views: Views, key: Key[Array, ""], hyper: Hyper
    ) -> tuple[Float[Array, ""], Metrics]:
        """NT-Xent, mean over the 2B anchors (the reference code prints twice this)."""
        z1, z2 = embeddings["z1"], embeddings["z2"]
        return nt_xent(z1, z2, temperature=hyper["temperature"]), {}

    def watched(self, embeddings: dict[str, Array]) -> tuple[Float[Array, "b d"], ...]:
        """The projections."""
        return embeddings["z1"], embeddings["z2"]

    def represent(self, images: Float[Array, "b h w c"]) -> Layers:
        """Encoder and head: ``head1`` ... and ``projection``."""
        return projected_layers(self.encoder, self.head, images)
