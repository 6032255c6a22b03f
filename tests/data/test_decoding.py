"""What is decoded is what is shown (pictures) or what is stored (masks), or it is refused."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import PIL.Image
import PIL.JpegImagePlugin
import pytest

from jaxssl.data.canonical import Canonical
from jaxssl.data.decoding import UnreadableImageError, decode_image, decode_mask
from jaxssl.data.sources import load
from jaxssl.errors import UserError


def form(height, width, *, fit="crop", background=(255, 255, 255), scale=(), margin=0.0):
    return Canonical(
        size=(height, width), fit=fit, background=background, scale=scale, margin=margin
    )


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width, height, depth, colour, rows, clear=None):
    """A PNG with just these bytes a row, which Pillow cannot write for all depths."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    transparent = [] if clear is None else [chunk(b"tRNS", struct.pack(">H", clear))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), *transparent, chunk(b"IDAT", lines), chunk(b"IEND", b"")]
    )


def with_orientation(pixels, orientation, kind, **options):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return encoded(PIL.Image.fromarray(pixels), kind, exif=exif, **options)


# Upright.

# What a viewer shows of the stored rows and columns, from EXIF's own table of where row 0 and
# column 0 lie: top left, top right, bottom right, bottom left, left top, right top ...
SHOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", SHOWN)
def test_a_picture_is_as_a_viewer_shows_it(kind, orientation):
    stored = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    options = {"lossless": True} if kind == "WEBP" else {}
    shown = SHOWN[orientation](stored)
    content = with_orientation(stored, orientation, kind, **options)
    found = decode_image(content, form(*shown.shape[:2]), 3, "it")
    np.testing.assert_array_equal(found.pixels, shown)
    assert found.size == shown.shape[:2]


def test_damaged_exif_data_turn_nothing():
    stored = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    for exif in (b"Exif\0\0II*\0", b"Exif\0\0junk", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        content = encoded(PIL.Image.fromarray(stored), "PNG", exif=exif)
        np.testing.assert_array_equal(decode_image(content, form(4, 6), 3, "it").pixels, stored)


def mask_folder(root, image, mask):
    for folder, name, content in (("images", "a.jpg", image), ("masks", "a.png", mask)):
        path = root / "train" / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_mask_lies_on_its_object_as_it_is_shown(data_config, tmp_path, orientation):
    shown = np.zeros((24, 24 if orientation == 3 else 16), np.uint8)
    shown[2:10, 3:9] = 1
    # The stored picture is what the inverse turn makes of the shown one.
    stored = {3: shown[::-1, ::-1], 6: shown.swapaxes(0, 1)[::-1]}[orientation]
    assert (SHOWN[orientation](stored) == shown).all()
    picture = with_orientation(np.dstack([stored * 255] * 3), orientation, "JPEG", quality=95)
    mask_folder(tmp_path, picture, encoded(PIL.Image.fromarray(shown), "PNG"))
    config = data_config("mask_folder", tmp_path, 16)
    batch = load(config, "train").gather(np.array([0]))
    light, mask = batch["image"][0, :, :, 0] > 127, batch["targets"]["mask"][0] == 1
    assert mask.sum() > 20
    assert (light & mask).sum() > 0.8 * (light | mask).sum()
    assert batch["original_size"].tolist() == [list(shown.shape)]
    if orientation == 6:  # a mask of the stored picture
        mask_folder(tmp_path, picture, encoded(PIL.Image.fromarray(stored.copy()), "PNG"))
        with pytest.raises(UserError, match=r"16 x 24 pixels but its image has 24 x 16, upright"):
            load(config, "train")


# JPEGs decoded at a fraction of their size.


def photograph(width, height, orientation=1):
    """A JPEG without fine detail, as large photographs are."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 20, width // 20, 3), np.uint8)
    smooth = PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC)
    return with_orientation(np.asarray(smooth), orientation, "JPEG", quality=95)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(
    ("width", "height", "target", "fit", "reduction"),
    [
        (320, 240, (32, 32), "crop", 2),  # 7.5 pixels for one: at 1/4 less than two would be left
        (323, 241, (24, 24), "crop", 4),  # sides that 4 does not divide
        (640, 480, (16, 16), "crop", 8),
        (480, 320, (64, 64), "letterbox", 2),
        (320, 240, (64, 64), "crop", 1),
    ],
)
def test_a_large_jpeg_is_decoded_in_part_and_looks_the_same(
    width, height, target, fit, reduction, orientation, monkeypatch
):
    if orientation != 1 and width % 2:
        reduction = 1  # the part pixel would come first
    sides = []
    load_pixels = PIL.JpegImagePlugin.JpegImageFile.load

    def noting(file):
        sides.append(file.size)
        return load_pixels(file)

    content = photograph(width, height, orientation)
    full = decode_image(content, form(*target, fit=fit), 3, "it")
    monkeypatch.setattr(PIL.JpegImagePlugin.JpegImageFile, "load", noting)
    found = decode_image(content, form(*target, fit=fit, margin=2.0), 3, "it")
    assert sides[0] == (-(-width // reduction), -(-height // reduction))
    assert (found.size, found.content) == (full.size, full.content)
    assert found.size == ((width, height) if orientation == 6 else (height, width))
    difference = np.abs(found.pixels.astype(int) - full.pixels)
    assert difference.mean() < 1.5
    # Half a pixel elsewhere would be another picture by more than that.
    shifted = np.abs(full.pixels[:, 1:].astype(int) - full.pixels[:, :-1]).mean() / 2
    assert reduction == 1 or difference.mean() < shifted / 3
    assert reduction > 1 or not difference.any()


def test_other_formats_and_small_margins_are_as_they_were():
    smooth = PIL.Image.open(io.BytesIO(photograph(320, 240)))
    content = encoded(smooth, "PNG")
    full, found = (
        decode_image(content, form(16, 16, margin=margin), 3, "it") for margin in (0.0, 2.0)
    )
    np.testing.assert_array_equal(full.pixels, found.pixels)
    assert form(16, 16, margin=0.0).reduction((960, 960)) == 1
    assert form(16, 16, margin=1.0).reduction((960, 960)) == 8
    assert form(120, 120, margin=4.0).reduction((960, 961)) == 2


def test_a_margin_that_would_enlarge_is_refused(data_config, folder):
    with pytest.raises(UserError, match=r"--config\.data\.jpeg_margin=0\.5 must be at least 1, or"):
        load(data_config("folder", folder, 8, jpeg_margin=0.5), "train")


# Transparency.


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_show_the_ground(mode):
    pixels = np.full((2, 2, 4), (200, 100, 0, 255), np.uint8)
    pixels[0, 0] = (1, 2, 3, 0)  # noise that nobody sees
    image = PIL.Image.fromarray(pixels)
    options = {}
    if mode == "LA":
        image = image.convert("LA")
    elif mode == "P":
        image, options = image.convert("RGB").convert("P", palette=PIL.Image.Palette.ADAPTIVE), {}
        options = {"transparency": int(np.asarray(image)[0, 0])}
    elif mode == "RGB":
        image, options = image.convert("RGB"), {"transparency": (1, 2, 3)}
    canonical = form(2, 2, background=(9, 80, 250))
    found = decode_image(encoded(image, "PNG", **options), canonical, 3, "it").pixels
    assert found[0, 0].tolist() == [9, 80, 250]
    opaque = np.asarray(image.convert("RGB"))[1, 1]
    np.testing.assert_array_equal(found[1, 1], opaque)


@pytest.mark.parametrize(
    ("depth", "row", "clear", "shown"),
    [
        (1, [0b10000000], 1, [99, 0]),
        (2, [0b11010000], 3, [99, 85]),
        (2, [0b11010000], 1, [255, 99]),
        (4, [0x2F], 2, [99, 255]),
        (8, [200, 3], 3, [200, 99]),
        (16, [0x4E, 0x20, 0x00, 0x00], 20_000, [99, 0]),
        (16, [0x4E, 0x20, 0x27, 0x10], 3, [255, 128]),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_grey_that_stands_for_no_colour_shows_the_ground(depth, row, clear, shown, channels):
    scale = (0.0, 20_000.0) if depth == 16 else ()
    canonical = form(1, 2, background=(99, 99, 99), scale=scale)
    found = decode_image(png(2, 1, depth, 0, [row], clear), canonical, channels, "it").pixels
    assert found.tolist() == [[[value] * channels for value in shown]]


def test_half_transparent_pixels_are_mixed_with_the_ground():
    pixels = np.full((1, 1, 4), (100, 0, 200, 51), np.uint8)  # a fifth
    found = decode_image(encoded(PIL.Image.fromarray(pixels), "PNG"), form(1, 1), 3, "it").pixels
    np.testing.assert_allclose(found[0, 0].astype(int), [224, 204, 244], atol=1)


@pytest.mark.parametrize("background", [(0, 0), (0, 0, 256), (0.5, 0, 0), (-1, 0, 0)])
def test_a_ground_that_is_no_colour_is_refused(data_config, folder, background):
    with pytest.raises(UserError, match=r"--config\.data\.background=.* is no colour"):
        load(data_config("folder", folder, 8, background=background), "train")


# Masks: stored values are class numbers.


@pytest.mark.parametrize(
    ("depth", "colour", "rows", "classes"),
    [
        (1, 0, [[0b01100000], [0b10000000]], [[0, 1, 1], [1, 0, 0]]),
        (2, 0, [[0b00011000], [0b11000000]], [[0, 1, 2], [3, 0, 0]]),
        (4, 0, [[0x01, 0x20], [0xFE, 0x00]], [[0, 1, 2], [15, 14, 0]]),
        (8, 0, [[0, 1, 2], [255, 17, 85]], [[0, 1, 2], [255, 17, 85]]),
    ],
)
def test_grey_masks_of_few_bits_hold_their_class_numbers(depth, colour, rows, classes):
    mask = png(3, 2, depth, colour, rows)
    assert decode_mask(mask, form(2, 3), (2, 3), "it").tolist() == classes


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_masks_of_any_depth_hold_their_class_numbers(bits):
    classes = np.array([[0, 1, 1], [1, 0, 0]], np.uint8) * (2**bits - 1)
    image = PIL.Image.fromarray(classes)
    image.putpalette([255 - i for i in range(256) for _ in range(3)])
    mask = encoded(image, "PNG", bits=bits)
    np.testing.assert_array_equal(decode_mask(mask, form(2, 3), (2, 3), "it"), classes)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("BMP", {}),
        ("GIF", {"optimize": False}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
    ],
)
def test_lossless_masks_of_other_kinds_are_read(kind, options):
    classes = np.array([[0, 1, 2], [30, 254, 255]], np.uint8)
    mask = encoded(PIL.Image.fromarray(classes), kind, **options)
    np.testing.assert_array_equal(decode_mask(mask, form(2, 3), (2, 3), "it"), classes)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda image: encoded(image, "JPEG"), "in a format that may change values .JPEG."),
        (lambda image: encoded(image, "JPEG2000"), "may change values .JPEG2000."),
        (lambda image: encoded(image, "AVIF"), "may change values .AVIF."),
        (lambda image: encoded(image, "WEBP"), "of mode RGB"),
        (lambda image: encoded(image, "TIFF", compression="jpeg"), "may change values .TIFF with"),
        (lambda image: b"P5\n3 2\n15\n" + bytes(6), "Pillow changes as it reads"),
        (lambda image: b"P4\n3 2\n" + bytes(2), "Pillow changes as it reads .*1;I"),
    ],
)
def test_masks_whose_values_may_change_are_refused(content, reason):
    image = PIL.Image.fromarray(np.array([[0, 1, 2], [30, 254, 255]], np.uint8))
    with pytest.raises(UserError, match=f"it is a mask .*{reason}.* grey or palette PNG"):
        decode_mask(content(image), form(2, 3), (2, 3), "it")


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_two_files_of_one_stem_are_refused(data_config, tmp_path, folder):
    grey = PIL.Image.new("L", (4, 4))
    mask_folder(tmp_path, encoded(grey.convert("RGB"), "JPEG"), encoded(grey, "PNG"))
    other = {"images": "a.png", "masks": "a.tif"}[folder]
    kind = {"images": "PNG", "masks": "TIFF"}[folder]
    (tmp_path / "train" / folder / other).write_bytes(encoded(grey, kind))
    with pytest.raises(UserError, match=rf"{folder} has both a\.\w+ and a\.\w+, so that nothing"):
        load(data_config("mask_folder", tmp_path, 4), "train")


# More than 8 bits.


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_grey_images_are_mapped_by_the_scale_alone(dtype):
    values = np.array([[0, 1000, 2000], [3000, 4000, 5000]]).astype(dtype)
    content = encoded(PIL.Image.fromarray(values), "TIFF")
    with pytest.raises(UserError, match=r"it has .* values.*--config\.data\.scale=\(low,high\)"):
        decode_image(content, form(2, 3), 1, "it")
    found = decode_image(content, form(2, 3, scale=(1000.0, 4000.0)), 1, "it").pixels
    assert found[..., 0].tolist() == [[0, 0, 85], [170, 255, 255]]


def test_a_12_bit_pgm_is_mapped_from_its_own_values():
    content = b"P5\n3 1\n4095\n" + struct.pack(">3H", 0, 1365, 4095)
    found = decode_image(content, form(1, 3, scale=(0.0, 4095.0)), 1, "it").pixels
    assert found[0, :, 0].tolist() == [0, 85, 255]


def test_deep_colours_are_refused_in_words():
    content = png(1, 1, 16, 2, [bytes(6)])
    for scale in ((), (0.0, 65535.0)):
        with pytest.raises(UserError, match=r"it has 16 bits a channel and colours .*name=npy"):
            decode_image(content, form(1, 1, scale=scale), 3, "it")


def test_a_scale_that_does_not_suit_is_refused(data_config, folder):
    with pytest.raises(
        UserError,
        match=r"8 bits a channel already.*--config\.data\.scale.* images of more bits to 8",
    ):
        load(data_config("folder", folder, 8, scale=(0, 65535)), "train")
    with pytest.raises(UserError, match=r"8 bits a channel already"):
        load(data_config("digits", scale=(0, 65535)), "train")
    for scale in ((0,), (5, 5), (9, 1), (0, float("nan"))):
        with pytest.raises(UserError, match=r"--config\.data\.scale=.* is no range"):
            load(data_config("folder", folder, 8, scale=scale), "train")


# Faults of the system are not faults of the file, and nothing is said but by us.


@pytest.mark.parametrize("number", ["EACCES", "EIO", "ETIMEDOUT", "EMFILE"])
def test_a_fault_of_the_system_is_never_skipped(data_config, folder, monkeypatch, number):
    import errno
    import os
    import pathlib

    read = pathlib.Path.read_bytes

    def fail(path):
        if path.name == "3.png":
            raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))
        return read(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", fail)
    with pytest.raises(UserError, match=r"3\.png could not be read") as raised:
        load(data_config("folder", folder, 8, unreadable="skip"), "train")
    assert os.strerror(getattr(errno, number)) in str(raised.value)
    assert not isinstance(raised.value, UnreadableImageError)


SCRIPT = """
    import sys
    from jaxssl.data.canonical import Canonical
    from jaxssl.data.decoding import UnreadableImageError, decode_image
    form = Canonical(size=(2, 2), fit="crop", background=(0, 0, 0), scale=(), margin=2.0)
    for path in sys.argv[1:]:
        try:
            decode_image(path, form, 3, path)
        except UnreadableImageError as error:
            print("unreadable")
        else:
            print("read")
"""


def test_no_library_writes_to_the_terminal(tmp_path):
    import textwrap

    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    broken = bytearray(encoded(noise, "TIFF", compression="tiff_deflate"))
    broken[300:500] = bytes(200)
    (tmp_path / "broken.tif").write_bytes(broken)
    # 90 million pixels, above Pillow's limit for a warning, in a few hundred kilobytes.
    large = png(9500, 9500, 1, 0, [bytes(1188)] * 9500)
    (tmp_path / "large.png").write_bytes(large)
    palette = PIL.Image.new("P", (4, 4))
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.save(tmp_path / "palette.png", transparency=b"\x00\x80")
    names = ("broken.tif", "large.png", "palette.png")
    paths = [str(tmp_path / name) for name in names]
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(SCRIPT), *paths],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("unreadable\nread\nread\n", "")
