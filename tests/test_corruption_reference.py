"""Shot noise, defocus blur and JPEG against SciPy, Pillow, OpenCV's numbers and the theory."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from jaxssl.corruptions import (
    CIFAR_C,
    IMAGENET_C,
    defocus_blur,
    defocus_kernel,
    draw_uniforms,
    jpeg,
    shot_noise,
)

PHOTONS = sorted({*CIFAR_C.shot_noise, *IMAGENET_C.shot_noise})
DISKS = [*CIFAR_C.defocus_blur, *IMAGENET_C.defocus_blur]
LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)  # every level once


def uniforms_of(seed, shape):
    return draw_uniforms(np.random.Philox(key=seed).random_raw, shape)


def photograph(shape, seed=0):
    """Smooth, with noise, from black to white: uint8."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), (3, 3, 0), mode="wrap")
    smooth -= smooth.mean()
    scene = 128 + 70 * smooth / smooth.std() + rng.normal(scale=12, size=shape)
    return np.uint8(np.clip(scene, 0, 255))


# Shot noise


@pytest.mark.parametrize("photons", PHOTONS)
def test_shot_noise_is_the_quantile_of_the_poisson_distribution(photons):
    images = np.broadcast_to(LEVELS, (16, 16, 40))
    uniforms = np.maximum(uniforms_of(photons, images.shape), 2.0**-23)  # SciPy calls 0 a count -1
    uniforms[..., 0], uniforms[..., 1] = 2.0**-23, 1 - 2.0**-23
    count = stats.poisson.ppf(np.float64(uniforms), photons * (images / 255))
    expected = np.clip(count / photons, 0, 1)
    real = shot_noise(images / 255, uniforms, photons)
    assert real.dtype == np.float64
    np.testing.assert_allclose(real, expected, atol=1e-15)
    # As the benchmark's code stores it: np.uint8 cuts the fraction off.
    np.testing.assert_array_equal(
        shot_noise(images, uniforms, photons), np.uint8(np.clip(count / photons, 0, 1) * 255)
    )


@pytest.mark.parametrize(("photons", "level"), [(500, 128), (100, 51), (12, 40), (3, 10)])
def test_shot_noise_has_the_mean_and_variance_of_the_theory(photons, level):
    images = np.full((300, 300, 3), level / 255, np.float32)
    rate = photons * level / 255
    assert stats.poisson.sf(photons, rate) < 2e-5  # so that clipping does not tell
    noisy = np.float64(shot_noise(images, uniforms_of(0, images.shape), photons)) * photons
    mean_error = np.sqrt(rate / noisy.size)
    variance_error = np.sqrt((rate + 2 * rate**2) / noisy.size)  # fourth moment: rate + 3 rate^2
    assert abs(noisy.mean() - rate) < 4 * mean_error
    assert abs(noisy.var() - rate) < 4 * variance_error


def test_black_stays_black_and_nothing_exceeds_white():
    images = np.stack([np.zeros((4, 4, 1), np.uint8), np.full((4, 4, 1), 255, np.uint8)])
    last = np.full(images.shape, np.nextafter(np.float32(1), np.float32(0)))
    first = np.zeros_like(last)
    np.testing.assert_array_equal(shot_noise(images, last, 500), images)
    np.testing.assert_array_equal(shot_noise(images[1], first[1], 3), 0)  # e^-3 of it is black
    np.testing.assert_array_equal(shot_noise(images[1], first[1] + np.float32(0.05), 3), 85)


@pytest.mark.parametrize("kind", [np.uint8, np.float32, jnp.bfloat16])
@pytest.mark.parametrize("photons", [500, 5])
def test_numpy_and_jax_count_the_same_photons(photons, kind):
    images = photograph((16, 12, 3))[None].repeat(2, axis=0)
    if kind is not np.uint8:
        images = (images / 255 + 0.003).astype(kind)  # off the levels, white beyond 1
    uniforms = np.array(jax.random.uniform(jax.random.key(0), images.shape, jnp.float32))
    expected = shot_noise(images, uniforms, photons)
    compiled = jax.jit(jax.vmap(lambda image, u: shot_noise(image, u, photons)))
    corrupted = compiled(jnp.asarray(images), jnp.asarray(uniforms))
    assert corrupted.dtype == images.dtype
    np.testing.assert_array_equal(corrupted, expected)
    assert not np.array_equal(corrupted, images)


# Defocus blur


def reference_kernel(radius, alias):
    """arXiv:1903.12261's code in words of SciPy: its "mirror" is OpenCV's reflect-101."""
    reach, half = (8, 1) if radius <= 8 else (radius, 2)
    x, y = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
    disk = np.where(x * x + y * y <= radius * radius, 1.0, 0.0)
    weights = stats.norm.pdf(np.arange(-half, half + 1), scale=alias)
    weights /= weights.sum()
    softened = disk / disk.sum()
    for axis in (0, 1):
        softened = ndimage.correlate1d(softened, weights, axis=axis, mode="mirror")
    return softened


def reference_blur(images, radius, alias):
    kernel = reference_kernel(radius, alias)
    channels = [
        ndimage.correlate(images[..., c], kernel, mode="mirror") for c in range(images.shape[-1])
    ]
    return np.clip(np.stack(channels, axis=-1), 0, 1)


@pytest.mark.parametrize(("radius", "alias"), DISKS)
@pytest.mark.parametrize("shape", [(32, 24, 3), (7, 5, 1)])
def test_defocus_blur_is_the_mirrored_correlation(radius, alias, shape):
    levels = photograph(shape)
    exact = reference_blur(levels / 255, radius, alias)
    assert np.abs(exact - levels / 255).mean() > 1e-3  # it does something
    np.testing.assert_allclose(defocus_blur(levels / 255, radius, alias), exact, atol=1e-11)
    real = defocus_blur((levels / 255).astype(np.float32), radius, alias)
    assert real.dtype == np.float32
    np.testing.assert_allclose(real, exact, atol=1e-6)
    # np.uint8 of the exact number, or of one that is whole to a thousandth of a level.
    stored = defocus_blur(levels, radius, alias)
    cut = 255 * exact + 1e-3
    clear = np.abs(cut - np.rint(cut)) > 5e-4
    np.testing.assert_array_equal(stored[clear], np.uint8(cut)[clear])
    assert clear.mean() > 0.9
    assert np.abs(stored - 255 * exact).max() < 1


@pytest.mark.parametrize(("radius", "alias"), [CIFAR_C.defocus_blur[2], IMAGENET_C.defocus_blur[4]])
def test_defocus_blur_on_a_device_is_that_on_the_host(radius, alias):
    levels = np.stack([photograph((16, 20, 3), seed) for seed in range(2)])
    images = (levels / 255).astype(np.float32)
    blur = jax.jit(jax.vmap(lambda image: defocus_blur(image, radius, alias)))
    host = defocus_blur(images, radius, alias)
    np.testing.assert_allclose(blur(jnp.asarray(images)), host, atol=1e-6)
    stored, host = blur(jnp.asarray(levels)), defocus_blur(levels, radius, alias)
    assert stored.dtype == np.uint8
    assert np.abs(np.asarray(stored, int) - host).max() <= 1
    assert (stored != host).mean() < 1e-3
    with jax.enable_x64(True):
        exact = np.stack([reference_blur(image / 255, radius, alias) for image in levels])
        np.testing.assert_allclose(defocus_blur(jnp.asarray(levels / 255), radius, alias), exact)


def test_a_disk_that_touches_its_grid_weighs_more_than_one():
    for radius, alias in DISKS:
        total = {8: 1.012975, 10: 1.010786}.get(radius, 1.0)
        kernel = defocus_kernel(radius, alias)
        np.testing.assert_allclose(kernel.sum(), total, rtol=1e-6)
        assert kernel.max(axis=0).min() > 1e-12


@pytest.mark.parametrize("level", [0, 51, 100, 255])
def test_a_flat_image_keeps_its_level(level):
    images = np.full((3, 33, 20, 3), level, np.uint8)
    for radius, alias in DISKS[:8]:  # the last two weigh more than one
        np.testing.assert_array_equal(defocus_blur(images, radius, alias), images)
        device = defocus_blur(jnp.asarray(images[0]), radius, alias)
        np.testing.assert_array_equal(device, images[0])


def test_white_stays_white_under_a_disk_that_weighs_more_than_one():
    for white in (np.full((9, 9, 1), 255, np.uint8), np.ones((9, 9, 1), np.float32)):
        for kind in (np.asarray, jnp.asarray):
            np.testing.assert_array_equal(defocus_blur(kind(white), 10, 0.5), white)


# 255 times what OpenCV 5.0's filter2D makes of the 6x7 image below with the benchmark's disk for
# (radius, alias), to four decimals; the larger disk is wider than the image.
OPENCV = {
    (0.5, 0.6): [
        [47.3599, 103.4648, 123.5312, 100.7093, 163.4423, 183.5087, 154.0588],
        [74.9343, 115.4937, 80.0127, 123.0, 173.0738, 151.8396, 156.819],
        [116.2601, 158.4071, 107.5064, 135.0738, 126.8396, 140.1604, 125.1724],
        [143.4129, 179.9873, 135.0, 90.0127, 130.5802, 106.9262, 122.1673],
        [127.8991, 108.9262, 134.0738, 123.4198, 176.9873, 145.0, 104.6938],
        [141.3004, 92.5352, 83.4688, 131.4637, 150.8172, 184.639, 150.1205],
    ],
    (10.0, 0.5): [
        [133.0092, 133.157, 131.7481, 131.3143, 132.084, 132.0896, 129.9758],
        [132.8841, 132.9548, 132.5067, 131.7579, 131.9038, 130.5645, 129.9916],
        [133.9288, 134.111, 132.7457, 131.7816, 130.8747, 130.2254, 128.7279],
        [134.1497, 134.5846, 132.66, 131.4437, 130.4863, 129.4217, 128.2622],
        [134.0232, 133.656, 133.1775, 131.4982, 131.033, 129.3131, 128.1082],
        [135.1832, 133.224, 132.2754, 130.9484, 130.6231, 129.9083, 128.8257],
    ],
}


@pytest.mark.parametrize("disk", OPENCV)
def test_defocus_blur_gives_opencv_s_numbers(disk):
    row, column = np.indices((6, 7))
    image = np.uint8((37 * row + 101 * column + 13 * row * column) % 256)[..., None]
    np.testing.assert_allclose(
        255 * defocus_blur(image / 255, *disk)[..., 0], OPENCV[disk], atol=2e-4
    )


# JPEG


def by_pillow(image, quality):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="JPEG", quality=quality)
    return np.asarray(Image.open(stream))


@pytest.mark.parametrize("quality", [*CIFAR_C.jpeg, *IMAGENET_C.jpeg])
def test_jpeg_is_pillow_s(quality):
    images = np.stack([photograph((24, 20, 3), seed) for seed in range(4)]).reshape(2, 2, 24, 20, 3)
    corrupted = jpeg(images, quality)
    for where in np.ndindex(2, 2):
        np.testing.assert_array_equal(corrupted[where], by_pillow(images[where], quality))
        gray = images[where][..., :1]
        expected = by_pillow(gray[..., 0], quality)
        np.testing.assert_array_equal(jpeg(gray, quality)[..., 0], expected)
    real = jpeg((images / 255).astype(np.float32), quality)
    np.testing.assert_array_equal(real, (corrupted / 255).astype(np.float32))


def test_jpeg_loses_more_at_each_severity():
    image = photograph((32, 32, 3))
    for qualities in (CIFAR_C.jpeg, IMAGENET_C.jpeg):
        loss = [np.square(np.int32(jpeg(image, q)) - image).mean() for q in qualities]
        assert np.all(np.diff(loss) > 0)
