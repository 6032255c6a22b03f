"""Decoders: from a latent vector or from the tokens of some patches back to an image."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxssl.errors import UserError, choose
from jaxssl.models.encoder import Encoder
from jaxssl.models.layers import COMPUTE_DTYPES, KERNEL_INITS, LayerSettings, param_dtype
from jaxssl.models.norm import at_least_float32
from jaxssl.models.transformer import TRANSFORMER_INITS, TransformerBlock, layer_norm
from jaxssl.models.vit import sincos_positions


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


MASK_TOKEN_STD = 0.02  # MAE's


class PatchDecoder(nnx.Module):
    """MAE's decoder (arXiv:2111.06377): a small Transformer over the tokens of all patches.

    Those that the encoder did not see are one learned token; positions are fixed sines and cosines.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        prefix: int,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        kernel_init: str,
        dtype: str,
        rngs: nnx.Rngs,
        group: str = "method.decoder",
    ):
        """Makes the network.

        Args:
          in_dim: size of the encoder's tokens.
          out_dim: values of a patch.
          prefix: tokens before those of the patches, which are decoded along and then dropped.
          width: size of a token here, a multiple of 4; the paper's is 512.
          depth: blocks; the paper's 8.
          heads: of each attention, a divisor of `width`; the paper's 16.
          mlp_ratio: size of a block's hidden layer over `width`.
          kernel_init: a key of `TRANSFORMER_INITS`.
          dtype: a key of `COMPUTE_DTYPES`.
          rngs: source of the initial weights.
          group: of the config, for messages.

        Raises:
          UserError: if an argument names no known option or does not go with another.
        """
        if width % 4:
            raise UserError(
                f"--config.{group}.width={width} must be a multiple of 4, for its fixed positions."
            )
        self.width, self.prefix = width, prefix
        init = choose(f"{group}.kernel_init", kernel_init, TRANSFORMER_INITS).dense

        def dense(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(
                inputs,
                outputs,
                dtype=choose("encoder.dtype", dtype, COMPUTE_DTYPES),
                param_dtype=param_dtype(dtype),
                kernel_init=init,
                rngs=rngs,
            )

        self.embedding = dense(in_dim, width)
        draw = jax.nn.initializers.normal(MASK_TOKEN_STD)
        self.mask_token = nnx.Param(draw(rngs.params(), (1, 1, width), param_dtype(dtype)))
        self.blocks = nnx.List(
            [
                TransformerBlock(
                    width,
                    heads,
                    mlp_ratio,
                    kernel_init=kernel_init,
                    dtype=dtype,
                    rngs=rngs,
                    group=group,
                )
                for _ in range(depth)
            ]
        )
        self.norm = layer_norm(width, dtype, rngs)
        self.output = dense(width, out_dim)

    def __call__(
        self,
        tokens: Float[Array, "b n d"],
        restore: Int[Array, "b p"],
        grid: tuple[int, int],
    ) -> Float[Array, "b p k"]:
        """Predicts the values of every patch.

        Args:
          tokens: the encoder's [B, prefix + M, in_dim].
          restore: for each of the P patches, row by row, its place among the M that were seen, or
            M and more.
          grid: patches in a column and in a row.

        Returns:
          [B, P, out_dim], in at least float32.
        """
        x = at_least_float32(self.embedding(tokens))
        first, seen = jnp.split(x, [self.prefix], axis=1)
        batch, patches = restore.shape
        hidden = (batch, patches - seen.shape[1], self.width)
        shuffled = jnp.concatenate([seen, jnp.broadcast_to(self.mask_token[...], hidden)], axis=1)
        whole = jnp.take_along_axis(shuffled, restore[..., None], axis=1)
        whole += jnp.asarray(sincos_positions(grid, self.width)[None], whole.dtype)
        x = jnp.concatenate([first, whole], axis=1)
        for block in self.blocks:
            x = block(x)
        return at_least_float32(self.output(self.norm(x)[:, self.prefix :]))
