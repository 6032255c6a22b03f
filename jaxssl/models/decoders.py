"""Decoders: from a latent vector back to an image."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxssl.errors import choose
from jaxssl.models.encoder import Encoder
from jaxssl.models.layers import KERNEL_INITS, LayerSettings
from jaxssl.models.norm import at_least_float32


class MirroredDecoder(nnx.Module):
    """An encoder's maps in reverse order: a dense layer to the last, transposed convolutions up.

    BatchNorm and ReLU follow every layer but the last, which gives the image's logits.

    Attributes:
      first_map: shape [h, w, D] of what the dense layer makes.
    """

    def __init__(
        self,
        latent_dim: int,
        maps: tuple[tuple[int, int, int], ...],
        image: tuple[int, int, int],
        *,
        kernel_init: str,
        settings: LayerSettings,
        rngs: nnx.Rngs,
        group: str = "method.decoder",
    ):
        """Makes the network.

        Args:
          latent_dim: size of the latent vector.
          maps: shapes [h, w, D] of the encoder's maps, see `stage_shapes`.
          image: shape [H, W, C] of the image.
          kernel_init: a key of `KERNEL_INITS`.
          settings: BatchNorm and dtype.
          rngs: source of the initial kernels.
          group: of the config, for messages.

        Raises:
          UserError: if `kernel_init` names no known option.
        """
        self.first_map, self.compute_dtype = maps[-1], settings.compute_dtype
        init = choose(f"{group}.kernel_init", kernel_init, KERNEL_INITS)
        height, width, channels = self.first_map
        self.dense = nnx.Linear(
            latent_dim,
            height * width * channels,
            use_bias=False,
            dtype=settings.compute_dtype,
            param_dtype=settings.param_dtype,
            kernel_init=init,
            rngs=rngs,
        )
        upwards = [*reversed(maps), image]
        self.norms = nnx.List([settings.norm(shape[-1]) for shape in upwards[:-1]])
        self.convs = nnx.List(
            [
                _transposed_conv(small, large, large is image, init, settings, rngs)
                for small, large in itertools.pairwise(upwards)
            ]
        )

    def __call__(self, z: Float[Array, "b k"], train: bool) -> Float[Array, "b h w c"]:
        """Decodes latent vectors.

        Args:
          z: [B, latent_dim].
          train: normalise by the batch and move BatchNorm's running statistics.

        Returns:
          Logits of the pixels [B, H, W, C], in at least float32.
        """
        x = self.dense(z.astype(self.compute_dtype)).reshape(len(z), *self.first_map)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = conv(jax.nn.relu(norm(x, train)))
        return at_least_float32(x)


def stage_shapes(encoder: Encoder, image: tuple[int, int, int]) -> tuple[tuple[int, int, int], ...]:
    """Shapes [h, w, D] of an encoder's maps of an image [H, W, C]; computes nothing."""
    graph, state = nnx.split(encoder)
    images = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    features = jax.eval_shape(lambda s, x: nnx.merge(graph, s)(x, train=False), state, images)
    return tuple(stage.shape[1:] for stage in features.stages)


def _transposed_conv(
    small: tuple[int, int, int],
    large: tuple[int, int, int],
    use_bias: bool,
    init: jax.nn.initializers.Initializer,
    settings: LayerSettings,
    rngs: nnx.Rngs,
) -> nnx.ConvTranspose:
    """From a map of one shape to one of another: 3x3, or larger where a step is above 2."""
    strides = [max(round(n / m), 1) for m, n in zip(small[:2], large[:2], strict=True)]
    kernel = [max(2 * stride - 1, 3) for stride in strides]
    padding = []
    for m, n, stride, taps in zip(small[:2], large[:2], strides, kernel, strict=True):
        # What a convolution back, with as few zero pixels as possible, would not have seen.
        surplus = (m - 1) * stride + taps - n
        padding.append((taps - 1 - (surplus - surplus // 2), taps - 1 - surplus // 2))
    return nnx.ConvTranspose(
        small[2],
        large[2],
        tuple(kernel),
        strides=tuple(strides),
        padding=padding,
        use_bias=use_bias,
        dtype=settings.compute_dtype,
        param_dtype=settings.param_dtype,
        kernel_init=init,
        rngs=rngs,
    )
