"""MoCo-v2 (arXiv:2003.04297): a slowly moving teacher makes the keys, a queue keeps past ones."""

from collections.abc import Callable
from typing import ClassVar, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.distributed import shard_rows
from jaxssl.losses import info_nce
from jaxssl.methods.method import (
    Hyper,
    Keys,
    Layers,
    Method,
    Metrics,
    Spec,
    follow,
    make_teacher,
    project,
    projected_layers,
    teacher_layers,
)
from jaxssl.methods.queue import Queue
from jaxssl.models import Encoder
from jaxssl.models.heads import build_head
from jaxssl.models.layers import param_dtype
from jaxssl.ranges import AT_LEAST_ONE, SHARE, TEMPERATURE, Ranges

T = TypeVar("T")


class MoCo(Method):
    """Queries from the encoder, keys from its teacher, negatives from the queue.

    Asymmetric: view 1 gives queries, view 2 keys. Symmetric: both directions, averaged (the
    reference CIFAR demo sums them), and both views' keys enter the queue. BatchNorm sees one view
    at a time. With ``shuffle`` the teacher's batch is permuted first, which changes nothing unless
    the encoder's BatchNorm is cut into groups: that is ShuffleBN with any number of devices.

    Reads ``hyper["temperature"]`` and ``hyper["ema"]``, the teacher's decay a step.
    """

    HYPER: ClassVar[Ranges] = {"temperature": TEMPERATURE, "ema": SHARE}
    SETTINGS: ClassVar[Ranges] = {"queue_size": AT_LEAST_ONE}
    VIEWS: ClassVar[int | None] = 2

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        self.symmetric = config.symmetric
        self.shuffle = config.shuffle
        super().__init__(config, encoder, spec, rngs)
        self.head = build_head(config.head, encoder.feature_dim, encoder.dtype, rngs)
        self.teacher_encoder = make_teacher(self.encoder)
        self.teacher_head = make_teacher(self.head)
        dtype = param_dtype(encoder.dtype)
        self.queue = Queue(config.queue_size, config.head.out_dim, rngs.params(), dtype)

    def _queries(self, images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        return project(self.encoder, self.head, images)

    def _keys(
        self, images: Float[Array, "b h w c"], step: Key[Array, ""], view: int
    ) -> Float[Array, "b d"]:
        def keys(images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
            return project(self.teacher_encoder, self.teacher_head, images)

        key = jax.random.fold_in(step, view)
        made = in_shuffled_order(keys, images, key) if self.shuffle else keys(images)
        return jax.lax.stop_gradient(made)

    def embed(self, views: Views, keys: Keys) -> dict[str, Array]:
        """Queries ``q1`` and keys ``k2`` [B, D]; if symmetric ``q2`` and ``k1`` too."""
        first, second = views.images
        embeddings = {"q1": self._queries(first), "k2": self._keys(second, keys.step, 1)}
        if self.symmetric:
            embeddings |= {"q2": self._queries(second), "k1": self._keys(first, keys.step, 0)}
        return embeddings

    def objective(
        self, embeddings: dict[str, Array], views: Views, key: Key[Array, ""], hyper: Hyper
    ) -> tuple[Float[Array, ""], Metrics]:
        """InfoNCE against the queue as it was before this step; then the keys enter it.

        Raises:
          UserError: unless the keys of a step divide the queue.
        """
        temperature = hyper["temperature"]
        negatives = self.queue.rows[...]
        new = [embeddings["k2"]]
        loss = info_nce(embeddings["q1"], embeddings["k2"], negatives, temperature=temperature)
        if self.symmetric:
            new = [embeddings["k1"], embeddings["k2"]]
            loss += info_nce(embeddings["q2"], embeddings["k1"], negatives, temperature=temperature)
            loss /= 2
        self.queue.push(jnp.concatenate(new))
        return loss, {}

    def watched(self, embeddings: dict[str, Array]) -> tuple[Float[Array, "b d"], ...]:
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


def in_shuffled_order(
    network: Callable[[Float[Array, "b h w c"]], T],
    images: Float[Array, "b h w c"],
    key: Key[Array, ""],
) -> T:
    """What a network makes of images that are permuted first, in their own order again: ShuffleBN.

    Args:
      network: from images to arrays that lead with the batch.
      images: [B, H, W, C].
      key: of the permutation.
    """
    order = jax.random.permutation(key, len(images))
    outputs = network(shard_rows(images[order]))
    back = jnp.argsort(order)
    return jax.tree.map(lambda output: shard_rows(output[back]), outputs)
