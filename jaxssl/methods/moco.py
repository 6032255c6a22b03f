"""MoCo-v2 (arXiv:2003.04297): a slowly moving teacher makes the keys, a queue keeps past ones."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.distributed import shard_rows
from jaxssl.errors import UserError
from jaxssl.losses import info_nce
from jaxssl.methods.method import (
    Counter,
    Hyper,
    Method,
    Metrics,
    Queue,
    Spec,
    follow,
    make_teacher,
)
from jaxssl.models import Encoder
from jaxssl.models.heads import build_head


class MoCo(Method):
    """Queries from the encoder, keys from its teacher, negatives from the queue.

    Asymmetric: view 1 gives queries, view 2 keys. Symmetric: both directions, averaged (the
    reference CIFAR demo sums them), and both views' keys enter the queue. BatchNorm sees one view
    at a time. With ``shuffle`` the teacher's batch is permuted first, which changes nothing unless
    the encoder's BatchNorm is cut into ``groups``: that is ShuffleBN with any number of devices.

    Reads ``hyper["temperature"]`` and ``hyper["ema"]``, the teacher's decay a step.
    """

    HYPER = ("temperature", "ema")

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        self.symmetric = config.symmetric
        self.shuffle = config.shuffle
        super().__init__(config, encoder, spec, rngs)
        self.head = build_head(config.head, encoder, rngs)
        self.teacher_encoder = make_teacher(self.encoder)
        self.teacher_head = make_teacher(self.head)
        keys = jax.random.normal(rngs.params(), (config.queue_size, config.head.out_dim))
        self.queue = Queue(keys / jnp.linalg.norm(keys, axis=1, keepdims=True))
        self.position = Queue(jnp.zeros((), jnp.int32))
        self.shuffle_key = Counter(rngs.params())
        self.updates = Counter(jnp.zeros((), jnp.int32))

    def _queries(self, images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        return self.head(self.encoder(images, train=True).pooled, train=True)

    def _keys(self, images: Float[Array, "b h w c"], view: int) -> Float[Array, "b d"]:
        if not self.shuffle:
            keys = self.teacher_head(self.teacher_encoder(images, train=True).pooled, train=True)
            return jax.lax.stop_gradient(keys)
        draw = jax.random.fold_in(
            jax.random.fold_in(self.shuffle_key[...], self.updates[...]), view
        )
        order = jax.random.permutation(draw, len(images))
        pooled = self.teacher_encoder(shard_rows(images[order]), train=True).pooled
        keys = shard_rows(self.teacher_head(pooled, train=True)[jnp.argsort(order)])
        return jax.lax.stop_gradient(keys)

    def embed(self, views: Views) -> dict[str, Array]:
        """Queries ``q1`` and keys ``k2`` [B, D]; if symmetric ``q2`` and ``k1`` too."""
        first, second = views.images
        embeddings = {"q1": self._queries(first), "k2": self._keys(second, 1)}
        if self.symmetric:
            embeddings |= {"q2": self._queries(second), "k1": self._keys(first, 0)}
        return embeddings

    def objective(
        self, embeddings: dict[str, Array], views: Views, key: Key[Array, ""], hyper: Hyper
    ) -> tuple[Float[Array, ""], Metrics]:
        """InfoNCE against the queue as it was before this step; then the keys enter it.

        Raises:
          UserError: unless the keys of a step divide the queue.
        """
        temperature = hyper["temperature"]
        negatives = self.queue[...]
        new = [embeddings["k2"]]
        loss = info_nce(embeddings["q1"], embeddings["k2"], negatives, temperature=temperature)
        if self.symmetric:
            new = [embeddings["k1"], embeddings["k2"]]
            loss += info_nce(embeddings["q2"], embeddings["k1"], negatives, temperature=temperature)
            loss /= 2
        self._enqueue(jnp.concatenate(new))
        return loss, {}

    def _enqueue(self, keys: Float[Array, "b d"]) -> None:
        keys = keys / jnp.maximum(jnp.linalg.norm(keys, axis=1, keepdims=True), 1e-12)
        queue, position = self.queue[...], self.position[...]
        if len(queue) % len(keys):
            fits = max(len(queue) // len(keys), 1) * len(keys)
            raise UserError(
                f"method.queue_size={len(queue)} is not a multiple of the {len(keys)} keys of a "
                f"step: use a multiple such as {fits}."
            )
        start = (position, jnp.zeros_like(position))
        self.queue[...] = jax.lax.dynamic_update_slice(queue, keys.astype(queue.dtype), start)
        self.position[...] = (position + len(keys)) % len(queue)

    def after_update(self, hyper: Hyper) -> None:
        """The teacher follows: parameters only, its BatchNorm keeps statistics of its own."""
        follow(self.teacher_encoder, self.encoder, hyper["ema"])
        follow(self.teacher_head, self.head, hyper["ema"])
        self.updates[...] += 1

    def represent(self, images: Float[Array, "b h w c"]) -> dict[str, Float[Array, "b d"]]:
        """``pooled`` features and the student's ``projection``."""
        pooled = self.encoder(images, train=False).pooled
        return {"pooled": pooled, "projection": self.head(pooled, train=False)}
