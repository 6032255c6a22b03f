"""Corruptions of a data set by name: patch shuffling, gamma, grayscale, three of ImageNet-C.

Images are ``[..., H, W, C]`` with any number of channels, NumPy or JAX arrays, uint8 in [0, 255] or
float in [0, 1]; what comes out has the shape, the dtype and the kind of array of what went in. On
JAX arrays everything but `jpeg` works under ``jit`` and ``vmap`` and keeps a sharded batch sharded.

Nothing here holds a seed: what is random is drawn by `Corruption.draw` from raw 64-bit words, or
handed over by the caller, so that the same draws give the same image on the host and on a device.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Array

from jaxssl.corruptions.arrays import AnyArray, require_positive
from jaxssl.corruptions.draws import Words, draw_permutation, draw_uniforms
from jaxssl.corruptions.imagenet_c import CONSTANTS, Severities, defocus_blur, jpeg, shot_noise
from jaxssl.corruptions.shuffles import global_shuffle, local_shuffle, patch_size
from jaxssl.corruptions.tones import gamma, grayscale

SomeArray = TypeVar("SomeArray", Array, np.ndarray)


@dataclass(frozen=True)
class Corruption:
    """What is done to every image of a data set.

    Attributes:
      apply: from images [..., H, W, C] and what was drawn to corrupted images, shape, dtype and
        kind of array kept.
      drawn: "nothing"; "once", one draw for all images of all splits; "image", one for each image;
        "pixel", a number for each value of each image, which a device may draw for itself.
      draw: from raw words and the shape [H, W, C] of an image to what is random, as NumPy array, or
        to None if nothing is; ValueError if images of this shape cannot be corrupted so.
      on_device: whether it takes JAX arrays.
    """

    apply: Callable[[Any, Any], Any]
    drawn: Literal["nothing", "once", "image", "pixel"] = "nothing"
    draw: Callable[[Words, tuple[int, ...]], np.ndarray | None] = lambda words, image_shape: None
    on_device: bool = True

    def __call__(self, images: SomeArray, drawn: AnyArray | None) -> SomeArray:
        """The corrupted images.

        Args:
          images: [..., H, W, C], uint8 in [0, 255] or float in [0, 1].
          drawn: what `draw` gave: one draw, or one an image along the leading axes of ``images``;
            None if nothing is drawn.

        Raises:
          ValueError: if the images do not suit the corruption or ``drawn`` the images.
        """
        if drawn is None and self.drawn != "nothing":
            raise ValueError("this corruption is random: give it what its draw() returns.")
        return self.apply(images, drawn)


def _severity(settings: Any) -> tuple[Severities, int]:
    """The constants that the settings name and where in them their severity is."""
    if settings.constants not in CONSTANTS:
        raise ValueError(
            f"constants={settings.constants!r} is unknown: choose {' or '.join(CONSTANTS)}."
        )
    if settings.severity not in range(1, 6):
        raise ValueError(f"severity={settings.severity} is out of range: choose 1, 2, 3, 4 or 5.")
    return CONSTANTS[settings.constants], settings.severity - 1


def _build_none(settings: Any) -> Corruption:
    return Corruption(lambda images, drawn: images)


def _build_shuffle(
    shuffle: Callable[..., Any], length: Callable[[tuple[int, ...], int], int], settings: Any
) -> Corruption:
    patches = settings.patches
    if patches < 1:
        raise ValueError(f"patches={patches} cuts no image: choose 1 or more.")
    return Corruption(
        lambda images, sigma: shuffle(images, sigma, patches),
        "image" if settings.per_image else "once",
        lambda words, image_shape: draw_permutation(words, length(image_shape, patches)),
    )


def _build_gamma(settings: Any) -> Corruption:
    exponent = settings.exponent
    require_positive("exponent", exponent)
    return Corruption(lambda images, drawn: gamma(images, exponent))


def _build_grayscale(settings: Any) -> Corruption:
    return Corruption(lambda images, drawn: grayscale(images))


def _build_shot_noise(settings: Any) -> Corruption:
    constants, i = _severity(settings)
    photons = constants.shot_noise[i]
    return Corruption(
        lambda images, uniforms: shot_noise(images, uniforms, photons), "pixel", draw_uniforms
    )


def _build_defocus_blur(settings: Any) -> Corruption:
    constants, i = _severity(settings)
    radius, alias = constants.defocus_blur[i]
    return Corruption(lambda images, drawn: defocus_blur(images, radius, alias))


def _build_jpeg(settings: Any) -> Corruption:
    constants, i = _severity(settings)
    quality = constants.jpeg[i]
    return Corruption(lambda images, drawn: jpeg(images, quality), on_device=False)


# Each reads what it needs of a config's `corruption` group: patches, per_image, exponent, severity
# (1 to 5), constants ("cifar" or "imagenet"); ValueError if a value is out of range.
CORRUPTIONS: dict[str, Callable[[Any], Corruption]] = {
    "none": _build_none,
    "global_shuffle": functools.partial(_build_shuffle, global_shuffle, lambda shape, n: n**2),
    "local_shuffle": functools.partial(
        _build_shuffle, local_shuffle, lambda shape, n: math.prod(patch_size(shape, n))
    ),
    "gamma": _build_gamma,
    "grayscale": _build_grayscale,
    "shot_noise": _build_shot_noise,
    "defocus_blur": _build_defocus_blur,
    "jpeg": _build_jpeg,
}
