import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from quick_compilation import quick_jit
from scipy import stats

from jaxssl.augment.resample import GRID, random_crop_box, resized_crop

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}


_crop = quick_jit(resized_crop, static_argnames=("size", "filter", "antialias"))


def crop(image, box, size, filter="bicubic", antialias=True):
    image, box = jnp.asarray(image, jnp.float32), jnp.asarray(box, jnp.float32)
    return np.asarray(_crop(image, box, size, filter=filter, antialias=antialias))


def pillow(image, box, size, filter):
    """Pillow's crop, then its resize, on float channels."""
    y0, x0, y1, x1 = box
    channels = [
        Image.fromarray(np.ascontiguousarray(image[..., c]))  # float32: mode "F", no rounding
        .crop((x0, y0, x1, y1))
        .resize((size, size), PILLOW[filter])
        for c in range(image.shape[-1])
    ]
    return np.clip(np.stack([np.asarray(c) for c in channels], axis=-1), 0, 1)


def kernel(x, filter):
    x = abs(x)
    if filter == "bilinear":
        return max(0.0, 1 - x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def matrix(start, stop, length, size, filter, antialias):
    """Row i: the weights of output pixel i, from the definition, in float64."""
    scale = (stop - start) / size
    stretch = max(scale, 1.0) if antialias else 1.0
    weights = np.zeros((size, length))
    for i in range(size):
        centre = start + (i + 0.5) * scale
        for j in range(int(np.floor(start)), int(np.ceil(stop))):
            weights[i, j] = kernel((j + 0.5 - centre) / stretch, filter)
    return weights / weights.sum(axis=1, keepdims=True)


def reference(image, box, size, filter, antialias):
    height, width, _ = image.shape
    rows = matrix(box[0], box[2], height, size, filter, antialias)
    columns = matrix(box[1], box[3], width, size, filter, antialias)
    return np.clip(np.einsum("ih,hwc,jw->ijc", rows, np.float64(image), columns), 0, 1)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).random((40, 29, 3), np.float32)


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [9, 32])
@pytest.mark.parametrize("box", [(0, 0, 40, 29), (3, 5, 12, 11), (7, 0, 40, 6), (20, 28, 21, 29)])
def test_whole_pixel_boxes_are_pillows_crop_then_resize(image, filter, size, box):
    np.testing.assert_allclose(
        crop(image, box, size, filter), pillow(image, box, size, filter), atol=2e-6
    )


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [9, 32])
@pytest.mark.parametrize(
    "box", [(0, 0, 40, 29), (2.25, 5.7, 36.6, 28.4), (11.3, 10.2, 15.9, 12.1), (7.4, 3.1, 7.9, 3.8)]
)
def test_fractional_boxes_against_the_definition(image, filter, antialias, size, box):
    box = tuple(float(b) for b in np.float32(box))
    np.testing.assert_allclose(
        crop(image, box, size, filter, antialias),
        reference(image, box, size, filter, antialias),
        # float32 places the taps to 2e-6 of a pixel, and the test image is white noise.
        atol=1e-5,
    )


def test_antialiasing_matters_only_when_shrinking(image):
    shrunk, grown = (0, 0, 40, 29), (4, 4, 12, 12)
    assert np.abs(crop(image, shrunk, 9) - crop(image, shrunk, 9, antialias=False)).max() > 0.1
    np.testing.assert_allclose(
        crop(image, grown, 9), crop(image, grown, 9, antialias=False), atol=1e-6
    )


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("noise", [-2e-6, 0.0, 2e-6])
def test_nothing_outside_the_box_leaks_in(image, filter, antialias, noise):
    hidden = np.full_like(image, np.nan)
    hidden[4:20, 3:16] = image[4:20, 3:16]
    box = (4 - noise, 3 + noise, 20 + noise, 16 - noise)
    for size in (9, 32):
        seen = crop(hidden, box, size, filter, antialias)
        exact = crop(image, (4, 3, 20, 16), size, filter, antialias)
        np.testing.assert_allclose(seen, exact, atol=2e-5)


def test_fractional_boxes_read_the_pixels_that_they_overlap_and_no_others(image):
    hidden = np.full_like(image, np.nan)
    hidden[4:20, 3:16] = image[4:20, 3:16]
    assert np.isfinite(crop(hidden, (4.5, 3.9, 19.1, 15.5), 32)).all()
    assert not np.isfinite(crop(hidden, (3.9, 3.9, 19.1, 15.5), 32)).all()


@pytest.mark.parametrize("size", [40, 13])
def test_the_whole_image_at_its_own_size_is_unchanged_and_constants_stay(size):
    image = np.random.default_rng(1).random((size, size, 5), np.float32)
    box = (0, 0, size, size)
    np.testing.assert_array_equal(crop(image, box, size), image)
    constant = np.full_like(image, 0.3)
    np.testing.assert_allclose(crop(constant, (1.3, 2.2, 9.7, 11.1), 21), 0.3, rtol=1e-6)


def test_overshoot_is_clipped():
    step = np.repeat(np.float32([0, 0, 1, 1]), 4).reshape(4, 4, 1)
    seen = crop(step, (0, 0, 4, 4), 16)
    assert (seen.min(), seen.max()) == (0, 1)
    unclipped = matrix(0, 4, 4, 16, "bicubic", True) @ step[:, 0, 0]
    assert unclipped.max() > 1.05  # the filter does overshoot here


# --- random boxes


def torchvision_boxes(rng, n, height, width, scale, ratio=(3 / 4, 4 / 3)):
    """RandomResizedCrop.get_params as documented, in Python."""
    boxes = []
    for _ in range(n):
        for _ in range(10):
            area = height * width * rng.uniform(*scale)
            aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
            w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
                break
        else:
            h = min(height, round(width / ratio[0]))
            w = min(width, round(height * ratio[1]))
            y, x = (height - h) // 2, (width - w) // 2
        boxes.append((y, x, y + h, x + w))
    return np.array(boxes, np.float64)


def draw_boxes(n, height, width, scale, subpixel):
    keys = jax.random.split(jax.random.key(0), n)

    def draw(key):
        return random_crop_box(key, height, width, scale=scale, subpixel=subpixel)

    return np.float64(quick_jit(jax.vmap(draw))(keys))


def quantities(boxes):
    heights, widths = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return {
        "area": heights * widths,
        "aspect": widths / heights,
        "top": boxes[:, 0],
        "left": boxes[:, 1],
        "centre": boxes[:, 0] + heights / 2,
    }


@pytest.mark.parametrize("subpixel", [False, True])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (60, 40)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 1.0)])
def test_boxes_have_torchvisions_distribution(height, width, scale, subpixel):
    n = 10_000
    # Fractional boxes are compared on an image so large that whole pixels are as good.
    zoom = 100 if subpixel else 1
    expected = torchvision_boxes(np.random.default_rng(0), n, height * zoom, width * zoom, scale)
    boxes = draw_boxes(n, height, width, scale, subpixel)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (height, width)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    grid = GRID if subpixel else 1
    assert (boxes * grid == np.round(boxes * grid)).all()
    for name, values in quantities(expected / zoom).items():
        # Two samples of one law exceed .0276 once in 1000; a uniform aspect, in place of a
        # log-uniform one, differs by .07.
        distance = stats.ks_2samp(quantities(boxes)[name], values).statistic
        assert distance < 0.0276, (name, distance)


@pytest.mark.parametrize(
    ("height", "width", "subpixel", "expected"),
    [
        (10, 100, False, (0, 43, 10, 56)),
        (100, 10, False, (43, 0, 56, 10)),
        (12, 120, True, (0, 52, 12, 68)),
    ],
)
def test_the_central_box_when_none_fits(height, width, subpixel, expected):
    boxes = draw_boxes(50, height, width, (0.9, 1.0), subpixel)
    np.testing.assert_array_equal(boxes, np.tile(expected, (50, 1)))


def test_one_valid_attempt_is_enough():
    """Of a scale that rarely fits, the share of fallbacks falls as the attempts rise."""
    keys = jax.random.split(jax.random.key(1), 2000)

    def fallbacks(attempts):
        def draw(key):
            return random_crop_box(key, 32, 32, scale=(0.9, 1.0), attempts=attempts, subpixel=True)

        boxes = quick_jit(jax.vmap(draw))(keys)
        return float(np.mean(np.all(np.asarray(boxes) == (0, 0, 32, 32), axis=1)))

    one, three = fallbacks(1), fallbacks(3)
    assert 0.5 < one < 0.99
    assert three == pytest.approx(one**3, abs=0.05)
