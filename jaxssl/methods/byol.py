"""BYOL (arXiv:2006.07733): one view predicts what a slowly moving teacher makes of the other."""

from typing import ClassVar

import jax
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.losses import byol_regression
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
from jaxssl.ranges import SHARE, Ranges


class BYOL(Method):
    """Encoder, head and predictor; the targets are the teacher's projections of the other view.

    BatchNorm sees one view at a time.

    Reads ``hyper["ema"]``, the teacher's decay a step.
    """

    HYPER: ClassVar[Ranges] = {"ema": SHARE}
    VIEWS: ClassVar[int | None] = 2

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        super().__init__(config, encoder, spec, rngs)
        self.head = build_head(config.head, encoder.feature_dim, encoder.dtype, rngs)
        self.predictor = build_predictor(config.predictor, self.head, encoder.dtype, rngs)
        self.teacher_encoder = make_teacher(self.encoder)
        self.teacher_head = make_teacher(self.head)

    def embed(self, views: Views, keys: Keys) -> dict[str, Array]:
        """Predictions ``p1``, ``p2`` and targets ``t1``, ``t2`` [B, D] of the two views."""
        first, second = views.images
        return {
            "p1": self._predict(first),
            "p2": self._predict(second),
            "t1": self._target(first),
            "t2": self._target(second),
        }

    def _predict(self, images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        return self.predictor(project(self.encoder, self.head, images), train=True)

    def _target(self, images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        return jax.lax.stop_gradient(project(self.teacher_encoder, self.teacher_head, images))

    def objective(
        self, embeddings: dict[str, Array], views: Views, key: Key[Array, ""], hyper: Hyper
    ) -> tuple[Float[Array, ""], Metrics]:
        """Squared distance of unit vectors, both directions added: 0 to 8."""
        first = byol_regression(embeddings["p1"], embeddings["t2"])
        return first + byol_regression(embeddings["p2"], embeddings["t1"]), {}

    def watched(self, embeddings: dict[str, Array]) -> Projections:
        """Predictions and targets."""
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
