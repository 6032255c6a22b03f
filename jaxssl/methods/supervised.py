"""The supervised yardstick: the same encoder, views and schedule, trained on labels."""

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.methods.method import (
    Hyper,
    Keys,
    Layers,
    Method,
    Metrics,
    Spec,
    check_classes,
    encoder_layers,
    require_labels,
)
from jaxssl.models import Encoder
from jaxssl.models.layers import param_dtype


class Supervised(Method):
    """Encoder and one linear classifier; cross-entropy over every view the policy makes."""

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        check_classes("supervised", spec.num_classes)
        super().__init__(config, encoder, spec, rngs)
        self.classifier = nnx.Linear(
            encoder.feature_dim,
            spec.num_classes,
            param_dtype=param_dtype(encoder.dtype),
            rngs=rngs,
        )

    def embed(self, views: Views, keys: Keys) -> tuple[Float[Array, "b k"], ...]:
        """Logits [B, K] of each view; views of one size are embedded jointly, as SimCLR does."""
        stacked = jnp.concatenate(views.images)
        pooled = self.encoder(stacked, train=True, views=len(views.images)).pooled
        return tuple(jnp.split(self.classifier(pooled), len(views.images)))

    def objective(
        self,
        embeddings: tuple[Float[Array, "b k"], ...],
        views: Views,
        key: Key[Array, ""],
        hyper: Hyper,
    ) -> tuple[Float[Array, ""], Metrics]:
        """Cross-entropy, mean over images and views; logs the training accuracy of the batch."""
        labels = require_labels(views, "supervised")
        losses = [
            optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            for logits in embeddings
        ]
        hits = [(logits.argmax(-1) == labels).mean() for logits in embeddings]
        return jnp.stack(losses).mean(), {"batch_accuracy": jnp.stack(hits).mean()}

    def watched(
        self, embeddings: tuple[Float[Array, "b k"], ...]
    ) -> tuple[Float[Array, "b k"], ...]:
        """The logits."""
        return embeddings

    def represent(self, images: Float[Array, "b h w c"]) -> Layers:
        """The encoder, and the classifier's ``logits``."""
        layers = encoder_layers(self.encoder, images)
        return {**layers, "logits": self.classifier(layers["pooled"])}
