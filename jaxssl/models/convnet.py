"""ConvN: the small network of the MNIST experiments with random bits (arXiv:2011.02803)."""

import itertools

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxssl.errors import UserError, choose
from jaxssl.models.encoder import Features
from jaxssl.models.layers import KERNEL_INITS, ConvNorm, LayerSettings, check_square
from jaxssl.models.norm import at_least_float32

PADDINGS = {"valid": 0, "same": 1}  # zero pixels on each side of a 3x3 kernel


class ConvNet(nnx.Module):
    """Three 3x3 convolutions of stride 2, then one dense layer, each with BatchNorm and ReLU.

    Attributes:
      channels: channels of the images.
      image_size: side of the images in pixels: the dense layer takes the flattened last map.
      feature_dim: size of `Features.pooled`, 4 * width.
      stage_dims: channels of the convolutions' maps.
      dtype: name of the compute dtype, a key of `COMPUTE_DTYPES`.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        *,
        width: int,
        padding: str,
        kernel_init: str,
        settings: LayerSettings,
        rngs: nnx.Rngs,
    ):
        """Makes the network.

        Args:
          channels: channels of the images.
          image_size: side of the square images in pixels.
          width: channels of the first convolution; the next two have twice as many and the dense
            layer four times. The paper's code has 32.
          padding: "valid" as in the paper's code (28 pixels become 13, 6, 2), or "same", one zero
            pixel on each side, for images too small for it.
          kernel_init: a key of `KERNEL_INITS`.
          settings: BatchNorm and dtype. (The paper's code: momentum .99, epsilon 1e-3.)
          rngs: source of the initial kernels.

        Raises:
          UserError: if an argument names no known option.
            Or if the image is too small for three such convolutions.
        """
        self.channels, self.image_size = channels, image_size
        self.dtype, self.compute_dtype = settings.dtype, settings.compute_dtype
        pad = choose("encoder.padding", padding, PADDINGS)
        sizes = [channels, width, 2 * width, 2 * width]
        convs = []
        side = image_size
        for inputs, outputs in itertools.pairwise(sizes):
            convs.append(
                ConvNorm(
                    inputs,
                    outputs,
                    kernel_size=3,
                    stride=2,
                    padding=pad,
                    kernel_init=kernel_init,
                    settings=settings,
                    rngs=rngs,
                )
            )
            side = (side + 2 * pad - 3) // 2 + 1
            if side < 1:
                raise UserError(
                    f"images of {image_size} pixels are too small for this network with "
                    f"--config.encoder.padding={padding}: use same, or views of at least 15 pixels "
                    "(--config.encoder.image_size)."
                )
        self.convs = nnx.List(convs)
        self.feature_dim = 4 * width
        self.stage_dims = tuple(sizes[1:])
        self.dense = nnx.Linear(
            side * side * sizes[-1],
            self.feature_dim,
            use_bias=False,
            dtype=settings.compute_dtype,
            param_dtype=settings.param_dtype,
            kernel_init=choose("encoder.kernel_init", kernel_init, KERNEL_INITS),
            rngs=rngs,
        )
        self.norm = settings.norm(self.feature_dim)

    def __call__(self, x: Float[Array, "b h w c"], train: bool, views: int = 1) -> Features:
        """Encodes images.

        Args:
          x: images [V * B, image_size, image_size, channels].
          train: normalise by the batch and move BatchNorm's running statistics.
          views: V, how many views of the same images are stacked in x.

        Returns:
          The three convolutions' maps, and the dense layer's output as `pooled`.

        Raises:
          UserError: if x is not of that shape.
        """
        check_square(x, self.image_size, self.channels)
        x = x.astype(self.compute_dtype)
        maps = []
        for conv in self.convs:
            x = jax.nn.relu(conv(x, train, views))
            maps.append(at_least_float32(x))
        x = self.dense(x.reshape(x.shape[0], -1))
        pooled = at_least_float32(jax.nn.relu(self.norm(x, train, views)))
        return Features(stages=tuple(maps), pooled=pooled)
