"""Vision Transformers (arXiv:2010.11929), with the details in which self-supervised ones differ.

timm's layout: a linear embedding of patches, positions, pre-norm blocks, a last LayerNorm. Images
are [B, H, W, C]; the values' range is the caller's choice. Patches and maps are row-major.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxssl.errors import UserError, choose
from jaxssl.models.encoder import Features
from jaxssl.models.layers import COMPUTE_DTYPES, param_dtype
from jaxssl.models.norm import at_least_float32
from jaxssl.models.transformer import TRANSFORMER_INITS, TransformerBlock, layer_norm

Grid = tuple[int, int]  # patches in a column and in a row

POSITION_STD = 0.02  # timm, DINO
CLASS_TOKEN_STD = 1e-6  # timm, MoCo-v3 (DINO and MAE: .02)
LONGEST_PERIOD = 10_000.0  # of the sines, over 2 pi patches

POSITIONS = ("learned", "sincos")
POOLS = ("class", "mean")


class Frozen(nnx.Variable):
    """A weight that stays as it was drawn: no gradient, no decay, and no part in averages."""


def patches_of(images: Float[Array, "b h w c"], patch: int) -> Float[Array, "b p k k c"]:
    """The patches of images, row by row.

    Args:
      images: [B, H, W, C].
      patch: side k of a patch in pixels, a divisor of H and of W.

    Raises:
      ValueError: if it is none.
    """
    b, height, width, c = images.shape
    if height % patch or width % patch:
        raise ValueError(f"Images of {height}x{width} pixels do not split into patches of {patch}.")
    rows, columns = height // patch, width // patch
    cut = images.reshape(b, rows, patch, columns, patch, c)
    return cut.swapaxes(2, 3).reshape(b, rows * columns, patch, patch, c)


def sincos_positions(grid: Grid, dim: int, native: Grid | None = None) -> np.ndarray:
    """Fixed positions [P, dim] of a grid: sines and cosines of the row, then of the column.

    MoCo-v3's (arXiv:2104.02057); MAE's has the column first. A quarter of the channels each, of
    wavelengths from 2 pi patches up to 10,000 times as much.

    Args:
      grid: rows and columns.
      dim: a multiple of 4.
      native: the grid whose patches are one apart; that of an image of other pixels covers the same
        range in other steps. None: `grid` itself.

    Raises:
      ValueError: if `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(
            f"Sines and cosines of two coordinates need dim={dim} to be divisible by 4."
        )
    native = grid if native is None else native
    omega = LONGEST_PERIOD ** -(np.arange(dim // 4) / (dim // 4))
    # As images are resized: the centres of the first and last patches lie half a step inside.
    axes = [(np.arange(n) + 0.5) * full / n - 0.5 for n, full in zip(grid, native, strict=True)]
    angles = [p.reshape(-1, 1) * omega for p in np.meshgrid(*axes, indexing="ij")]
    return np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)


def resized_positions(
    positions: Float[Array, "1 p d"], native: Grid, grid: Grid
) -> Float[Array, "1 q d"]:
    """Positions of one grid interpolated for another: bicubic, as timm has it."""
    if grid == native:
        return positions
    dim = positions.shape[-1]
    # Keys' cubic with a = -1/2, widened where the grid shrinks: PyTorch's antialiased bicubic.
    resized = jax.image.resize(positions.reshape(1, *native, dim), (1, *grid, dim), "cubic")
    return resized.reshape(1, -1, dim)


class ViT(nnx.Module):
    """A vision Transformer.

    Attributes:
      channels: channels of the images.
      patch: side of a patch in pixels.
      prefix: tokens before those of the patches: 1, the class token, or 0.
      feature_dim: size of `Features.pooled`, the width.
      stage_dims: channels of the maps, the width each.
      dtype: name of the compute dtype, a key of `COMPUTE_DTYPES`.
    """

    def __init__(
        self,
        channels: int,
        *,
        image_size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        positions: str,
        pool: str,
        stages: tuple[int, ...],
        frozen_patches: bool,
        kernel_init: str,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        """Makes the network.

        Args:
          channels: channels of the images.
          image_size: side in pixels of the square images whose patches the positions are for, a
            multiple of `patch`; for others they are interpolated.
          patch: side of a patch in pixels.
          width: size of a token. Published: tiny 192, small 384, base 768.
          depth: blocks; published: 12.
          heads: of each attention, a divisor of `width`. Published: 3, 6, 12 (MoCo-v3's small: 12).
          mlp_ratio: size of a block's hidden layer over `width`; published: 4.
          positions: "learned", one vector a token, the class token's too; or "sincos", fixed, none
            for the class token.
          pool: what `Features.pooled` is: "class", a class token's output; "mean", the mean over
            the patches, and no class token.
          stages: numbers of the blocks, from 1, whose maps are wanted, in order; the last one is
            `depth`.
          frozen_patches: keep the embedding of patches as it was drawn (MoCo-v3).
          kernel_init: a key of `TRANSFORMER_INITS`.
          dtype: a key of `COMPUTE_DTYPES`; parameters are float32 at least.
          rngs: source of the initial weights.

        Raises:
          UserError: if an argument names no known option or does not go with another.
        """
        _check(image_size, patch, width, depth, positions, pool, stages)
        self.channels, self.patch, self.feature_dim, self.dtype = channels, patch, width, dtype
        self.native = (image_size // patch, image_size // patch)
        self.stages, self.prefix = tuple(stages), int(pool == "class")
        self.stage_dims = (width,) * len(self.stages)
        init = choose("encoder.kernel_init", kernel_init, TRANSFORMER_INITS)
        wide = param_dtype(dtype)
        self.embedding = nnx.LinearGeneral(
            (patch, patch, channels),
            width,
            axis=(-3, -2, -1),
            dtype=choose("encoder.dtype", dtype, COMPUTE_DTYPES),
            param_dtype=wide,
            kernel_init=init.patch.kernel,
            bias_init=init.patch.bias(patch * patch * channels),
            rngs=rngs,
        )
        if frozen_patches:
            self.embedding.kernel = Frozen(self.embedding.kernel[...])
            self.embedding.bias = Frozen(self.embedding.bias[...])

        def drawn(std: float, tokens: int) -> nnx.Param:
            return nnx.Param(std * jax.random.normal(rngs.params(), (1, tokens, width), wide))

        self.class_token = drawn(CLASS_TOKEN_STD, 1) if self.prefix else None
        count = self.prefix + self.native[0] * self.native[1]
        self.positions = drawn(POSITION_STD, count) if positions == "learned" else None
        self.blocks = nnx.List(
            [
                TransformerBlock(
                    width, heads, mlp_ratio, kernel_init=kernel_init, dtype=dtype, rngs=rngs
                )
                for _ in range(depth)
            ]
        )
        self.norm = layer_norm(width, dtype, rngs)

    def __call__(self, x: Float[Array, "b h w c"], train: bool, views: int = 1) -> Features:
        """Encodes images.

        Args:
          x: images [V * B, H, W, channels] whose sides are multiples of `patch`.
          train: no matter here, as are `views`: an image is encoded by itself.
          views: V, how many views of the same images are stacked in x.

        Returns:
          One map [V * B, H / patch, W / patch, width] for each block asked for, all through the
          last LayerNorm (as DINO reads them), and `pooled`.

        Raises:
          UserError: if x is not of that shape.
        """
        grid = self.grid_of(x)
        tokens = self._embedded(x, None)
        maps = []
        for number, block in enumerate(self.blocks, 1):
            tokens = block(tokens)
            if number in self.stages:
                normed = self.norm(tokens)
                maps.append(normed[:, self.prefix :].reshape(len(x), *grid, -1))
        pooled = normed[:, 0] if self.prefix else normed.mean(1)
        return Features(stages=tuple(maps), pooled=pooled)

    def tokens(
        self, x: Float[Array, "b h w c"], keep: Int[Array, "b m"] | None, train: bool
    ) -> Float[Array, "b n d"]:
        """Encodes some patches of each image as if there were no others (MAE, arXiv:2111.06377).

        Args:
          x: images [B, H, W, channels] whose sides are multiples of `patch`.
          keep: numbers of the patches, row by row from 0, in any order; None: all.
          train: no matter here.

        Returns:
          The last block's tokens [B, prefix + M, width] through the last LayerNorm, in at least
          float32: the class token first, if there is one, then the patches in the order of `keep`.

        Raises:
          UserError: if x is not of that shape.
        """
        self.grid_of(x)
        tokens = self._embedded(x, keep)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def grid_of(self, x: Float[Array, "b h w c"]) -> Grid:
        """How many patches images have in a column and in a row.

        Raises:
          UserError: if x is not [B, H, W, channels], H and W multiples of `patch`.
        """
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise UserError(
                f"the encoder was built for images [B, H, W, {self.channels}], got {x.shape}: "
                "build it with the channels of the views."
            )
        _, height, width, _ = x.shape
        if height % self.patch or width % self.patch:
            raise UserError(
                f"views of {height}x{width} pixels do not split into patches of "
                f"--config.encoder.patch={self.patch}: choose sizes that are multiples of it."
            )
        return height // self.patch, width // self.patch

    def _embedded(
        self, x: Float[Array, "b h w c"], keep: Int[Array, "b m"] | None
    ) -> Float[Array, "b n d"]:
        patches = patches_of(x, self.patch)
        class_position, positions = self._positions(self.grid_of(x))
        if keep is not None:
            patches = jnp.take_along_axis(patches, keep[:, :, None, None, None], axis=1)
            positions = positions[0][keep]
        tokens = at_least_float32(self.embedding(patches)) + positions
        if self.class_token is None:
            return tokens
        first = self.class_token[...] + class_position
        return jnp.concatenate(
            [jnp.broadcast_to(first, (len(x), *first.shape[1:])), tokens], axis=1
        )

    def _positions(self, grid: Grid) -> tuple[Float[Array, "1 _f d"], Float[Array, "1 p d"]]:
        """Those of the class token, of none, one or all tokens, and those of the patches."""
        if self.positions is None:
            fixed = sincos_positions(grid, self.feature_dim, self.native)
            wide = jnp.asarray(fixed[None], param_dtype(self.dtype))
            return jnp.zeros((1, 1, self.feature_dim), wide.dtype), wide
        own, others = jnp.split(self.positions[...], [self.prefix], axis=1)
        return own, resized_positions(others, self.native, grid)


def _check(
    image_size: int,
    patch: int,
    width: int,
    depth: int,
    positions: str,
    pool: str,
    stages: tuple[int, ...],
) -> None:
    choose("encoder.positions", positions, dict.fromkeys(POSITIONS))
    choose("encoder.pool", pool, dict.fromkeys(POOLS))
    if image_size % patch:
        raise UserError(
            f"--config.encoder.patch={patch} does not divide "
            f"--config.encoder.image_size={image_size}: give a divisor."
        )
    if positions == "sincos" and width % 4:
        raise UserError(
            f"--config.encoder.width={width} must be a multiple of 4 for sincos positions: give "
            "one, or --config.encoder.positions=learned."
        )
    wanted = list(stages)
    if wanted != sorted({n for n in wanted if n in range(1, depth + 1)}) or wanted[-1:] != [depth]:
        raise UserError(
            f"--config.encoder.stages={tuple(stages)} must be numbers of blocks in order, of which "
            f"the last is --config.encoder.depth={depth}."
        )
