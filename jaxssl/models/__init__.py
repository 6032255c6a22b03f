"""Encoders and heads, and the table that a config's `encoder.name` is looked up in."""

from collections.abc import Callable

from flax import nnx
from ml_collections import ConfigDict

from jaxssl.extensions import look_up
from jaxssl.models.convnet import ConvNet
from jaxssl.models.encoder import Encoder, Features, cells
from jaxssl.models.heads import ProjectionHead, build_head
from jaxssl.models.layers import LayerSettings
from jaxssl.models.norm import BatchNorm
from jaxssl.models.resnet import ResNet
from jaxssl.ranges import AT_LEAST_ONE, MOMENTUM, POSITIVE, check_ranges

__all__ = [
    "ENCODERS",
    "BatchNorm",
    "ConvNet",
    "Encoder",
    "Features",
    "LayerSettings",
    "ProjectionHead",
    "ResNet",
    "build_encoder",
    "build_head",
    "cells",
]


# What every encoder reads from its group, besides names.
SETTINGS = {
    "width": AT_LEAST_ONE,
    "bn_momentum": MOMENTUM,
    "bn_epsilon": POSITIVE,
    "bn_groups": AT_LEAST_ONE,
}


def _settings(config: ConfigDict) -> LayerSettings:
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


ENCODERS: dict[str, Callable[[ConfigDict, int, nnx.Rngs], Encoder]] = {
    "resnet18": _resnet(18),
    "resnet34": _resnet(34),
    "resnet50": _resnet(50),
    "convn": _convn,
}


def build_encoder(config: ConfigDict, channels: int, rngs: nnx.Rngs) -> Encoder:
    """The encoder a config describes.

    Args:
      config: `name`, a key of `ENCODERS`, or ``package.module:Name`` of a class or function that
        takes the same arguments; theirs: `width`, `kernel_init`, `bn_momentum`, `bn_epsilon`,
        `bn_groups`, `dtype`; a ResNet's `stem`, `stem_padding`, `shortcut`,
        `zero_init_residual`; convn's `image_size`, `padding`. Meanings as in the classes.
      channels: channels of the views.
      rngs: source of the initial weights.

    Raises:
      UserError: if a field names no known option or is out of range.
    """
    build = look_up(
        "encoder.name", config.name, ENCODERS, fits=callable, form="a class or a function"
    )
    if config.name in ENCODERS:
        check_ranges("encoder", config, SETTINGS)
    return build(config, channels, rngs)
