"""Encoders and heads, and the table that a config's `encoder.name` is looked up in."""

from collections.abc import Callable

from flax import nnx
from ml_collections import ConfigDict

from jaxssl.extensions import look_up
from jaxssl.models.convnet import ConvNet
from jaxssl.models.encoder import Encoder, Features, PatchEncoder, cells
from jaxssl.models.heads import ProjectionHead, build_head
from jaxssl.models.layers import LayerSettings
from jaxssl.models.mlp import MLP
from jaxssl.models.norm import BatchNorm
from jaxssl.models.resnet import ResNet
from jaxssl.models.small_alexnet import SmallAlexNet
from jaxssl.models.vit import ViT
from jaxssl.models.weights import with_weights
from jaxssl.ranges import AT_LEAST_ONE, MOMENTUM, POSITIVE, check_ranges

__all__ = [
    "ENCODERS",
    "MLP",
    "BatchNorm",
    "ConvNet",
    "Encoder",
    "Features",
    "LayerSettings",
    "PatchEncoder",
    "ProjectionHead",
    "ResNet",
    "SmallAlexNet",
    "ViT",
    "build_encoder",
    "build_head",
    "cells",
    "with_weights",
]


# What encoders read from their group, besides names and sizes of images.
CONV_SETTINGS = {
    "width": AT_LEAST_ONE,
    "bn_momentum": MOMENTUM,
    "bn_epsilon": POSITIVE,
    "bn_groups": AT_LEAST_ONE,
}
VIT_SETTINGS = {
    "image_size": AT_LEAST_ONE,
    "patch": AT_LEAST_ONE,
    "width": AT_LEAST_ONE,
    "depth": AT_LEAST_ONE,
    "heads": AT_LEAST_ONE,
    "mlp_ratio": POSITIVE,
}


def _settings(config: ConfigDict) -> LayerSettings:
    check_ranges("encoder", config, CONV_SETTINGS)
    return LayerSettings(
        bn_momentum=config.bn_momentum,
        bn_epsilon=config.bn_epsilon,
        bn_groups=config.bn_groups,
        dtype=config.dtype,
    )


def _resnet(depth: int) -> Callable[[ConfigDict, int, nnx.Rngs], ResNet]:
    def build(config: ConfigDict, channels: int, rngs: nnx.Rngs) -> ResNet:
        return ResNet(
            depth,
            channels,
            width=config.width,
            stem=config.stem,
            stem_padding=config.stem_padding,
            shortcut=config.shortcut,
            zero_init_residual=config.zero_init_residual,
            kernel_init=config.kernel_init,
            settings=_settings(config),
            rngs=rngs,
        )

    return build


def _convn(config: ConfigDict, channels: int, rngs: nnx.Rngs) -> ConvNet:
    return ConvNet(
        channels,
        config.image_size,
        width=config.width,
        padding=config.padding,
        kernel_init=config.kernel_init,
        settings=_settings(config),
        rngs=rngs,
    )


def _small_alexnet(config: ConfigDict, channels: int, rngs: nnx.Rngs) -> SmallAlexNet:
    check_ranges("encoder", config, {"dense_dim": AT_LEAST_ONE})
    return SmallAlexNet(
        channels,
        config.image_size,
        width=config.width,
        dense_dim=config.dense_dim,
        kernel_init=config.kernel_init,
        settings=_settings(config),
        rngs=rngs,
    )


def _mlp(config: ConfigDict, channels: int, rngs: nnx.Rngs) -> MLP:
    check_ranges("encoder", config, {"depth": AT_LEAST_ONE})
    return MLP(
        channels,
        width=config.width,
        depth=config.depth,
        kernel_init=config.kernel_init,
        settings=_settings(config),
        rngs=rngs,
    )


def _vit(config: ConfigDict, channels: int, rngs: nnx.Rngs) -> ViT:
    check_ranges("encoder", config, VIT_SETTINGS)
    return ViT(
        channels,
        image_size=config.image_size,
        patch=config.patch,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        positions=config.positions,
        pool=config.pool,
        stages=config.stages,
        frozen_patches=config.frozen_patches,
        kernel_init=config.kernel_init,
        dtype=config.dtype,
        rngs=rngs,
    )


ENCODERS: dict[str, Callable[[ConfigDict, int, nnx.Rngs], Encoder]] = {
    "resnet18": _resnet(18),
    "resnet34": _resnet(34),
    "resnet50": _resnet(50),
    "convn": _convn,
    "small_alexnet": _small_alexnet,
    "mlp": _mlp,
    "vit": _vit,
}


def build_encoder(config: ConfigDict, channels: int, rngs: nnx.Rngs) -> Encoder:
    """The encoder a config describes.

    Args:
      config: `name`, a key of `ENCODERS`, or ``package.module:Name`` of a class or function that
        takes the same arguments; theirs: `width`, `kernel_init`, `dtype`; of networks with
        BatchNorm `bn_momentum`, `bn_epsilon`, `bn_groups`; a ResNet's `stem`, `stem_padding`,
        `shortcut`, `zero_init_residual`; convn's `image_size`, `padding`; small_alexnet's
        `image_size`, `dense_dim`; mlp's `depth`; a ViT's `image_size`, `patch`, `depth`, `heads`,
        `mlp_ratio`, `positions`, `pool`, `stages`, `frozen_patches`. Meanings as in the classes.
      channels: channels of the views.
      rngs: source of the initial weights.

    Raises:
      UserError: if a field names no known option or is out of range.
    """
    build = look_up(
        "encoder.name", config.name, ENCODERS, fits=callable, form="a class or a function"
    )
    return build(config, channels, rngs)
