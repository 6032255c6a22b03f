"""The supervised yardstick: the same encoder, views and schedule, trained on labels."""

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.errors import UserError
from jaxssl.methods.method import Hyper, Method, Metrics, Spec, require_labels
from jaxssl.models import Encoder


class Supervised(Method):
    """Encoder and one linear classifier; cross-entropy over every view the policy makes."""

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        if spec.num_classes is None:
            raise UserError(
                "method supervised needs labels but the data set has none: choose a labelled set "
                "or a self-supervised method."
            )
        super().__init__(config, encoder, spec, rngs)
        self.classifier = nnx.Linear(
            encoder.feature_dim,
            spec.num_classes,
            param_dtype=encoder.settings.param_dtype,
            rngs=rngs,
        )

    def embed(self, views: Views) -> dict[str, Array]:
        """Logits [V, B, K] of the V views, embedded jointly as SimCLR does."""
        pooled = self.encoder(jnp.concatenate(views.images), train=True).pooled
        logits = jnp.split(self.classifier(pooled), len(views.images))
        return {f"logits{number}": view for number, view in enumerate(logits, 1)}

    def objective(
        self, embeddings: dict[str, Array], views: Views, key: Key[Array, ""], hyper: Hyper
    ) -> tuple[Float[Array, ""], Metrics]:
        """Cross-entropy, mean over images and views; logs the training accuracy of the batch."""
        labels = require_labels(views, "supervised")
        logits = list(embeddings.values())
        losses = [
            optax.losses.softmax_cross_entropy_with_integer_labels(view, labels).mean()
            for view in logits
        ]
        hits = [(view.argmax(-1) == labels).mean() for view in logits]
        return jnp.stack(losses).mean(), {"batch_accuracy": jnp.stack(hits).mean()}
