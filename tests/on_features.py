"""Methods on given features, without an encoder: their heads, losses and teachers alone."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from configs.common import head_group
from jaxssl.augment.views import Views
from jaxssl.methods import METHODS, Keys, Method, Spec
from jaxssl.models import Features


class Given(nnx.Module):
    """An encoder that hands its images [B, 1, 1, D] on as features."""

    def __init__(self, feature_dim: int, dtype: str):
        self.feature_dim, self.dtype = feature_dim, dtype
        self.stage_dims: tuple[int, ...] = ()

    def __call__(self, x, train, views=1):
        return Features((), x.reshape(len(x), self.feature_dim))


def small_head(out_dim: int, **settings) -> ConfigDict:
    """A head of two layers over 5."""
    return head_group(out_dim, **{"hidden_dim": 5, **settings})


def method_of(
    config: dict, feature_dim: int, dtype: str = "float32", image_size: tuple[int, int] = (1, 1)
) -> Method:
    """The method that a ``method`` group describes."""
    spec = Spec(64, 4, feature_dim, image_size, 10, 8)
    kind = METHODS[config["name"]]
    return kind(ConfigDict(config), Given(feature_dim, dtype), spec, nnx.Rngs(0))


def views_of(features, labels=None, boxes=None) -> Views:
    """Those of a batch of features, one [B, D] a view."""
    batch, count = len(features[0]), len(features)
    whole = jnp.tile(jnp.array([0.0, 0.0, 1.0, 1.0]), (batch, 1))
    return Views(
        images=tuple(jnp.asarray(x).reshape(batch, 1, 1, -1) for x in features),
        boxes=boxes or (whole,) * count,
        flipped=(jnp.zeros(batch, bool),) * count,
        targets={} if labels is None else {"label": jnp.asarray(labels)},
        index=jnp.arange(batch),
        epoch=jnp.zeros(batch, jnp.int32),
        split=jnp.zeros(batch, jnp.int32),
    )


def keys_of(batch: int) -> Keys:
    return Keys(jax.random.split(jax.random.key(0), batch), jax.random.key(1))


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)
