"""What every encoder is: a map from images to feature maps and one vector an image."""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int


class Features(NamedTuple):
    """What an encoder gives for a batch, in at least float32.

    Attributes:
      stages: one map [B, h, w, D] a stage, the last stage last.
      pooled: one vector [B, feature_dim] an image.
    """

    stages: tuple[Float[Array, "b _h _w _d"], ...]
    pooled: Float[Array, "b d"]


@runtime_checkable
class Encoder(Protocol):
    """An ``nnx.Module`` that encodes images; what methods and heads know of the network below.

    Attributes:
      feature_dim: size of `Features.pooled`.
      stage_dims: channels of each map of `Features.stages`.
      dtype: name of the compute dtype, a key of `jaxssl.models.layers.COMPUTE_DTYPES`.
    """

    feature_dim: int
    stage_dims: tuple[int, ...]
    dtype: str

    def __call__(self, x: Float[Array, "b h w c"], train: bool, views: int = 1) -> Features:
        """Encodes images.

        Args:
          x: images [V * B, H, W, C]: V views of B images, all images of view 1 first.
          train: normalise by the batch and move running statistics.
          views: V; BatchNorm groups cut the images, all views of one stay together.
        """
        ...


@runtime_checkable
class PatchEncoder(Encoder, Protocol):
    """An encoder that takes an image patch by patch and can do without some of them.

    Attributes:
      patch: side of a patch, pixels.
      prefix: tokens before those of the patches, such as a class token's.
    """

    patch: int
    prefix: int

    def grid_of(self, x: Float[Array, "b h w c"]) -> tuple[int, int]:
        """How many patches images have in a column and in a row."""
        ...

    def tokens(
        self, x: Float[Array, "b h w c"], keep: Int[Array, "b m"] | None, train: bool
    ) -> Float[Array, "b n d"]:
        """Tokens [B, prefix + M, feature_dim] of M patches, encoded as if there were no others.

        Args:
          x: images [B, H, W, C].
          keep: numbers of the patches, row by row from 0; None: all.
          train: as of `__call__`.
        """
        ...


def cells(stage: Float[Array, "b h w d"]) -> Float[Array, "b p d"]:
    """A map with its positions in one axis, row by row."""
    return stage.reshape(stage.shape[0], -1, stage.shape[-1])
