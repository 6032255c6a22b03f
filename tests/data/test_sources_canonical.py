"""The canonical size: what becomes of images, boxes and masks."""

import dataclasses
import io

import numpy as np
import PIL.Image
import pytest
from batches import assert_same_batch, everything

from jaxssl.corruptions.apply import corruption_group
from jaxssl.data.canonical import (
    Canonical,
    canonical_boxes,
    checked_scale,
    padded_boxes,
    resize,
    to_8_bits,
)
from jaxssl.data.decoding import decode_image, decode_mask
from jaxssl.data.sources import check_view_size, load
from jaxssl.data.splits import corrupted
from jaxssl.errors import UserError


def crop(height, width):
    return Canonical(
        size=(height, width), fit="crop", background=(255, 255, 255), scale=(), margin=0.0
    )


@pytest.mark.parametrize(("height", "width"), [(20, 32), (32, 20), (20, 20), (5, 8)])
def test_resize_is_short_side_then_central_crop(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = PIL.Image.fromarray(pixels)
    # Sides that scale to whole pixels, where two steps and one are the same.
    tall, wide = height * 10 // min(height, width), width * 10 // min(height, width)
    whole = np.asarray(image.resize((wide, tall), PIL.Image.Resampling.BICUBIC))
    top, left = (tall - 10) // 2, (wide - 10) // 2
    expected = whole[top : top + 10, left : left + 10]
    # One grey level: where a sum lies half-way, the offset may round it to the other side.
    np.testing.assert_allclose(np.asarray(resize(image, 10, 10), int), expected, atol=1)


def test_resize_maps_points_with_one_scale_and_a_sub_pixel_offset():
    # A linear ramp along the long side, which any resize that keeps positions maps to itself.
    ramp = np.tile(np.arange(41, dtype=np.uint8) * 4, (20, 1))
    out = np.asarray(resize(PIL.Image.fromarray(ramp), 10, 10), float)
    scale = 20 / 10
    centres = (np.arange(10) + 0.5) * scale + (41 - 20) / 2 - 0.5
    np.testing.assert_allclose(out[:, 2:-2], np.tile(centres * 4, (10, 1))[:, 2:-2], atol=0.51)


def test_resize_takes_any_size():
    for side in range(1, 120):
        image = PIL.Image.new("L", (side + side % 3, side), 7)
        for height, width in ((49, 49), (33, 47), (8, 5)):
            assert np.asarray(resize(image, height, width)).shape == (height, width)


def test_resize_to_another_aspect_ratio_keeps_circles_round():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 60), np.uint8)
    out = resize(PIL.Image.fromarray(pixels), 12, 20)  # scale 2: the central 24 x 40
    whole = PIL.Image.fromarray(pixels).resize((30, 12), PIL.Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(out), np.asarray(whole)[:, 5:25])


# Boxes.


def test_boxes_are_moved_clipped_and_dropped():
    # 10 x 20 to 5 x 5: scale 2, of the columns 5 .. 15.
    boxes = np.array(
        [
            [0, 0, 10, 4],
            [2, 3, 6, 9],
            [0, 5, 10, 15],
            [9, 15, 10, 20],
            [4, 4, 4, 9],
            [8, 14, 12, 21],
        ],
        np.float32,
    )
    moved, labels = canonical_boxes(boxes, np.arange(6), (10, 20), crop(5, 5))
    assert labels.tolist() == [1, 2, 5]
    assert (moved.dtype, labels.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(moved, [[1, 0, 3, 2], [0, 0, 5, 5], [4, 4.5, 5, 5]])
    padded, padded_labels = padded_boxes(moved, labels, 4)
    np.testing.assert_array_equal(padded, [*moved, [0, 0, 0, 0]])
    assert padded_labels.tolist() == [1, 2, 5, -1]


def test_numbers_that_overflow_are_outside_and_say_nothing():
    """Warnings are errors here: what NumPy says of an overflow must not reach the terminal."""
    huge = np.array([[-1e308, -1e308, 1e308, 1e308], [1e308, 1e308, 1.1e308, 1.1e308]])
    boxes, labels = canonical_boxes(huge, np.array([1, 2]), (1, 1), crop(8, 8))
    assert boxes.tolist() == [[0, 0, 8, 8]]
    assert labels.tolist() == [1]
    values = np.array([-np.inf, -1e308, 0.25, 1e308, np.inf])
    assert to_8_bits(values, (0.0, 0.5), "it").tolist() == [0, 0, 128, 255, 255]
    assert to_8_bits(np.array([1e308]), (0.0, 1e-300), "it").tolist() == [255]
    long = np.array([np.finfo(np.longdouble).max, np.longdouble(0)])
    assert to_8_bits(long, (0.0, 1.0), "it").tolist() == [255, 0]
    for scale in ((-1e308, 1e308), (0.0, 5e-324)):
        with pytest.raises(UserError, match="is no range of values"):
            checked_scale(scale)


def test_no_boxes_are_no_boxes():
    moved, labels = canonical_boxes(np.zeros((0, 4)), np.zeros(0, int), (10, 20), crop(5, 5))
    assert (moved.shape, labels.shape) == ((0, 4), (0,))
    padded, labels = padded_boxes(moved, labels, 2)
    assert (padded.tolist(), labels.tolist()) == ([[0] * 4] * 2, [-1, -1])


@pytest.mark.parametrize(("height", "width", "size"), [(60, 97, 24), (83, 60, 24), (31, 23, 40)])
def test_a_box_stays_around_what_it_surrounds(height, width, size):
    y0, x0, y1, x1 = height // 3, width // 3, height * 2 // 3 + 1, width * 2 // 3 + 1
    pixels = np.zeros((height, width), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    light = np.asarray(resize(PIL.Image.fromarray(pixels), size, size)) / 255
    (box,), _ = canonical_boxes(
        np.array([[y0, x0, y1, x1]], float), np.array([0]), (height, width), crop(size, size)
    )
    # Light is kept by the resampling, so a profile's sum is a side and its centroid a centre.
    for axis, start, stop in ((1, box[0], box[2]), (0, box[1], box[3])):
        profile = light.max(axis)
        centroid = np.sum(profile * (np.arange(size) + 0.5)) / profile.sum()
        assert profile.sum() == pytest.approx(stop - start, abs=0.1)
        assert centroid == pytest.approx((start + stop) / 2, abs=0.05)


# Letterbox.


def box(height, width):
    return dataclasses.replace(crop(height, width), fit="letterbox")


@pytest.mark.parametrize(
    ("size", "content"),
    [((40, 20), (16, 8)), ((20, 40), (8, 16)), ((9, 9), (16, 16)), ((300, 7), (16, 1))],
)
def test_a_letterboxed_picture_lies_whole_in_the_top_left_corner(size, content):
    pixels = np.random.default_rng(0).integers(1, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    found = decode_image(file.getvalue(), box(16, 16), 3, "it")
    assert (found.size, found.content) == (size, content)
    whole = PIL.Image.fromarray(pixels).resize(content[::-1], PIL.Image.Resampling.BICUBIC)
    expected = np.zeros((16, 16, 3), np.uint8)
    expected[: content[0], : content[1]] = whole
    np.testing.assert_array_equal(found.pixels, expected)


@pytest.mark.parametrize(("height", "width"), [(60, 97), (83, 60)])
def test_boxes_and_masks_follow_a_letterboxed_picture(height, width):
    y0, x0, y1, x1 = height // 3, width // 3, height * 2 // 3, width * 2 // 3
    classes = np.zeros((height, width), np.uint8)
    classes[y0:y1, x0:x1] = 7
    file = io.BytesIO()
    PIL.Image.fromarray(classes).save(file, "PNG")
    canonical = box(24, 24)
    mask = decode_mask(file.getvalue(), canonical, (height, width), "it")
    rows, columns = canonical.place((height, width)).content
    assert (mask[rows:] == 255).all()
    assert (mask[:, columns:] == 255).all()
    assert set(np.unique(mask[:rows, :columns])) == {0, 7}
    given = np.array([[y0, x0, y1, x1], [0, 0, height, width]], float)
    boxes, labels = canonical_boxes(given, np.arange(2), (height, width), canonical)
    assert labels.tolist() == [0, 1]
    np.testing.assert_allclose(boxes[1], [0, 0, rows, columns], rtol=1e-6)
    ys, xs = np.nonzero(mask == 7)
    inside = [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]
    np.testing.assert_allclose(boxes[0], inside, atol=0.5)


def test_batches_say_where_the_picture_is(data_config, folder):
    for fit in ("crop", "letterbox"):
        config = data_config("folder", folder, 8, fit=fit)
        kept, lazy = load(config, "train"), load(config, "train", memory_limit_bytes=0)
        assert_same_batch(everything(kept), everything(lazy))
        batch = everything(kept.take(np.arange(3, 15)))
        for image, content, size in zip(
            batch["image"], batch["content"], batch["original_size"], strict=True
        ):
            share = size / size.max() if fit == "letterbox" else 1
            np.testing.assert_array_equal(content, np.rint(8 * share * np.ones(2)))
            assert not image[content[0] :].any()
            assert not image[:, content[1] :].any()
    digits = everything(load(data_config("digits", fit="letterbox"), "test"))
    assert (digits["content"] == 8).all()


def test_fits_that_do_not_go_together_are_refused(data_config, folder):
    with pytest.raises(UserError, match=r"--config\.data\.fit=stretch is unknown"):
        load(data_config("folder", folder, 8, fit="stretch"), "train")
    config = data_config("saturation", fit="letterbox")
    config.compose = {"examples": 4, "side": 1, "bits": 3, "seed": 0}
    with pytest.raises(UserError, match=r"--config\.data\.fit=letterbox is not for 'saturation'"):
        load(config, "train")
    corruption = corruption_group()
    corruption.name = "gamma"
    source = load(data_config("folder", folder, 8, fit="letterbox"), "train")
    for order in ("corrupt_aug", "no_aug"):
        corruption.order = order
        with pytest.raises(UserError, match=r"name=gamma before augmentation .*fit=crop, or"):
            corrupted(source, corruption, 8)
    corruption.order = "aug_corrupt"
    assert corrupted(source, corruption, 8) is source


def test_views_larger_than_the_images_are_refused_where_sizes_vary(data_config, folder):
    source = load(data_config("folder", folder, 8, validation_fraction=0.5), "train")
    check_view_size(source, 8)
    with pytest.raises(UserError, match=r"data\.image_size=8 is below the 9 pixels .*at least 9"):
        check_view_size(source, 9)
    check_view_size(load(data_config("digits"), "train"), 32)


# Masks.


@pytest.mark.parametrize(
    ("height", "width", "target"), [(18, 24, 7), (24, 18, 7), (9, 9, 9), (5, 8, 13), (31, 57, 10)]
)
def test_masks_take_the_pixel_that_their_centre_lies_in(tmp_path, height, width, target):
    mask = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
    found = decode_mask(str(tmp_path / "mask.png"), crop(target, target), (height, width), "it")
    side = min(height, width)
    centres = (np.arange(target) + 0.5) * side / target
    rows = np.floor((height - side) / 2 + centres).astype(int)
    columns = np.floor((width - side) / 2 + centres).astype(int)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, mask[np.ix_(rows, columns)])


def test_a_mask_is_aligned_with_its_image(tmp_path):
    y, x = np.mgrid[:60, :90]
    disc = ((y - 25) ** 2 + (x - 50) ** 2 < 20**2).astype(np.uint8)
    PIL.Image.fromarray(disc).save(tmp_path / "mask.png")
    mask = decode_mask(str(tmp_path / "mask.png"), crop(30, 30), (60, 90), "it")
    image = np.asarray(resize(PIL.Image.fromarray(disc * 255), 30, 30)) > 127
    # A shift by one canonical pixel moves 40 pixels of the border.
    assert np.sum(mask != image) < 20
    assert np.sum(np.roll(mask, 1, 1) != image) > 30


def test_palette_and_binary_masks_are_read_as_classes(tmp_path):
    classes = np.arange(16, dtype=np.uint8).reshape(4, 4)
    palette = PIL.Image.fromarray(classes)
    palette.putpalette(list(range(255, -1, -1)) * 3)
    assert palette.mode == "P"
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(
        decode_mask(str(tmp_path / "palette.png"), crop(4, 4), (4, 4), "it"), classes
    )
    PIL.Image.fromarray(classes % 2 == 1).save(tmp_path / "binary.png")
    np.testing.assert_array_equal(
        decode_mask(str(tmp_path / "binary.png"), crop(4, 4), (4, 4), "it"), classes % 2
    )


@pytest.mark.parametrize(
    ("mode", "size", "message"),
    [("RGB", (4, 4), "mode RGB"), ("I;16", (4, 4), "mode I;16"), ("L", (5, 4), "4 x 5 pixels")],
)
def test_other_masks_are_refused_in_words(tmp_path, mode, size, message):
    PIL.Image.new(mode, size).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=f"it is a mask of .*{message}|it is a mask of {message}"):
        decode_mask(str(tmp_path / "mask.png"), crop(4, 4), (4, 4), "it")
