"""ResNet v1, depths 18, 34 and 50, with the details in which published recipes differ.

He et al., arXiv:1512.03385; SimCLR's variant arXiv:2002.05709; torchvision's as used by MoCo.
Images are [B, H, W, C]; the values' range is the caller's choice.
"""

from typing import NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxssl.errors import UserError, choose
from jaxssl.models.encoder import Features
from jaxssl.models.layers import ConvNorm, LayerSettings
from jaxssl.models.norm import at_least_float32


class Stem(NamedTuple):
    """The first layer: a convolution, then perhaps a 3x3 max-pooling of stride 2."""

    kernel_size: int
    stride: int
    pool_padding: tuple[tuple[int, int], tuple[int, int]] | str | None  # None: no pooling


STEMS = {
    "cifar": Stem(3, 1, None),
    "imagenet": Stem(7, 2, ((1, 1), (1, 1))),  # torchvision's pooling
    "imagenet_same_pool": Stem(7, 2, "SAME"),  # SimCLR's: pads below and to the right only
}

SHORTCUTS = {
    # SimCLR: the first block of every stage projects, the first stage of ResNet-18 included.
    "projection_always": lambda first_of_stage, changes: first_of_stage,
    # torchvision: only where the shape changes.
    "projection_on_change": lambda first_of_stage, changes: changes,
}

# depth: blocks in each stage, whether they are bottlenecks
LAYOUTS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
}

BOTTLENECK_EXPANSION = 4


class ResidualBlock(nnx.Module):
    """relu(branch(x) + shortcut(x)); the stride is on the branch's 3x3 convolution."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        bottleneck: bool,
        project: bool,
        zero_init_residual: bool,
        kernel_init: str,
        settings: LayerSettings,
        rngs: nnx.Rngs,
    ):
        """Makes the block.

        Args:
          in_channels: channels of the input.
          channels: channels of the 3x3 convolutions; a bottleneck's output has four times as many.
          stride: step in pixels.
          bottleneck: 1x1, 3x3, 1x1 convolutions in place of two 3x3.
          project: shortcut by a 1x1 convolution and BatchNorm in place of the identity.
          zero_init_residual: start the gamma of the branch's last BatchNorm at 0.
          kernel_init: a key of `KERNEL_INITS`.
          settings: what all layers share.
          rngs: source of the initial kernels.
        """
        self.out_channels = channels * (BOTTLENECK_EXPANSION if bottleneck else 1)

        def layer(
            inputs: int, outputs: int, kernel_size: int, stride: int, zero_scale: bool = False
        ) -> ConvNorm:
            return ConvNorm(
                inputs,
                outputs,
                kernel_size=kernel_size,
                stride=stride,
                padding=kernel_size // 2,
                kernel_init=kernel_init,
                settings=settings,
                rngs=rngs,
                zero_scale=zero_scale,
            )

        if bottleneck:
            branch = [
                layer(in_channels, channels, 1, 1),
                layer(channels, channels, 3, stride),
                layer(channels, self.out_channels, 1, 1, zero_init_residual),
            ]
        else:
            branch = [
                layer(in_channels, channels, 3, stride),
                layer(channels, channels, 3, 1, zero_init_residual),
            ]
        self.branch = nnx.List(branch)
        self.shortcut = layer(in_channels, self.out_channels, 1, stride) if project else None

    def __call__(
        self, x: Float[Array, "b h w c"], train: bool, views: int = 1
    ) -> Float[Array, "b new_h new_w new_c"]:
        """The block's output, in x's dtype."""
        y = x
        for layer in self.branch[:-1]:
            y = jax.nn.relu(layer(y, train, views))
        y = self.branch[-1](y, train, views)
        shortcut = x if self.shortcut is None else self.shortcut(x, train, views)
        return jax.nn.relu(y + shortcut)


def _stages(
    depth: int,
    width: int,
    *,
    shortcut: str,
    zero_init_residual: bool,
    kernel_init: str,
    settings: LayerSettings,
    rngs: nnx.Rngs,
) -> nnx.List:
    """The four stages' blocks; arguments as of `ResNet`."""
    projects = choose("encoder.shortcut", shortcut, SHORTCUTS)
    sizes, bottleneck = LAYOUTS[depth]
    stages, inputs = [], width
    for stage, size in enumerate(sizes):
        blocks = []
        for position in range(size):
            stride = 2 if stage > 0 and position == 0 else 1
            outputs = width * 2**stage * (BOTTLENECK_EXPANSION if bottleneck else 1)
            block = ResidualBlock(
                inputs,
                width * 2**stage,
                stride=stride,
                bottleneck=bottleneck,
                project=projects(position == 0, stride > 1 or inputs != outputs),
                zero_init_residual=zero_init_residual,
                kernel_init=kernel_init,
                settings=settings,
                rngs=rngs,
            )
            blocks.append(block)
            inputs = outputs
        stages.append(nnx.List(blocks))
    return nnx.List(stages)


class ResNet(nnx.Module):
    """A ResNet encoder.

    Attributes:
      channels: channels of the images.
      feature_dim: size of `Features.pooled`: 8 * width, a bottleneck's 32 * width.
      stage_dims: channels of the four stages' maps.
      dtype: name of the compute dtype, a key of `COMPUTE_DTYPES`.
    """

    def __init__(
        self,
        depth: int,
        channels: int,
        *,
        width: int,
        stem: str,
        stem_padding: int | str,
        shortcut: str,
        zero_init_residual: bool,
        kernel_init: str,
        settings: LayerSettings,
        rngs: nnx.Rngs,
    ):
        """Makes the network.

        Args:
          depth: 18, 34 or 50.
          channels: channels of the images, any number >= 1.
          width: channels of the first stage; the papers' "1x" is 64 and SimCLR's "2x" is 128, all
            layers twice as wide. (torchvision's "wide" ResNets widen the 3x3 convolutions alone.)
          stem: a key of `STEMS`.
          stem_padding: zero pixels on each side of the image before the stem's convolution, or
            "same" for half the kernel. (solo-learn's CIFAR stem has 2: maps of 34x34.)
          shortcut: a key of `SHORTCUTS`.
          zero_init_residual: start the last gamma of every residual branch at 0, so that a block
            is at first its shortcut (SimCLR, SimSiam).
          kernel_init: a key of `KERNEL_INITS`.
          settings: BatchNorm and dtype.
          rngs: source of the initial kernels.

        Raises:
          UserError: if an argument names no known option.
          ValueError: if there is no such depth.
        """
        if depth not in LAYOUTS:
            raise ValueError(f"ResNet depth is {depth}; choose one of {sorted(LAYOUTS)}.")
        if width < 1 or channels < 1:
            raise UserError(
                f"--config.encoder.width={width} and the views' channels, {channels}, must be at "
                "least 1."
            )
        self.channels = channels
        self.dtype, self.compute_dtype = settings.dtype, settings.compute_dtype
        first = choose("encoder.stem", stem, STEMS)
        self.pool_padding = first.pool_padding
        self.stem = ConvNorm(
            channels,
            width,
            kernel_size=first.kernel_size,
            stride=first.stride,
            padding=first.kernel_size // 2 if stem_padding == "same" else int(stem_padding),
            kernel_init=kernel_init,
            settings=settings,
            rngs=rngs,
        )
        self.stages = _stages(
            depth,
            width,
            shortcut=shortcut,
            zero_init_residual=zero_init_residual,
            kernel_init=kernel_init,
            settings=settings,
            rngs=rngs,
        )
        self.stage_dims = tuple(stage[-1].out_channels for stage in self.stages)
        self.feature_dim = self.stage_dims[-1]

    def __call__(self, x: Float[Array, "b h w c"], train: bool, views: int = 1) -> Features:
        """Encodes images.

        Args:
          x: images [V * B, H, W, channels].
          train: normalise by the batch and move BatchNorm's running statistics.
          views: V, how many views of the same images are stacked in x.

        Returns:
          The four stages' maps and their last one's mean over space.

        Raises:
          UserError: if x is not [B, H, W, channels].
        """
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise UserError(
                f"the encoder was built for images [B, H, W, {self.channels}], got {x.shape}: "
                "build it with the channels of the views."
            )
        x = jax.nn.relu(self.stem(x.astype(self.compute_dtype), train, views))
        if self.pool_padding is not None:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=self.pool_padding)
        maps = []
        for stage in self.stages:
            for block in stage:
                x = block(x, train, views)
            maps.append(at_least_float32(x))
        return Features(stages=tuple(maps), pooled=maps[-1].mean((1, 2)))
