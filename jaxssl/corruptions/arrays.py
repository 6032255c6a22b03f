"""What all corruptions share: images of either library, their 256 levels, what is refused."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

AnyArray = Array | np.ndarray
Images = UInt8[AnyArray, "*b h w c"] | Float[AnyArray, "*b h w c"]
Real = float | int


def namespace(array: Any) -> Any:
    """`numpy` or `jax.numpy`, whichever the array belongs to."""
    return array.__array_namespace__()


def nearest_levels(images: Any) -> Any:
    """The nearest of the levels 0 to 255, uint8."""
    if images.dtype == np.uint8:
        return images
    xp = namespace(images)
    return xp.rint(xp.clip(images.astype(np.float32), 0, 1) * 255).astype(np.uint8)


def look_up(levels: np.ndarray, index: Any, dtype: Any) -> Any:
    """``levels[index]``, float64 in [0, 255]: cut off for uint8, over 255 for a float ``dtype``."""
    # Divided here and not on the device, whose compiler may multiply by the inverse instead.
    table = levels.astype(dtype) if dtype == np.uint8 else (levels / 255).astype(dtype)
    return namespace(index).take(table, index, axis=0)


def require_images(images: Any) -> None:
    """Refuses what is not [..., H, W, C] of uint8 or float.

    Raises:
      ValueError: for another shape or dtype.
    """
    floating = jnp.issubdtype(images.dtype, jnp.floating)
    if images.ndim < 3 or not (floating or images.dtype == np.uint8):
        raise ValueError(
            f"images of shape {images.shape} and type {images.dtype} cannot be corrupted: they "
            "have to be [..., height, width, channels], uint8 or float."
        )


def require_positive(name: str, value: Real) -> None:
    """Refuses a setting that is not a positive number.

    Raises:
      ValueError: naming it.
    """
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value} is out of range: it has to be positive and finite.")
