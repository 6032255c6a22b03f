"""DINO (arXiv:2104.14294): a student predicts the outputs of its own slow average."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.losses import dino, dino_center
from jaxssl.methods.method import (
    Bank,
    Hyper,
    Keys,
    Layers,
    Method,
    Metrics,
    Projections,
    Spec,
    follow,
    make_teacher,
    projected_layers,
    teacher_layers,
)
from jaxssl.methods.multi_crop import check_pair, global_views, project_views
from jaxssl.methods.prototypes import WeightNormalized
from jaxssl.models import Encoder
from jaxssl.models.heads import build_head
from jaxssl.models.layers import param_dtype
from jaxssl.ranges import AT_LEAST_ONE, SHARE, TEMPERATURE, Ranges

Embeddings = dict[str, tuple[Float[Array, "b _"], ...]]

GELU = functools.partial(jax.nn.gelu, approximate=False)


class DINO(Method):
    """Student and teacher: encoder, head with GELU, last layer of unit prototypes.

    The teacher sees the global views (the first one's size), the student all of them. The centre
    is the running mean of the teacher's outputs over the global batch.

    Reads ``hyper["student_temperature"]``, ``hyper["teacher_temperature"]``,
    ``hyper["center_momentum"]`` and ``hyper["ema"]``, the teacher's decay a step. Recipes freeze
    ``last_layer/kernel`` in the first epoch by a row of ``optimizer.groups``.
    """

    HYPER: ClassVar[Ranges] = {
        "student_temperature": TEMPERATURE,
        "teacher_temperature": TEMPERATURE,
        "center_momentum": SHARE,
        "ema": SHARE,
    }
    SETTINGS: ClassVar[Ranges] = {"num_prototypes": AT_LEAST_ONE}

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        super().__init__(config, encoder, spec, rngs)
        dtype, outputs = encoder.dtype, config.num_prototypes
        self.head = build_head(config.head, encoder.feature_dim, dtype, rngs, activation=GELU)
        self.last_layer = WeightNormalized(config.head.out_dim, outputs, dtype, rngs)
        self.teacher_encoder = make_teacher(self.encoder)
        self.teacher_head = make_teacher(self.head)
        self.teacher_last_layer = make_teacher(self.last_layer)
        self.center = Bank(jnp.zeros(outputs, param_dtype(dtype)))

    def embed(self, views: Views, keys: Keys) -> Embeddings:
        """``student`` [B, K] of every view, ``teacher`` of the global ones, and what is watched.

        That is ``projection``: the student's [B, D] of the global views, before the last layer.

        Raises:
          UserError: if there is one view alone.
        """
        check_pair(views.images)
        seen = global_views(views.images)
        projections = project_views(self.encoder, self.head, views.images)
        targets = project_views(self.teacher_encoder, self.teacher_head, seen)
        return {
            "student": tuple(self.last_layer(z) for z in projections),
            "teacher": tuple(jax.lax.stop_gradient(self.teacher_last_layer(z)) for z in targets),
            "projection": projections[: len(seen)],
        }

    def objective(
        self,
        embeddings: Embeddings,
        views: Views,
        key: Key[Array, ""],
        hyper: Hyper,
    ) -> tuple[Float[Array, ""], Metrics]:
        """Cross-entropy of each student's view against each *other* view of the teacher."""
        student, teacher = jnp.stack(embeddings["student"]), jnp.stack(embeddings["teacher"])
        center = self.center[...]
        loss = dino(
            student,
            teacher,
            center=center,
            student_temperature=hyper["student_temperature"],
            teacher_temperature=hyper["teacher_temperature"],
        )
        # After its use, so that the targets of a step do not depend on its own mean.
        self.center[...] = dino_center(center, teacher, momentum=hyper["center_momentum"])
        return loss, {}

    def watched(self, embeddings: Embeddings) -> Projections:
        """The student's projections of the global views: K outputs would cost too much."""
        return embeddings["projection"]

    def after_update(self, hyper: Hyper) -> None:
        """The teacher follows: parameters only, its BatchNorm keeps statistics of its own."""
        follow(self.teacher_encoder, self.encoder, hyper["ema"])
        follow(self.teacher_head, self.head, hyper["ema"])
        follow(self.teacher_last_layer, self.last_layer, hyper["ema"])

    def represent(self, images: Float[Array, "b h w c"]) -> Layers:
        """Encoder and head; the teacher's ``teacher`` (pooled) and ``teacher_projection``."""
        return {
            **projected_layers(self.encoder, self.head, images),
            **teacher_layers(self.teacher_encoder, self.teacher_head, images),
        }
