import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_compilation import at_once, quick_jit

from jaxssl.augment import ops, spatial
from jaxssl.augment.resample import resized_crop

_cut_out = quick_jit(spatial.cut_out)
_cut_outs = quick_jit(jax.vmap(spatial.cut_out, (None, 0)))
_blur_out = quick_jit(spatial.blur_out, static_argnums=3)


@quick_jit
def _patches(seed, area):
    keys = jax.random.split(jax.random.key(seed), 20)
    return jax.vmap(lambda key: spatial.patch_boxes(key, 32, 29, area=area))(keys)


def patches(seed, area):
    """Twenty pairs of (whole image, patch) for an image of 32 x 29."""
    return tuple(map(np.asarray, _patches(seed, np.float32(area))))


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(np.random.default_rng(0).random((32, 29, 3), np.float32))


BOXES = [(0, 0, 32, 29), (3, 5, 12, 14), (2.25, 5.7, 13.6, 17.05), (7.4, 3.1, 7.9, 3.6)]


def coverage(box, shape):
    """By hand, pixel by pixel."""
    covered = np.zeros(shape[:2])
    for y in range(shape[0]):
        for x in range(shape[1]):
            tall = max(0.0, min(y + 1, box[2]) - max(y, box[0]))
            covered[y, x] = tall * max(0.0, min(x + 1, box[3]) - max(x, box[1]))
    return covered[..., None]


@pytest.mark.parametrize("box", BOXES)
def test_cut_out_blackens_the_box_and_nothing_else(image, box):
    seen = np.asarray(_cut_out(image, np.float32(box)))
    covered = coverage(box, image.shape)
    np.testing.assert_allclose(seen, np.asarray(image) * (1 - covered), atol=1e-6)
    assert (seen[covered[..., 0] == 0] == np.asarray(image)[covered[..., 0] == 0]).all()
    assert (seen[covered[..., 0] == 1] == 0).all()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.floats(0.01, 0.9), st.integers(0, 2**31 - 1))
def test_the_black_area_is_exactly_the_patchs(fraction, seed):
    _, patch = patches(seed, fraction)
    lit = _cut_outs(np.ones((32, 29, 1), np.float32), np.float32(patch))
    black = 1 - np.float64(lit).mean(axis=(1, 2, 3))
    assert np.abs(black - fraction).max() <= 1e-6


@pytest.mark.parametrize("box", BOXES)
def test_blur_out_blurs_the_box_and_nothing_else(image, box):
    seen = np.asarray(_blur_out(image, np.float32(box), np.float32(3), 9))
    blurred = np.float64(at_once(ops.gaussian_blur)(image, 3.0, 9))
    covered = coverage(box, image.shape)
    assert np.abs(blurred - image).max() > 0.3
    expected = covered * blurred + (1 - covered) * np.float64(image)
    np.testing.assert_allclose(seen, expected, atol=1e-6)
    assert (seen[covered[..., 0] == 0] == np.asarray(image)[covered[..., 0] == 0]).all()


def test_cutout_blur_is_patch_augmentation_as_the_blur_vanishes(image):
    whole, patch = (box[0] for box in patches(0, 0.4))
    sigmas = np.float32([3.0, 0.5, 0.3, 0.2, 0.0])
    blurred = [np.asarray(_blur_out(image, patch, sigma, 9)) for sigma in sigmas]
    differences = [np.abs(first - np.asarray(image)).max() for first in blurred]
    assert differences == sorted(differences, reverse=True)
    assert differences[0] > 0.3
    assert 0 < differences[3] < 1e-4
    assert differences[4] == 0
    # Both views, pixel by pixel: view 1 is the whole image, view 2 the patch of the image.
    crop = quick_jit(
        lambda image, box: resized_crop(image, box, 9, filter="bilinear", antialias=True)
    )
    for first in (blurred[0], blurred[4]):
        pair = [np.array_equal(crop(first, box), crop(image, box)) for box in (whole, patch)]
        assert pair == [first is blurred[4]] * 2


def test_no_blur_changes_no_bit(image):
    for patch in [*BOXES, *patches(0, 0.4)[1]]:
        np.testing.assert_array_equal(_blur_out(image, np.float32(patch), np.float32(0), 9), image)


def test_kernels_that_do_not_suit_the_image_are_refused(image):
    with pytest.raises(ValueError, match="blur kernel of 4 does not suit"):
        spatial.blur_out(image, jnp.float32(BOXES[0]), 1.0, 4)


# --- measures of two boxes


def test_centre_distance_and_intersection():
    rng = np.random.default_rng(0)
    corner, side = rng.uniform(0, 20, (2, 5, 7, 2)), rng.uniform(1, 20, (2, 5, 7, 2))
    box1, box2 = np.float32(np.concatenate([corner, corner + side], axis=-1))
    seen = quick_jit(spatial.centre_distance)(box1, box2)
    expected = np.hypot(*np.moveaxis((corner + side / 2)[0] - (corner + side / 2)[1], -1, 0))
    assert seen.shape == (5, 7)
    np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-5)
    common = quick_jit(spatial.intersection_area)(box1, box2)
    stop = np.minimum(*(corner + side))
    expected = np.prod(np.maximum(stop - np.maximum(*corner), 0), axis=-1)
    assert 0 < (expected == 0).sum() < 35
    np.testing.assert_allclose(common, expected, rtol=1e-5, atol=1e-4)


def test_centre_distance_is_a_number_for_one_pair():
    first, second = jnp.float32([0, 0, 4, 4]), jnp.float32([3, 4, 7, 8])
    assert spatial.centre_distance(first, second) == 5.0
    assert spatial.centre_distance(first, first) == 0.0
    assert spatial.intersection_area(first, second) == 0.0
    assert spatial.intersection_area(first, first) == 16.0
