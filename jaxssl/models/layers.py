"""What the architectures are made of: the choices a recipe names, and convolution + BatchNorm."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxssl.errors import UserError, choose
from jaxssl.models.conv import convolve
from jaxssl.models.norm import BatchNorm

# "float64" is for tests of exactness: it needs jax_enable_x64 and makes float64 parameters too.
COMPUTE_DTYPES: dict[str, DTypeLike] = {
    "float32": jnp.float32,
    "bfloat16": jnp.bfloat16,
    "float64": jnp.float64,
}

KERNEL_INITS: dict[str, Callable] = {
    # SimCLR: TensorFlow's variance_scaling_initializer() with its defaults.
    "fan_in_truncated_normal": jax.nn.initializers.variance_scaling(
        1.0, "fan_in", "truncated_normal"
    ),
    # PyTorch's ResNets (MoCo and its descendants): He et al., arXiv:1502.01852, mode fan_out.
    "fan_out_normal": jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    "normal_0.02": jax.nn.initializers.normal(0.02),  # Wang & Isola's AlexNet, arXiv:2005.10242
}


def check_square(x: Array, size: int, channels: int) -> None:
    """Raises UserError unless x is what an encoder is made for, [B, size, size, channels]."""
    if x.ndim == 4 and x.shape[1:] == (size, size, channels):
        return
    remedy = "build it with the size and channels of the views"
    if x.ndim == 4 and x.shape[1] == x.shape[2] and x.shape[3] == channels:
        remedy = (
            f"give --config.encoder.image_size={x.shape[1]}, or views of {size} pixels "
            f"(--config.views.global_crops.size={size})"
        )
    raise UserError(
        f"the encoder was built for images [B, {size}, {size}, {channels}], got {x.shape}: "
        f"{remedy}."
    )


def param_dtype(dtype: str) -> DTypeLike:
    """The dtype of parameters beside a compute dtype: float32 at least.

    Raises:
      UserError: if there is no such compute dtype.
    """
    return jnp.promote_types(choose("encoder.dtype", dtype, COMPUTE_DTYPES), jnp.float32)


@dataclasses.dataclass(frozen=True)
class LayerSettings:
    """What all layers of a network share.

    Attributes:
      bn_momentum: BatchNorm's share of the running statistics kept, in [0, 1); PyTorch's 1 - this.
      bn_epsilon: added to BatchNorm's variance, > 0.
      bn_groups: BatchNorm groups of the images, 1 for statistics of the whole batch.
      dtype: a key of `COMPUTE_DTYPES`; parameters are float32 at least.
    """

    bn_momentum: float
    bn_epsilon: float
    bn_groups: int
    dtype: str

    @property
    def compute_dtype(self) -> DTypeLike:
        """The dtype of convolutions and matrix products."""
        return choose("encoder.dtype", self.dtype, COMPUTE_DTYPES)

    @property
    def param_dtype(self) -> DTypeLike:
        """The dtype of parameters and running statistics."""
        return param_dtype(self.dtype)

    def norm(
        self,
        features: int,
        *,
        use_scale: bool = True,
        use_bias: bool = True,
        zero_scale: bool = False,
    ) -> BatchNorm:
        """A `BatchNorm` of these settings."""
        return BatchNorm(
            features,
            momentum=self.bn_momentum,
            epsilon=self.bn_epsilon,
            groups=self.bn_groups,
            use_scale=use_scale,
            use_bias=use_bias,
            zero_scale=zero_scale,
            param_dtype=self.param_dtype,
        )


class ConvNorm(nnx.Module):
    """A square convolution without bias, then BatchNorm."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        kernel_size: int,
        stride: int,
        padding: int,
        kernel_init: str,
        settings: LayerSettings,
        rngs: nnx.Rngs,
        zero_scale: bool = False,
    ):
        """Makes the layer.

        Args:
          in_channels: channels of the input.
          channels: channels of the output.
          kernel_size: side of the kernel in pixels.
          stride: step of the kernel in pixels.
          padding: zero pixels added on each side of both axes. TensorFlow's "SAME" is not meant:
            that pads a strided convolution unevenly.
          kernel_init: a key of `KERNEL_INITS`.
          settings: what all layers share.
          rngs: source of the initial kernel.
          zero_scale: start BatchNorm's gamma at 0.
        """
        self.conv = nnx.Conv(
            in_channels,
            channels,
            (kernel_size, kernel_size),
            strides=stride,
            padding=((padding, padding), (padding, padding)),
            use_bias=False,
            conv_general_dilated=convolve,
            dtype=settings.compute_dtype,
            param_dtype=settings.param_dtype,
            kernel_init=choose("encoder.kernel_init", kernel_init, KERNEL_INITS),
            rngs=rngs,
        )
        self.norm = settings.norm(channels, zero_scale=zero_scale)

    def __call__(
        self, x: Float[Array, "b h w c"], train: bool, views: int = 1
    ) -> Float[Array, "b new_h new_w new_c"]:
        """The normalised convolution, in the compute dtype; no activation."""
        return self.norm(self.conv(x), train, views)
