"""Image files and encoded records to pixels, by Pillow.

A picture is what a viewer shows: turned upright by its EXIF orientation, and composed on a ground
of one colour where it is transparent. A mask is what was stored: sample values that are classes.
Annotations (boxes, masks) are of the picture as it is shown. A JPEG that is much larger than what
it is brought to is decoded at 1/2, 1/4 or 1/8, from its lower frequencies alone.
"""

import ctypes
import errno
import functools
import io
import os
import pathlib
import re
import warnings
from typing import NamedTuple

import numpy as np
import PIL
import PIL.Image
import PIL.JpegImagePlugin
from jaxtyping import UInt8

from jaxssl.data.canonical import (
    NO_CLASS,
    Canonical,
    Size,
    check_unscaled,
    fitted,
    to_8_bits,
)
from jaxssl.errors import UserError

MAX_16_BITS = 65535
_ORIENTATION = 0x0112  # EXIF's tag
_UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
_LYING = [turn for number, turn in _UPRIGHT.items() if number >= 5]  # sides change places
# What Pillow makes of a stored sample of so many bits: 255 at most, by this factor.
_FACTORS = {"1": 1, "L": 1, "L;2": 85, "L;4": 17, "P": 1, "P;1": 1, "P;2": 1, "P;4": 1}
_GREY_FACTORS = {samples: _FACTORS[samples] for samples in ("L;2", "L;4")}
_LOSSLESS = ("BMP", "GIF", "PNG", "PPM", "TGA", "TIFF")
_MASK_REMEDY = (
    "store the class of each pixel, 0 to 254, or 255 for none, as a grey or palette PNG of at most "
    "8 bits"
)


class UnreadableImageError(UserError):
    """An image or a mask that cannot be decoded: what ``data.unreadable="skip"`` leaves out.

    Raised with two strings: what the image is called, and what is wrong with it.
    """

    def __str__(self) -> str:
        where, reason = self.args
        return (
            f"{where} is not a readable image ({reason}): replace it, or leave all such images out "
            "with --config.data.unreadable=skip."
        )


class Decoded(NamedTuple):
    """An image of the canonical size.

    Attributes:
      pixels: uint8 [H,W,C].
      size: (height, width) of the picture before, as it is shown.
      content: (height, width) of the top left part that holds the picture.
    """

    pixels: UInt8[np.ndarray, "h w c"]
    size: Size
    content: Size


def decode_image(
    encoded: str | bytes | np.ndarray | None,
    canonical: Canonical,
    channels: int,
    where: str,
    *,
    upright: bool = True,
) -> Decoded:
    """An image of the canonical size.

    Args:
      encoded: path of an image file, its bytes, or the pixels; None: a record cut short.
      canonical: what it is brought to.
      channels: C, 1 or 3.
      where: what to call the image if it cannot be read.
      upright: apply its EXIF orientation.

    Raises:
      UnreadableImageError: if Pillow cannot decode it.
      UserError: if the file cannot be read, or has more than 8 bits a channel and
        ``canonical.scale`` does not say what becomes of them.
    """
    opened = _opened(encoded, where, upright=upright, canonical=canonical)
    image = _composed(
        _in_8_bits(opened, canonical, where), "L" if channels == 1 else "RGB", canonical, where
    )
    size = opened.size
    pixels = fitted(
        image, canonical, PIL.Image.Resampling.BICUBIC, 0, size=size, reduction=opened.reduction
    )
    return Decoded(pixels.reshape(*canonical.size, channels), size, canonical.place(size).content)


def decode_mask(
    encoded: str | bytes, canonical: Canonical, size: Size, where: str, *, upright: bool = True
) -> UInt8[np.ndarray, "h w"]:
    """A mask of the canonical size, one that no other class is mixed into.

    Args:
      encoded: path of a grey or palette image whose stored values are the classes, or its bytes.
      canonical: what it is brought to; 255 where the picture does not reach.
      size: (height, width) that the mask's image has as it is shown.
      where: what to call the mask in an error.
      upright: apply its EXIF orientation.

    Raises:
      UserError: if it has colours, a lossy format or another size than its image.
      UnreadableImageError: if Pillow cannot decode it.
    """
    mask = _opened(encoded, where, upright=upright)
    problem = _not_classes(mask)
    if problem:
        raise UserError(f"{where} is a mask {problem}: {_MASK_REMEDY}.")
    if (mask.image.height, mask.image.width) != size:
        raise UserError(
            f"{where} is a mask of {mask.image.height} x {mask.image.width} pixels but its image "
            f"has {size[0]} x {size[1]}, upright by its EXIF orientation: give both the same size."
        )
    stored = np.asarray(mask.image).astype(np.uint8)
    classes = PIL.Image.fromarray(stored // np.uint8(_FACTORS.get(mask.samples, 1)))
    return fitted(classes, canonical, PIL.Image.Resampling.NEAREST, padding=NO_CLASS)


class _Opened(NamedTuple):
    """A decoded file.

    Attributes:
      image: its pixels.
      samples: how they were stored, Pillow's raw mode (``"L;4"``: grey of 4 bits); "": unknown.
      highest: the stored value of white, where the file says it (PGM), otherwise 255.
      kind: format of the file, such as "PNG"; with TIFF also its compression.
      size: (height, width) of the picture as it is shown.
      reduction: pixels of the picture a pixel of ``image``, along an axis.
    """

    image: PIL.Image.Image
    samples: str
    highest: int
    kind: str
    size: Size
    reduction: int


def _opened(
    encoded: str | bytes | np.ndarray | None,
    where: str,
    *,
    upright: bool,
    canonical: Canonical | None = None,
) -> _Opened:
    """The decoded file; with ``canonical``, a JPEG only as far as that needs it."""
    if isinstance(encoded, np.ndarray):
        image = PIL.Image.fromarray(encoded.squeeze(-1) if encoded.shape[-1] == 1 else encoded)
        return _Opened(image, "", 255, "", (image.height, image.width), 1)
    # Read first, so that what goes wrong after it is the content's fault.
    content = read_bytes(encoded) if isinstance(encoded, str) else encoded
    _quiet_pillow()
    try:
        if not content:
            raise ValueError("it is empty")
        with PIL.Image.open(io.BytesIO(content)) as file:
            samples, highest = _samples(file)
            kind = str(file.format)
            if kind == "TIFF":
                _quiet_libtiff()
                kind = f"TIFF with {file.info.get('compression')}"
            whole = file.size
            reduction = 1
            if canonical is not None and isinstance(file, PIL.JpegImagePlugin.JpegImageFile):
                reduction = _reduced(file, canonical, upright=upright)
            file.load()
            clear, factor = file.info.get("transparency"), _GREY_FACTORS.get(samples, 1)
            if isinstance(clear, int) and clear * factor <= 255:
                file.info["transparency"] = clear * factor  # Pillow leaves it as it was stored
            turn = _UPRIGHT.get(_orientation(file)) if upright else None
            image = file if turn is None else file.transpose(turn)
            shown = image.size if reduction == 1 else _turned(whole, turn)
            return _Opened(image, samples, highest, kind, shown[::-1], reduction)
    except PIL.UnidentifiedImageError as error:
        raise UnreadableImageError(where, "its content is of no kind that Pillow reads") from error
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise UnreadableImageError(where, str(error)) from error


def read_bytes(path: str | pathlib.Path) -> bytes:
    """The content of a file.

    Raises:
      UserError: if the system does not give it.
    """
    try:
        if not os.path.isfile(path) and os.path.exists(path) and not os.path.isdir(path):
            raise OSError(errno.EINVAL, "it is no regular file")  # to open a pipe would never end
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise unreachable(path, error) from error


def unreachable(path: object, error: OSError) -> UserError:
    """In words: a file or folder that the system does not give, whatever it may hold."""
    reason = error.strerror or type(error).__name__
    return UserError(
        f"{path} could not be read ({reason}): check that it is there, its permissions and the "
        "disk, and start again."
    )


def _samples(file: PIL.Image.Image) -> tuple[str, int]:
    """How the pixels are stored, which Pillow forgets once they are decoded; see `_Opened`."""
    for codec, _, _, args in getattr(file, "tile", ()):
        first = args if isinstance(args, str) else next(iter(args or ("",)))
        highest = args[1] if codec in ("ppm", "ppm_plain") else 255
        return (first if isinstance(first, str) else ""), highest
    return "", 255


def _orientation(image: PIL.Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow has no one exception for damaged EXIF data; viewers ignore them
        return 1
    return orientation if isinstance(orientation, int) else 1


def _turned(size: tuple[int, int], turn: PIL.Image.Transpose | None) -> tuple[int, int]:
    """(width, height) of an image of that size after it is turned."""
    return size[::-1] if turn in _LYING else size


def _reduced(
    file: PIL.JpegImagePlugin.JpegImageFile, canonical: Canonical, *, upright: bool
) -> int:
    """Has a JPEG decoded at a fraction of its sides, rounded up; the reduction that it gets."""
    turn = _UPRIGHT.get(_orientation(file)) if upright else None
    width, height = file.size
    reduction = canonical.reduction(_turned(file.size, turn)[::-1])
    # Of sides that it does not divide the last pixel is not whole, and turned it would come first.
    while turn is not None and (width % reduction or height % reduction):
        reduction //= 2
    if reduction > 1:
        file.draft(None, (width // reduction, height // reduction))
        if file.size != (-(-width // reduction), -(-height // reduction)):
            raise ValueError(f"Pillow made {file.size} of {(width, height)}")
    return reduction


def _in_8_bits(opened: _Opened, canonical: Canonical, where: str) -> PIL.Image.Image:
    image, samples, highest = opened[:3]
    if image.mode[0] in "IF":
        values = np.asarray(image)
        if highest not in (255, MAX_16_BITS):  # Pillow has stretched them
            values = np.rint(values * (highest / MAX_16_BITS))
        grey = PIL.Image.fromarray(to_8_bits(values, canonical.scale, where))
        clear = image.info.get("transparency")
        if isinstance(clear, int) and (values == clear).any():  # a grey that stands for no colour
            opaque = np.where(values == clear, 0, 255).astype(np.uint8)
            grey.putalpha(PIL.Image.fromarray(opaque))
        return grey
    if ";16" in samples or highest > 255:
        raise UserError(
            f"{where} has 16 bits a channel and colours or transparency, of which Pillow would "
            "drop the lower bits: convert it to 8 bits, or use .npy arrays "
            "(--config.data.name=npy)."
        )
    check_unscaled(canonical.scale, where)
    return image


def _composed(
    image: PIL.Image.Image, mode: str, canonical: Canonical, where: str
) -> PIL.Image.Image:
    """The image in mode "L" or "RGB", on the ground where it is transparent."""
    try:
        if not image.has_transparency_data:
            return image.convert(mode)
        ground = PIL.Image.new("RGBA", image.size, (*canonical.background, 255))
        return PIL.Image.alpha_composite(ground, image.convert("RGBA")).convert(mode)
    except ValueError as error:  # a mode that is none of colours
        raise UnreadableImageError(where, str(error)) from error


def _not_classes(mask: _Opened) -> str | None:
    """Why the values of a mask are not its classes, if they are not."""
    if mask.image.mode not in ("L", "P", "1"):
        return f"of mode {mask.image.mode}"
    if not mask.kind.startswith(_LOSSLESS) or "jpeg" in mask.kind or "webp" in mask.kind:
        return f"in a format that may change values ({mask.kind})"
    if (mask.samples and mask.samples not in _FACTORS) or mask.highest != 255:
        return f"whose values Pillow changes as it reads them (stored as {mask.samples})"
    return None


def _quiet_pillow() -> None:
    """Keeps Pillow's warnings of odd files off the terminal; what matters becomes an error.

    The filter is set where it is missing, not once: worker processes begin without it, and
    `warnings.catch_warnings` drops it. That one is not for threads, so it is not used here.
    """
    entry = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if entry not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


@functools.cache
def _quiet_libtiff() -> None:
    """Keeps the libtiff that Pillow's wheels bring from writing to the terminal by itself."""
    package = pathlib.Path(PIL.__path__[0])
    folders = (package.parent / "pillow.libs", package / ".dylibs")
    for library in (file for folder in folders for file in folder.glob("libtiff*")):
        handlers = ctypes.CDLL(str(library))
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            function = getattr(handlers, name)
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
            function(None)
