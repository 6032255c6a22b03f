"""MoCo-v3 (arXiv:2104.02057): predictions of one view find their key among the other's."""

from typing import ClassVar

import jax
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.losses import in_batch_info_nce
from jaxssl.methods.method import (
    Hyper,
    Keys,
    Layers,
    Method,
    Metrics,
    Projections,
    Spec,
    follow,
    make_teacher,
    project,
    projected_layers,
    teacher_layers,
)
from jaxssl.models import Encoder
from jaxssl.models.heads import build_head, build_predictor
from jaxssl.ranges import SHARE, TEMPERATURE, Ranges


class MoCoV3(Method):
    """Queries from encoder, head and predictor; keys from the teacher; no queue.

    A query's negatives are the keys of the other images of the global batch, in the other view.
    BatchNorm sees one view at a time.

    Reads ``hyper["temperature"]`` and ``hyper["ema"]``, the teacher's decay a step.
    """

    HYPER: ClassVar[Ranges] = {"temperature": TEMPERATURE, "ema": SHARE}
    VIEWS: ClassVar[int | None] = 2

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        super().__init__(config, encoder, spec, rngs)
        self.head = build_head(config.head, encoder.feature_dim, encoder.dtype, rngs)
        self.predictor = build_predictor(config.predictor, self.head, encoder.dtype, rngs)
        self.teacher_encoder = make_teacher(self.encoder)
        self.teacher_head = make_teacher(self.head)

    def embed(self, views: Views, keys: Keys) -> dict[str, Array]:
        """Queries ``q1``, ``q2`` and keys ``k1``, ``k2`` [B, D] of the two views."""
        first, second = views.images
        return {
            "q1": self._query(first),
            "q2": self._query(second),
            "k1": self._key(first),
            "k2": self._key(second),
        }

    def _query(self, images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        return self.predictor(project(self.encoder, self.head, images), train=True)

    def _key(self, images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        return jax.lax.stop_gradient(project(self.teacher_encoder, self.teacher_head, images))

    def objective(
        self, embeddings: dict[str, Array], views: Views, key: Key[Array, ""], hyper: Hyper
    ) -> tuple[Float[Array, ""], Metrics]:
        """InfoNCE in both directions, added, times 2 temperature (the paper's algorithm 1)."""
        temperature = hyper["temperature"]
        first = in_batch_info_nce(embeddings["q1"], embeddings["k2"], temperature=temperature)
        second = in_batch_info_nce(embeddings["q2"], embeddings["k1"], temperature=temperature)
        return 2 * temperature * (first + second), {}

    def watched(self, embeddings: dict[str, Array]) -> Projections:
        """Queries and keys."""
        return tuple(embeddings.values())

    def after_update(self, hyper: Hyper) -> None:
        """The teacher follows: parameters only, its BatchNorm keeps statistics of its own."""
        follow(self.teacher_encoder, self.encoder, hyper["ema"])
        follow(self.teacher_head, self.head, hyper["ema"])

    def represent(self, images: Float[Array, "b h w c"]) -> Layers:
        """Encoder and head; the teacher's ``teacher`` (pooled) and ``teacher_projection``."""
        return {
            **projected_layers(self.encoder, self.head, images),
            **teacher_layers(self.teacher_encoder, self.teacher_head, images),
        }
