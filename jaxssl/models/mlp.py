"""A multilayer perceptron for images of one pixel: the saturation experiment, arXiv:2011.02803 B.2.

The paper says that the experiment can be made on 1x1 images; of the network for them it says
nothing, so this one is ours.
"""

import itertools

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxssl.errors import UserError, choose
from jaxssl.models.encoder import Features
from jaxssl.models.layers import KERNEL_INITS, LayerSettings
from jaxssl.models.norm import at_least_float32


class MLP(nnx.Module):
    """Dense layers of one width, each without bias and followed by BatchNorm and ReLU.

    Attributes:
      channels: channels of the images.
      feature_dim: size of `Features.pooled`, the width.
      stage_dims: channels of the layers' maps, the width each.
      dtype: name of the compute dtype, a key of `COMPUTE_DTYPES`.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int,
        depth: int,
        kernel_init: str,
        settings: LayerSettings,
        rngs: nnx.Rngs,
    ):
        """Makes the network.

        Args:
          channels: channels of the images.
          width: size of every layer.
          depth: number of layers.
          kernel_init: a key of `KERNEL_INITS`.
          settings: BatchNorm and dtype.
          rngs: source of the initial kernels.

        Raises:
          UserError: if an argument names no known option.
        """
        self.channels, self.feature_dim, self.stage_dims = channels, width, (width,) * depth
        self.dtype, self.compute_dtype = settings.dtype, settings.compute_dtype
        self.dense = nnx.List(
            [
                nnx.Linear(
                    inputs,
                    outputs,
                    use_bias=False,
                    dtype=settings.compute_dtype,
                    param_dtype=settings.param_dtype,
                    kernel_init=choose("encoder.kernel_init", kernel_init, KERNEL_INITS),
                    rngs=rngs,
                )
                for inputs, outputs in itertools.pairwise([channels, *[width] * depth])
            ]
        )
        self.norms = nnx.List([settings.norm(width) for _ in self.dense])

    def __call__(self, x: Float[Array, "b h w c"], train: bool, views: int = 1) -> Features:
        """Encodes images of one pixel.

        Args:
          x: images [V * B, 1, 1, channels].
          train: normalise by the batch and move BatchNorm's running statistics.
          views: V, how many views of the same images are stacked in x.

        Returns:
          Each layer's output as a map [V * B, 1, 1, width], and the last one's as `pooled`.

        Raises:
          UserError: if x is not of that shape.
        """
        if x.ndim != 4 or x.shape[1:] != (1, 1, self.channels):
            raise UserError(
                f"the encoder was built for images [B, 1, 1, {self.channels}], got {x.shape}: give "
                "it views of one pixel, or choose another --config.encoder.name."
            )
        x = x.astype(self.compute_dtype)
        maps = []
        for dense, norm in zip(self.dense, self.norms, strict=True):
            x = jax.nn.relu(norm(dense(x), train, views))
            maps.append(at_least_float32(x))
        return Features(stages=tuple(maps), pooled=maps[-1][:, 0, 0])
