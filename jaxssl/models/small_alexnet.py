"""The small AlexNet of Wang & Isola's STL-10 experiments (arXiv:2005.10242), itself from CMC's."""

import itertools

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxssl.errors import UserError, choose
from jaxssl.models.encoder import Features
from jaxssl.models.layers import KERNEL_INITS, ConvNorm, LayerSettings, check_square
from jaxssl.models.norm import at_least_float32

# Channels of the five convolutions over those of the first, and whether max-pooling follows.
CONVOLUTIONS = ((1, True), (2, True), (4, False), (4, False), (2, True))


class SmallAlexNet(nnx.Module):
    """Five 3x3 convolutions, three max-poolings (3x3, stride 2), two dense layers, fc6 and fc7.

    Each layer is without bias and followed by BatchNorm and ReLU. The paper's last layer, fc8 with
    a bias and no BatchNorm, is what other methods call the head: one of ``num_layers=1``,
    ``output_bias=True`` and ``init="normal_0.02"``. So `Features.pooled` is fc7, which the paper
    probes.

    Attributes:
      channels: channels of the images.
      image_size: side of the images in pixels: fc6 takes the flattened last map.
      feature_dim: size of `Features.pooled`, that of the dense layers.
      stage_dims: channels of the convolutions' maps.
      dtype: name of the compute dtype, a key of `COMPUTE_DTYPES`.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        *,
        width: int,
        dense_dim: int,
        kernel_init: str,
        settings: LayerSettings,
        rngs: nnx.Rngs,
    ):
        """Makes the network.

        Args:
          channels: channels of the images.
          image_size: side of the square images in pixels, at least 15; the paper's have 64.
          width: channels of the first convolution; the others have 2, 4, 4 and 2 times as many. The
            paper's is 96.
          dense_dim: size of fc6 and of fc7; the paper's is 4096.
          kernel_init: a key of `KERNEL_INITS`; the paper's is "normal_0.02".
          settings: BatchNorm and dtype. (The paper's code: PyTorch's momentum .1, that is .9 here.)
          rngs: source of the initial kernels.

        Raises:
          UserError: if an argument names no known option, or the image is too small.
        """
        self.channels, self.image_size = channels, image_size
        self.dtype, self.compute_dtype = settings.dtype, settings.compute_dtype
        side = image_size
        for _, pooled in CONVOLUTIONS:
            side = (side - 3) // 2 + 1 if pooled else side
        if side < 1:
            raise UserError(
                f"images of {image_size} pixels are too small for this network's three poolings: "
                "use views of at least 15 pixels."
            )
        sizes = [channels, *(factor * width for factor, _ in CONVOLUTIONS)]
        self.convs = nnx.List(
            [
                ConvNorm(
                    inputs,
                    outputs,
                    kernel_size=3,
                    stride=1,
                    padding=1,
                    kernel_init=kernel_init,
                    settings=settings,
                    rngs=rngs,
                )
                for inputs, outputs in itertools.pairwise(sizes)
            ]
        )
        self.feature_dim, self.stage_dims = dense_dim, tuple(sizes[1:])
        self.dense = nnx.List(
            [
                nnx.Linear(
                    inputs,
                    dense_dim,
                    use_bias=False,
                    dtype=settings.compute_dtype,
                    param_dtype=settings.param_dtype,
                    kernel_init=choose("encoder.kernel_init", kernel_init, KERNEL_INITS),
                    rngs=rngs,
                )
                for inputs in (side * side * sizes[-1], dense_dim)
            ]
        )
        self.norms = nnx.List([settings.norm(dense_dim) for _ in self.dense])

    def __call__(self, x: Float[Array, "b h w c"], train: bool, views: int = 1) -> Features:
        """Encodes images.

        Args:
          x: images [V * B, image_size, image_size, channels].
          train: normalise by the batch and move BatchNorm's running statistics.
          views: V, how many views of the same images are stacked in x.

        Returns:
          The five convolutions' maps, after their pooling, and fc7 as `pooled`.

        Raises:
          UserError: if x is not of that shape.
        """
        check_square(x, self.image_size, self.channels)
        x = x.astype(self.compute_dtype)
        maps = []
        for conv, (_, pooled) in zip(self.convs, CONVOLUTIONS, strict=True):
            x = jax.nn.relu(conv(x, train, views))
            if pooled:
                x = nnx.max_pool(x, (3, 3), strides=(2, 2))
            maps.append(at_least_float32(x))
        x = x.reshape(x.shape[0], -1)
        for dense, norm in zip(self.dense, self.norms, strict=True):
            x = jax.nn.relu(norm(dense(x), train, views))
        return Features(stages=tuple(maps), pooled=at_least_float32(x))
