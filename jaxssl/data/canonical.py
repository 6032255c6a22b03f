"""One size for the images of a set, and what their boxes and masks become with it.

An image is resized to the canonical size by its short side and cut to its centre (`resize`). A box
is (y0, x0, y1, x1) in pixels, the corner of the top left pixel being (0, 0); a mask holds the class
of each pixel, with 255 for none.
"""

import io

import numpy as np
import PIL.Image
from jaxtyping import Float, Int, UInt8

from jaxssl.errors import UserError

NO_CLASS = 255
NO_LABEL = -1


class UnreadableImageError(UserError):
    """An image or a mask that cannot be decoded: what ``data.unreadable="skip"`` leaves out.

    Raised with two strings: what the image is called, and what is wrong with it.
    """

    def __str__(self) -> str:
        where, reason = self.args
        return (
            f"{where} is not a readable image ({reason}): replace it, or leave all such images out "
            "with data.unreadable='skip'."
        )


def central_part(height: int, width: int, target: tuple[int, int]) -> tuple[float, float, float]:
    """(top, left, scale) of the largest central part that has the target's aspect ratio.

    A point (y, x) of the original comes to lie at ((y - top) / scale, (x - left) / scale).
    """
    scale = min(height / target[0], width / target[1])
    # Without the minimum a rounding error may put the part outside the image.
    top = (height - min(target[0] * scale, height)) / 2
    left = (width - min(target[1] * scale, width)) / 2
    return top, left, scale


def resize(
    image: PIL.Image.Image,
    height: int,
    width: int,
    resampling: PIL.Image.Resampling = PIL.Image.Resampling.BICUBIC,
) -> PIL.Image.Image:
    """Short side to the target's, then a central crop, in one resampling by Pillow.

    One scale for both axes and a sub-pixel offset, see `central_part`. The bicubic filter widens
    with the scale (antialiasing); the nearest pixel, for masks, is the one that the centre of the
    new pixel lies in.
    """
    top, left, scale = central_part(image.height, image.width, (height, width))
    right = left + min(width * scale, image.width)
    bottom = top + min(height * scale, image.height)
    return image.resize((width, height), resampling, box=(left, top, right, bottom))


def canonical_boxes(
    boxes: Float[np.ndarray, "m 4"],
    labels: Int[np.ndarray, " m"],
    size: tuple[int, int],
    target: tuple[int, int],
) -> tuple[Float[np.ndarray, "k 4"], Int[np.ndarray, " k"]]:
    """The boxes of an image after `resize`: moved, clipped, and those with no area left dropped.

    Args:
      boxes: (y0, x0, y1, x1) in pixels of the original.
      labels: the class of each.
      size: (height, width) of the original.
      target: canonical (height, width).

    Returns:
      Boxes, float32, in pixels of the canonical image, and their classes, int32; K <= M.
    """
    top, left, scale = central_part(*size, target)
    moved = (boxes - np.array((top, left, top, left))) / scale
    clipped = np.clip(moved, 0, np.array((*target, *target))).astype(np.float32)
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


def decode_image(
    encoded: str | bytes | np.ndarray | None, shape: tuple[int, int, int], where: str
) -> tuple[UInt8[np.ndarray, "h w c"], Int[np.ndarray, " 2"]]:
    """An image of the canonical shape, and its (height, width) before, int32.

    Args:
      encoded: path of an image file, its bytes, or the pixels; None: a record cut short.
      shape: canonical (H, W, C), C = 1 or 3.
      where: what to call the image if it cannot be read.

    Raises:
      UnreadableImageError: if Pillow cannot read it.
    """
    height, width, channels = shape
    image = _open(encoded, "L" if channels == 1 else "RGB", where)
    size = np.array((image.height, image.width), np.int32)
    if (image.height, image.width) != (height, width):
        image = resize(image, height, width)
    return np.asarray(image).reshape(height, width, channels), size


def decode_mask(
    encoded: str | bytes, target: tuple[int, int], size: tuple[int, int], where: str
) -> UInt8[np.ndarray, "h w"]:
    """A mask of the canonical size, one that no other class is mixed into.

    Args:
      encoded: path of a grey or palette image whose values are the classes, or its bytes.
      target: canonical (height, width).
      size: (height, width) that the mask's image has.
      where: what to call the mask in an error.

    Raises:
      UserError: if it has colours or another size than its image.
      UnreadableImageError: if Pillow cannot read it.
    """
    mask = _open(encoded, None, where)
    if mask.mode not in ("L", "P", "1"):
        raise UserError(
            f"{where} is a mask of mode {mask.mode}: store the class of each pixel, 0 to "
            "254, or 255 for none, as a grey or palette PNG of 8 bits."
        )
    if (mask.height, mask.width) != size:
        raise UserError(
            f"{where} is a mask of {mask.height} x {mask.width} pixels but its image has "
            f"{size[0]} x {size[1]}: give both the same size."
        )
    classes = PIL.Image.fromarray(np.asarray(mask).astype(np.uint8))
    return np.asarray(resize(classes, *target, PIL.Image.Resampling.NEAREST))


def _open(
    encoded: str | bytes | np.ndarray | None, mode: str | None, where: str
) -> PIL.Image.Image:
    try:
        if encoded is None:
            raise ValueError("the record is empty")
        if isinstance(encoded, np.ndarray):
            grey = encoded.shape[-1] == 1
            image = PIL.Image.fromarray(encoded.squeeze(-1) if grey else encoded)
            return image if mode is None else image.convert(mode)
        with PIL.Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as file:
            file.load()
            if mode is not None and file.mode[0] in "IF":
                raise ValueError(f"mode {file.mode}, which 8 bits a channel would clip")
            return file if mode is None else file.convert(mode)
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise UnreadableImageError(where, str(error)) from error
