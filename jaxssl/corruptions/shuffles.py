"""Patch shuffling: whole patches change places, or the pixels inside each patch do."""

import math
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxssl.corruptions.arrays import AnyArray, Images, namespace, require_images


def inverse(sigma: Int[AnyArray, "*s n"]) -> Int[AnyArray, "*s n"]:
    """The permutation that undoes ``sigma``, whichever of the two shuffles it is given to."""
    return namespace(sigma).argsort(sigma, axis=-1).astype(sigma.dtype)


def global_shuffle(images: Images, sigma: Int[AnyArray, "*s n"], patches: int) -> Images:
    """Moves whole patches: patch k of the result is patch sigma(k) of the image.

    Args:
      images: [..., H, W, C].
      sigma: permutation of the patches in row-major order, [patches**2] for all images or
        [..., patches**2] for each.
      patches: patches a side (the paper's N), a divisor of H and of W.

    Raises:
      ValueError: if the image cannot be cut so, or ``sigma`` is of another length.
    """
    require_images(images)
    height, width = patch_size(images.shape, patches)
    _require_permutations(sigma, images, patches**2)
    rows, columns = np.indices(images.shape[-3:-1], dtype=np.int32, sparse=True)
    source = sigma[..., (rows // height) * patches + columns // width]
    row = (source // patches) * height + rows % height
    column = (source % patches) * width + columns % width
    return _gather_pixels(images, row * images.shape[-2] + column)


def local_shuffle(images: Images, sigma: Int[AnyArray, "*s n"], patches: int) -> Images:
    """Moves the pixels inside each patch: pixel p of a patch is what was pixel sigma(p) of it.

    Args:
      images: [..., H, W, C].
      sigma: permutation of the positions in a patch, in row-major order, the same for all patches:
        [H W / patches**2] for all images or [..., H W / patches**2] for each.
      patches: patches a side (the paper's N), a divisor of H and of W.

    Raises:
      ValueError: if the image cannot be cut so, or ``sigma`` is of another length.
    """
    require_images(images)
    height, width = patch_size(images.shape, patches)
    _require_permutations(sigma, images, height * width)
    rows, columns = np.indices(images.shape[-3:-1], dtype=np.int32, sparse=True)
    source = sigma[..., (rows % height) * width + columns % width]
    row = (rows // height) * height + source // width
    column = (columns // width) * width + source % width
    return _gather_pixels(images, row * images.shape[-2] + column)


def patch_size(shape: tuple[int, ...], patches: int) -> tuple[int, int]:
    """Height and width of a patch of images [..., H, W, C].

    Raises:
      ValueError: if `patches` a side do not divide them.
    """
    height, width = shape[-3:-1]
    if patches < 1 or height % patches or width % patches:
        common = math.gcd(height, width)
        divisors = [str(n) for n in range(1, common + 1) if common % n == 0]
        raise ValueError(
            f"patches={patches} a side do not divide images of {height}x{width} pixels: choose one "
            f"of {', '.join(divisors)}."
        )
    return height // patches, width // patches


def _require_permutations(sigma: Any, images: Any, n: int) -> None:
    if sigma.shape not in {(n,), (*images.shape[:-3], n)}:
        raise ValueError(
            f"permutations of shape {sigma.shape} cannot shuffle images of shape {images.shape}: "
            f"with so many patches they take one of {n}, or one of {n} an image."
        )


def _gather_pixels(images: Any, positions: Any) -> Any:
    """Pixel ``positions`` (int [..., H, W], row-major) of the image at each place."""
    xp = namespace(images)
    height, width, channels = images.shape[-3:]
    flat = images.reshape(*images.shape[:-3], height * width, channels)
    index = positions.reshape(*positions.shape[:-2], height * width)
    if index.ndim == 1:
        moved = xp.take(flat, index, axis=-2)
    else:
        moved = xp.take_along_axis(flat, index[..., None], axis=-2)
    return moved.reshape(images.shape)
