"""DenseCL (arXiv:2011.09157): MoCo, and beside it the same for every cell of the last map.

A cell of the query's map has as positive the cell of the key's map that the *backbone's* features
match it with, and as negatives a second queue of past images' pooled dense projections.
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.losses import cosine_match, info_nce
from jaxssl.methods.method import (
    Hyper,
    Keys,
    Layers,
    Method,
    Metrics,
    Spec,
    encoder_layers,
    follow,
    head_layers,
    make_teacher,
)
from jaxssl.methods.moco import in_shuffled_order
from jaxssl.methods.queue import Queue
from jaxssl.models import Encoder, ProjectionHead, cells
from jaxssl.models.heads import build_head
from jaxssl.models.layers import param_dtype
from jaxssl.ranges import AT_LEAST_ONE, SHARE, TEMPERATURE, Ranges


class Projected(NamedTuple):
    """What the network makes of one view, P cells an image.

    Attributes:
      z: the instance head's projection of the pooled features [B, D].
      h: the dense head's projection of each cell [B, P, D].
      map: the backbone's cells [B, P, E].
    """

    z: Float[Array, "b d"]
    h: Float[Array, "b p d"]
    map: Float[Array, "b p e"]


class DenseCL(Method):
    """View 1 gives queries, view 2 keys; BatchNorm sees one view at a time, as in MoCo.

    ``config.shuffle``: see `jaxssl.methods.moco.MoCo`. Reads ``hyper["temperature"]``,
    ``hyper["ema"]``, the teacher's decay a step, and ``hyper["dense_weight"]``, the paper's lambda.
    """

    HYPER: ClassVar[Ranges] = {"temperature": TEMPERATURE, "ema": SHARE, "dense_weight": SHARE}
    SETTINGS: ClassVar[Ranges] = {"queue_size": AT_LEAST_ONE}
    VIEWS: ClassVar[int | None] = 2

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        super().__init__(config, encoder, spec, rngs)
        self.shuffle = config.shuffle
        self.head = build_head(config.head, encoder.feature_dim, encoder.dtype, rngs)
        self.dense_head = build_head(
            config.dense_head, encoder.stage_dims[-1], encoder.dtype, rngs, "method.dense_head"
        )
        self.teacher_encoder = make_teacher(self.encoder)
        self.teacher_head = make_teacher(self.head)
        self.teacher_dense_head = make_teacher(self.dense_head)
        size, dtype = config.queue_size, param_dtype(encoder.dtype)
        self.queue = Queue(size, config.head.out_dim, rngs.params(), dtype)
        self.dense_queue = Queue(size, config.dense_head.out_dim, rngs.params(), dtype)

    def embed(self, views: Views, keys: Keys) -> dict[str, Array]:
        """``q`` and ``k`` [B, D], ``q_cells`` and ``k_cells`` [B, P, D], ``q_map`` and ``k_map``.

        The maps [B, P, E] are the backbones', from which the cells are projected.
        """
        first, second = views.images
        q = _project(self.encoder, self.head, self.dense_head, first)
        k = self._keys(second, keys.step)
        return {"q": q.z, "q_cells": q.h, "q_map": q.map, "k": k.z, "k_cells": k.h, "k_map": k.map}

    def _keys(self, images: Float[Array, "b h w c"], step: Key[Array, ""]) -> Projected:
        def project(images: Float[Array, "b h w c"]) -> Projected:
            teacher = self.teacher_encoder, self.teacher_head, self.teacher_dense_head
            return _project(*teacher, images)

        keys = in_shuffled_order(project, images, step) if self.shuffle else project(images)
        return jax.tree.map(jax.lax.stop_gradient, keys)

    def objective(
        self, embeddings: dict[str, Array], views: Views, key: Key[Array, ""], hyper: Hyper
    ) -> tuple[Float[Array, ""], Metrics]:
        """(1 - lambda) L_q + lambda L_r (Eq. 3) against the queues as they were; then keys enter.

        Raises:
          UserError: unless the keys of a step divide the queue.
        """
        temperature, share = hyper["temperature"], hyper["dense_weight"]
        match = cosine_match(
            *map(jax.lax.stop_gradient, (embeddings["q_map"], embeddings["k_map"]))
        )
        positive = jnp.take_along_axis(embeddings["k_cells"], match[..., None], axis=1)
        instance = info_nce(
            embeddings["q"], embeddings["k"], self.queue.rows[...], temperature=temperature
        )
        dense = info_nce(
            _as_rows(embeddings["q_cells"]),
            _as_rows(positive),
            self.dense_queue.rows[...],
            temperature=temperature,
        )
        self.queue.push(embeddings["k"])
        # Pooled and then, in the queue, normalised: not the mean of unit vectors.
        self.dense_queue.push(embeddings["k_cells"].mean(1))
        loss = (1 - share) * instance + share * dense
        return loss, {"instance_loss": instance, "dense_loss": dense}

    def watched(self, embeddings: dict[str, Array]) -> tuple[Float[Array, "b *p d"], ...]:
        """Queries and keys, of instances and of cells."""
        return tuple(embeddings[name] for name in ("q", "k", "q_cells", "k_cells"))

    def after_update(self, hyper: Hyper) -> None:
        """The teacher follows: parameters only, its BatchNorm keeps statistics of its own."""
        follow(self.teacher_encoder, self.encoder, hyper["ema"])
        follow(self.teacher_head, self.head, hyper["ema"])
        follow(self.teacher_dense_head, self.dense_head, hyper["ema"])

    def represent(self, images: Float[Array, "b h w c"]) -> Layers:
        """Encoder and both heads, and the teacher's.

        ``dense_projection`` is the dense head's map [B, h, w, D]; ``teacher`` is pooled,
        ``teacher_projection`` the teacher's instance projection.
        """
        layers = encoder_layers(self.encoder, images)
        last = layers[f"stage{len(self.encoder.stage_dims)}"]
        teacher = self.teacher_encoder(images, train=False).pooled
        return {
            **layers,
            **head_layers(self.head, layers["pooled"]),
            "dense_projection": self.dense_head(last, train=False),
            "teacher": teacher,
            "teacher_projection": self.teacher_head(teacher, train=False),
        }


def _project(
    encoder: Encoder,
    head: ProjectionHead,
    dense_head: ProjectionHead,
    images: Float[Array, "b h w c"],
) -> Projected:
    stages, pooled = encoder(images, train=True)
    maps = cells(stages[-1])
    return Projected(head(pooled, train=True), dense_head(maps, train=True), maps)


def _as_rows(x: Float[Array, "b p d"]) -> Float[Array, "n d"]:
    return x.reshape(-1, x.shape[-1])
