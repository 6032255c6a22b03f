"""SimSiam (arXiv:2011.10566): one view predicts the other, whose gradient is stopped."""

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.losses import negative_cosine
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
from jaxssl.models.heads import build_head, build_predictor
from jaxssl.ranges import SHARE, Ranges


class SimSiam(Method):
    """Encoder, head and predictor; BatchNorm sees one view at a time.

    Jha and Tuytelaars (2024, Eq. 1) ask less of a pair: its cosine may stay short of 1 by
    ``margin``, or by ``distance_margin`` times the distance of the two crops' centres (their k,
    with that distance as a share of the image's diagonal); the two add up. SimSiam has neither.
    They sum the two directions, here they are averaged as in SimSiam.

    Reads ``hyper["margin"]`` and ``hyper["distance_margin"]``. The paper's constant learning rate
    of the predictor is a row of ``optimizer.groups``.
    """

    HYPER: ClassVar[Ranges] = {"margin": SHARE, "distance_margin": SHARE}
    VIEWS: ClassVar[int | None] = 2

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        super().__init__(config, encoder, spec, rngs)
        self.image_size = spec.image_size
        self.head = build_head(config.head, encoder.feature_dim, encoder.dtype, rngs)
        self.predictor = build_predictor(config.predictor, self.head, encoder.dtype, rngs)

    def embed(self, views: Views, keys: Keys) -> dict[str, Array]:
        """Projections ``z1``, ``z2`` and predictions ``p1``, ``p2`` [B, D] of the two views."""
        z1, z2 = (project(self.encoder, self.head, images) for images in views.images)
        p1, p2 = (self.predictor(z, train=True) for z in (z1, z2))
        return {"z1": z1, "z2": z2, "p1": p1, "p2": p2}

    def objective(
        self, embeddings: dict[str, Array], views: Views, key: Key[Array, ""], hyper: Hyper
    ) -> tuple[Float[Array, ""], Metrics]:
        """Negative cosine, the mean of both directions: -1 to 1."""
        distance = center_distance(views.boxes, self.image_size)
        margin = hyper["margin"] + hyper["distance_margin"] * distance
        first = negative_cosine(embeddings["p1"], embeddings["z2"], margin=margin)
        second = negative_cosine(embeddings["p2"], embeddings["z1"], margin=margin)
        return (first + second) / 2, {}

    def watched(self, embeddings: dict[str, Array]) -> Projections:
        """The projections."""
        return embeddings["z1"], embeddings["z2"]

    def represent(self, images: Float[Array, "b h w c"]) -> Layers:
        """Encoder and head: ``head1`` ... and ``projection``."""
        return projected_layers(self.encoder, self.head, images)


def center_distance(
    boxes: tuple[Float[Array, "b 4"], ...], image_size: tuple[int, int]
) -> Float[Array, " b"]:
    """Distance of the centres of two crops, a share of the canonical image's diagonal, 0 to 1.

    Args:
      boxes: (y0, x0, y1, x1) of each crop, pixels.
      image_size: height and width of the canonical image, pixels.
    """
    first, second = (box[:, :2] + box[:, 2:] for box in boxes)
    return jnp.linalg.norm((first - second) / 2, axis=1) / jnp.hypot(*image_size)
