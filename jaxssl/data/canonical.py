"""One size for the images of a set, and what their boxes and masks become with it.

With ``fit="crop"`` an image is resized to the canonical size by its short side and cut to its
centre. With ``"letterbox"`` it is resized by its long side, whole, into the top left corner, and
what is left is 0. A box is (y0, x0, y1, x1) in pixels, the corner of the top left pixel being
(0, 0); a mask holds the class of each pixel, with 255 for none.
"""

import dataclasses
import math
import sys
from typing import NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from jaxssl.errors import UserError, choose
from jaxssl.ranges import AT_LEAST_ONE

NO_CLASS = 255
NO_LABEL = -1

Size = tuple[int, int]
Scale = tuple[float | int, ...]  # (low, high) or ()


class Placement(NamedTuple):
    """Where the pixels of an image lie in the canonical one.

    A point (y, x) of the original comes to lie at ((y - top) / scale_y, (x - left) / scale_x).

    Attributes:
      top, left: corner of the part that is kept, pixels of the original.
      scale_y, scale_x: pixels of the original a pixel of the canonical image.
      content: (height, width) of the top left part of the canonical image that holds the picture.
    """

    top: float
    left: float
    scale_y: float
    scale_x: float
    content: Size


def _central_part(size: Size, target: Size) -> Placement:
    """The largest central part that has the target's aspect ratio."""
    height, width = size
    scale = min(height / target[0], width / target[1])
    # Without the minimum a rounding error may put the part outside the image.
    top = (height - min(target[0] * scale, height)) / 2
    left = (width - min(target[1] * scale, width)) / 2
    return Placement(top, left, scale, scale, target)


def _whole(size: Size, target: Size) -> Placement:
    """All of the image; the shorter side is rounded to whole pixels, with a scale of its own."""
    height, width = size
    scale = max(height / target[0], width / target[1])
    content = (
        min(max(round(height / scale), 1), target[0]),
        min(max(round(width / scale), 1), target[1]),
    )
    return Placement(0.0, 0.0, height / content[0], width / content[1], content)


FITS = {"crop": _central_part, "letterbox": _whole}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Canonical:
    """What the images of a set are brought to.

    Attributes:
      size: (height, width) in pixels.
      fit: a key of `FITS`.
      background: RGB, 0 to 255, of the ground that shows through where an image is transparent.
      scale: (low, high), the values that become 0 and 255 in an image of more than 8 bits; (): such
        images are refused.
      margin: pixels, along an axis, that a JPEG which is decoded at 1/2, 1/4 or 1/8 must keep for
        each of the canonical image; 0: all are decoded in full.
    """

    size: Size
    fit: str
    background: tuple[int, int, int]
    scale: Scale
    margin: float

    @classmethod
    def from_config(cls, data: ConfigDict, size: Size | None = None) -> "Canonical":
        """What the ``data`` group says.

        Args:
          data: reads ``image_size``, ``fit``, ``background``, ``scale`` and ``jpeg_margin``.
          size: (height, width) that all images of the set have; None: they vary, and become
            ``image_size``.

        Raises:
          UserError: if a value is out of range.
        """
        if size is None and data.image_size <= 0:
            raise UserError(
                f"--config.data.image_size={data.image_size} is no canonical size, and images of "
                f"{data.name!r} vary in size: give the pixels to which they are resized."
            )
        choose("--config.data.fit", data.fit, FITS)
        background = tuple(data.background)
        if len(background) != 3 or any(
            type(value) is not int or not 0 <= value <= 255 for value in background
        ):
            raise UserError(
                f"--config.data.background={background} is no colour: give red, green and blue as "
                "integers from 0 to 255, such as (255, 255, 255) for white."
            )
        if data.jpeg_margin != 0 and not AT_LEAST_ONE.holds(data.jpeg_margin):
            raise UserError(
                f"--config.data.jpeg_margin={data.jpeg_margin} must be at least 1, or 0 to decode "
                "every JPEG in full."
            )
        return cls(
            size=size or (data.image_size, data.image_size),
            fit=data.fit,
            background=background,
            scale=checked_scale(data.scale),
            margin=data.jpeg_margin,
        )

    def place(self, size: Size) -> Placement:
        """Where the pixels of an image of this (height, width) lie."""
        return FITS[self.fit](size, self.size)

    def reduction(self, size: Size) -> int:
        """By how much a JPEG of this (height, width) may be reduced as it is decoded: 1, 2, 4, 8.

        A function of the sizes alone, so that the canonical image stays one of the file alone.
        """
        scale = min(self.place(size)[2:4])
        return max((r for r in (2, 4, 8) if 0 < r * self.margin <= scale), default=1)


def checked_scale(scale: Scale) -> Scale:
    """``data.scale``, if it is a range or empty.

    Raises:
      UserError: if not.
    """
    if not len(scale):
        return ()
    ends = all(map(math.isfinite, scale)) and len(scale) == 2
    if not ends or not sys.float_info.min <= scale[1] - scale[0] < math.inf:
        raise UserError(
            f"--config.data.scale={tuple(scale)} is no range of values: give the two that become 0 "
            "and 255, the lower first, such as (0, 65535)."
        )
    return float(scale[0]), float(scale[1])


def to_8_bits(values: np.ndarray, scale: Scale, where: str) -> UInt8[np.ndarray, "..."]:
    """Values mapped linearly from ``scale`` to 0 .. 255, rounded; those outside become the ends.

    uint8 stays what it is, and is not to be had with a scale.

    Raises:
      UserError: if there is no scale to map by, one for values that have 8 bits already, or a NaN.
    """
    if values.dtype == np.uint8:
        check_unscaled(scale, where)
        return values
    if not scale:
        raise UserError(
            f"{where} has {values.dtype} values, which 8 bits a channel would clip: say by "
            "--config.data.scale=(low,high) which values are to become 0 and 255, if all images "
            "have more than 8 bits, or else convert it to 8."
        )
    low, high = scale
    with np.errstate(over="ignore"):  # what becomes infinite is outside
        # Neither float16 nor float32 holds all integers of 32 bits.
        shares = (values.astype(np.float64) - low) / (high - low)
    if np.isnan(shares).any():
        raise UserError(f"{where} holds NaN: replace it by a number.")
    return np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)


def check_unscaled(scale: Scale, where: str) -> None:
    """Refuses a scale where there is nothing to map."""
    if scale:
        raise UserError(
            f"{where} has 8 bits a channel already, so --config.data.scale={scale} would change "
            "nothing or too much: set it to (), and convert any images of more bits to 8."
        )


def resize(
    image: PIL.Image.Image,
    height: int,
    width: int,
    resampling: PIL.Image.Resampling = PIL.Image.Resampling.BICUBIC,
) -> PIL.Image.Image:
    """Short side to the target's, then a central crop, in one resampling by Pillow.

    One scale for both axes and a sub-pixel offset. The bicubic filter widens with the scale
    (antialiasing); the nearest pixel, for masks, is the one that the centre of the new pixel lies
    in.
    """
    size = (image.height, image.width)
    return _resampled(image, _central_part(size, (height, width)), resampling)


def fitted(
    image: PIL.Image.Image,
    canonical: Canonical,
    resampling: PIL.Image.Resampling,
    padding: int,
    size: Size | None = None,
    reduction: int = 1,
) -> np.ndarray:
    """The image at the canonical size, with ``padding`` where the picture does not reach.

    Args:
      image: what is brought there.
      canonical: the size.
      resampling: by which filter.
      padding: value of the pixels around it.
      size: (height, width) that it had before it was reduced; None: it was not.
      reduction: pixels of then a pixel of it, along an axis.

    Returns:
      uint8 [H, W] or [H, W, C], as the image's mode has it.
    """
    size = size or (image.height, image.width)
    placement = canonical.place(size)
    if size != canonical.size:
        image = _resampled(image, placement, resampling, reduction)
    pixels = np.asarray(image)
    if placement.content == canonical.size:
        return pixels
    height, width = placement.content
    whole = np.full((*canonical.size, *pixels.shape[2:]), padding, np.uint8)
    whole[:height, :width] = pixels
    return whole


def _resampled(
    image: PIL.Image.Image,
    placement: Placement,
    resampling: PIL.Image.Resampling,
    reduction: int = 1,
) -> PIL.Image.Image:
    (height, width) = placement.content
    top, left, scale_y, scale_x = (value / reduction for value in placement[:4])
    right = left + min(width * scale_x, image.width)
    bottom = top + min(height * scale_y, image.height)
    return image.resize((width, height), resampling, box=(left, top, right, bottom))


def canonical_boxes(
    boxes: Float[np.ndarray, "m 4"],
    labels: Int[np.ndarray, " m"],
    size: Size,
    canonical: Canonical,
) -> tuple[Float[np.ndarray, "k 4"], Int[np.ndarray, " k"]]:
    """The boxes of an image at the canonical size: moved, clipped, those without area dropped.

    Args:
      boxes: (y0, x0, y1, x1) in pixels of the original.
      labels: the class of each.
      size: (height, width) of the original.
      canonical: what its image becomes.

    Returns:
      Boxes, float32, in pixels of the canonical image, and their classes, int32; K <= M.
    """
    top, left, scale_y, scale_x, content = canonical.place(size)
    with np.errstate(over="ignore"):  # what becomes infinite is outside
        moved = (boxes - np.array((top, left, top, left))) / np.array((scale_y, scale_x) * 2)
    clipped = np.clip(moved, 0, np.array((*content, *content))).astype(np.float32)
    kept = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    return clipped[kept], labels[kept].astype(np.int32)


def padded_boxes(
    boxes: Float[np.ndarray, "k 4"], labels: Int[np.ndarray, " k"], room: int
) -> tuple[Float[np.ndarray, "room 4"], Int[np.ndarray, " room"]]:
    """The same with zeros, of class -1, in the rows that are left of ``room``."""
    spare = room - len(boxes)
    return (
        np.pad(boxes, ((0, spare), (0, 0))),
        np.pad(labels, (0, spare), constant_values=NO_LABEL),
    )
