"""Encoders that take images of any size, for views that differ in theirs."""

import jax
from flax import nnx
from ml_collections import ConfigDict

from jaxssl.models import Features, LayerSettings
from jaxssl.models.layers import ConvNorm
from jaxssl.models.norm import at_least_float32


class AnySize(nnx.Module):
    """A convolution of stride 2 with BatchNorm and ReLU, and the mean of its map."""

    def __init__(self, config: ConfigDict, channels: int, rngs: nnx.Rngs):
        self.feature_dim, self.dtype = 4 * config.width, config.dtype
        settings = LayerSettings(
            config.bn_momentum, config.bn_epsilon, config.bn_groups, config.dtype
        )
        self.convs = nnx.List(
            [
                ConvNorm(
                    channels,
                    self.feature_dim,
                    kernel_size=3,
                    stride=2,
                    padding=1,
                    kernel_init=config.kernel_init,
                    settings=settings,
                    rngs=rngs,
                )
            ]
        )

    def __call__(self, x, train, views=1):
        stage = jax.nn.relu(self.convs[0](x.astype(self.dtype), train, views))
        stage = at_least_float32(stage)
        return Features((stage,), stage.mean((1, 2)))


class Mean(nnx.Module):
    """Hands the mean over the positions of images [B, H, W, D] on as features."""

    def __init__(self, feature_dim: int, dtype: str):
        self.feature_dim, self.stage_dims, self.dtype = feature_dim, (), dtype

    def __call__(self, x, train, views=1):
        return Features((), x.mean((1, 2)))
