"""Corruptions of a pixel's own value, computed on the 256 levels of a stored image."""

import numpy as np

from jaxssl.corruptions.arrays import (
    Images,
    Real,
    look_up,
    namespace,
    nearest_levels,
    require_images,
    require_positive,
)


def gamma(images: Images, exponent: Real) -> Images:
    """``x ** exponent``, rounded to the 256 levels of a stored image.

    Rounding is the corruption: the power alone could be undone. A float image is taken at the
    nearest of its 256 levels and comes out on them. Computed through a table, so that NumPy and JAX
    agree to the bit.

    Args:
      images: [..., H, W, C].
      exponent: > 0; below 1 it brightens.

    Raises:
      ValueError: if the exponent is not positive and finite.
    """
    require_images(images)
    require_positive("exponent", exponent)
    levels = np.rint(255 * (np.arange(256) / 255) ** exponent)
    return look_up(levels, nearest_levels(images), images.dtype)


def grayscale(images: Images) -> Images:
    """Takes colour away: every channel becomes the luma of ITU-R 601, as Pillow rounds it.

    A float image is taken at the nearest of its 256 levels. In integers, so that NumPy and JAX
    agree to the bit.

    Args:
      images: [..., H, W, 3].

    Raises:
      ValueError: if the images have no three channels.
    """
    require_images(images)
    if images.shape[-1] != 3:
        raise ValueError(
            f"images of {images.shape[-1]} channels have no colour to take away: grayscale is for "
            "images of 3."
        )
    xp = namespace(images)
    red, green, blue = (nearest_levels(images)[..., c].astype(np.int32) for c in range(3))
    luma = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    levels = xp.broadcast_to(luma[..., None], images.shape)
    return look_up(np.arange(256.0), levels, images.dtype)
