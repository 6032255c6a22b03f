import colorsys
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from quick_compilation import AtOnce, quick_jit
from scipy import ndimage, stats
from sklearn.datasets import load_sample_images
from support import unchecked

import jaxssl.augment.ops
from jaxssl.augment.augmentation import simclr_cifar
from jaxssl.errors import UserError

ops = AtOnce(jaxssl.augment.ops)
LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture(scope="module")
def image():
    """Random colours, and those at which a hue is undefined or ambiguous."""
    image = np.random.default_rng(0).random((9, 7, 3), np.float32)
    image[0] = [
        (0, 0, 0), (1, 1, 1), (0.4, 0.4, 0.4), (1, 0, 0), (1, 1, 0), (0, 0.5, 0.5), (0.3, 0.3, 0.9)
    ]  # fmt: skip
    return jnp.asarray(image)


@pytest.fixture(scope="module")
def photo():
    """8-bit, for Pillow."""
    return np.random.default_rng(1).integers(0, 256, (12, 10, 3), np.uint8)


def unit(photo):
    return jnp.asarray(photo, jnp.float32) / 255


# --- float64 references from the definitions


def blend(image, target, factor):
    return np.clip(factor * image + (1 - factor) * target, 0, 1)


def brightness(image, factor):
    return blend(image, 0.0, factor)


def contrast(image, factor):
    return blend(image, (image @ LUMA).mean(), factor)


def saturation(image, factor):
    return blend(image, (image @ LUMA)[..., None], factor)


def hue(image, shift):
    def one(rgb):
        h, s, v = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb((h + shift) % 1.0, s, v)

    return np.clip(np.array([one(rgb) for rgb in image.reshape(-1, 3)]).reshape(image.shape), 0, 1)


REFERENCES = (brightness, contrast, saturation, hue)
ADJUST = (ops.adjust_brightness, ops.adjust_contrast, ops.adjust_saturation, ops.adjust_hue)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("amount", [0.0, 0.37, 1.0, 1.8])
def test_colour_operations_against_float64(image, number, amount):
    amount = amount - 0.58 if number == ops.HUE else amount
    seen = ADJUST[number](image, jnp.float32(amount))
    expected = REFERENCES[number](np.float64(image), np.float64(np.float32(amount)))
    np.testing.assert_allclose(seen, expected, atol=2e-6)
    assert np.abs(expected - image).max() > 0.1 or amount == 1.0


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("factor", [0.3, 1.6])
def test_factors_are_pillows(photo, number, factor):
    enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[number]
    expected = np.asarray(enhance(Image.fromarray(photo)).enhance(factor))
    seen = 255 * np.asarray(ADJUST[number](unit(photo), factor))
    # Pillow rounds the luma and its mean to whole numbers and cuts the result off.
    assert np.abs(seen - expected).max() < 1.5


@pytest.mark.parametrize("steps", [-100, -25, 25, 60])
def test_hue_is_pillows_to_its_quantisation(photo, steps):
    hsv = np.array(Image.fromarray(photo).convert("HSV"))
    hsv[..., 0] = (hsv[..., 0].astype(int) + steps) % 256
    expected = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    seen = 255 * np.asarray(ops.adjust_hue(unit(photo), steps / 256))
    # A step of Pillow's 8-bit hue is 6 / 256 of the chroma.
    assert np.abs(seen - expected).max() < 9
    assert np.abs(seen - expected).mean() < 2


def test_a_third_of_the_hue_circle_permutes_the_channels(image):
    np.testing.assert_allclose(
        ops.adjust_hue(image, 1 / 3), np.asarray(image)[..., [2, 0, 1]], atol=1e-6
    )


# --- hue in YIQ

YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def hue_yiq(image, shift):
    """(I, Q) as a complex number, turned."""
    y, i, q = np.moveaxis(image @ YIQ.T, -1, 0)
    turned = (i + 1j * q) * np.exp(-2j * np.pi * shift)
    yiq = np.stack([y, turned.real, turned.imag], axis=-1)
    return np.clip(np.linalg.solve(YIQ, yiq[..., None])[..., 0], 0, 1)


@pytest.mark.parametrize("shift", [-0.4, -0.1, 0.0, 0.07, 0.5])
def test_hue_in_yiq_against_float64(image, shift):
    seen = ops.adjust_hue_yiq(image, jnp.float32(shift))
    np.testing.assert_allclose(seen, hue_yiq(np.float64(image), np.float32(shift)), atol=2e-6)
    assert np.abs(seen - image).max() > 0.1 or shift == 0.0


def test_hue_in_yiq_turns_as_in_hsv_and_keeps_gray_and_luma():
    primaries = 0.4 + 0.1 * jnp.eye(3)[None]
    for turn in (ops.adjust_hue, ops.adjust_hue_yiq):  # red to green to blue to red
        assert np.argmax(turn(primaries, 1 / 3)[0], axis=-1).tolist() == [1, 2, 0]
    seen = ops.adjust_hue_yiq(primaries, 0.2)  # nothing is clipped
    np.testing.assert_allclose(ops.luma(seen), ops.luma(primaries), atol=1e-6)
    gray = jnp.broadcast_to(jnp.linspace(0, 1, 5)[:, None, None], (5, 1, 3))
    np.testing.assert_allclose(ops.adjust_hue_yiq(gray, 0.3), gray, atol=1e-6)


def test_how_far_hue_in_yiq_is_from_hue_in_hsv_on_photographs():
    """The figures of its docstring."""
    means = []
    for photograph in load_sample_images().images:
        image = unit(photograph[::4, ::4])
        for shift in (-0.1, 0.1):
            hsv, yiq = ops.adjust_hue(image, shift), ops.adjust_hue_yiq(image, shift)
            differences = (hsv - yiq, hsv - image, yiq - image)
            means.append([float(jnp.abs(difference).mean()) for difference in differences])
    np.testing.assert_allclose(np.mean(means, axis=0), [0.046, 0.039, 0.055], atol=1e-3)


def test_colour_jitter_turns_the_hue_in_the_space_that_is_asked_for(image):
    jitter = jitter_of((2, 3, 0, 1))
    seen = ops.color_jitter(image, jitter, "yiq")
    expected = np.float64(image)
    for reference, amount in ((saturation, 1.7), (hue_yiq, 0.15), (brightness, 1.4)):
        expected = reference(expected, amount)
    np.testing.assert_allclose(seen, contrast(expected, 0.6), atol=5e-6)
    assert np.abs(seen - ops.color_jitter(image, jitter)).max() > 0.1


def test_a_recipe_names_its_hue_space():
    recipe = simclr_cifar(8)[0]
    assert recipe.hue_space == "hsv"
    recipe = dataclasses.replace(recipe, hue_space="yiq")
    object.__setattr__(recipe, "hue_space", "hsl")  # the type check of the tests would be first
    with pytest.raises(UserError, match="hue_space='hsl' must be one of hsv, yiq"):
        recipe.__post_init__()


def test_grayscale_is_pillows_luma_in_three_channels(photo):
    seen = np.asarray(ops.grayscale(unit(photo)))
    assert (seen[..., 0] == seen[..., 1]).all()
    assert (seen[..., 0] == seen[..., 2]).all()
    expected = np.asarray(Image.fromarray(photo).convert("L"))
    assert np.abs(255 * seen[..., 0] - expected).max() < 0.51
    np.testing.assert_allclose(seen[..., 0], photo / 255 @ LUMA, atol=1e-6)


def test_solarize_is_pillows(photo):
    expected = np.asarray(ImageOps.solarize(Image.fromarray(photo), threshold=128))
    np.testing.assert_allclose(ops.solarize(unit(photo), 0.5), expected / 255, atol=1e-6)


def test_flip(image):
    np.testing.assert_array_equal(ops.flip(image, jnp.array(True)), image[:, ::-1])
    np.testing.assert_array_equal(ops.flip(image, jnp.array(False)), image)


# --- colour jitter


def jitter_of(order, brightness=1.4, contrast=0.6, saturation=1.7, hue=0.15):
    return ops.ColorJitter(
        *(jnp.float32(x) for x in (brightness, contrast, saturation, hue)),
        order=jnp.array(order, jnp.int32),
    )


def test_colour_jitter_in_every_order_against_one_operation_after_the_other(image):
    orders = list(itertools.permutations(range(4)))
    jitters = jax.vmap(jitter_of)(jnp.array(orders, jnp.int32))
    seen = quick_jit(jax.vmap(ops.color_jitter, in_axes=(None, 0)))(image, jitters)
    expected = []
    for order in orders:
        result = np.float64(image)
        for number in order:
            amount = float(
                (jitters.brightness, jitters.contrast, jitters.saturation, jitters.hue)[number][0]
            )
            result = REFERENCES[number](result, amount)
        expected.append(result)
    np.testing.assert_allclose(seen, expected, atol=5e-6)
    # The order matters: no two give the same.
    different = [np.abs(a - b).max() for a, b in itertools.combinations(expected, 2)]
    assert min(different) > 1e-3


def test_jitter_that_changes_nothing(image):
    seen = ops.color_jitter(image, jitter_of((2, 3, 0, 1), 1.0, 1.0, 1.0, 0.0))
    np.testing.assert_allclose(seen, image, atol=1e-6)


def test_drawn_jitter_is_uniform_in_factors_shift_and_order():
    keys = jax.random.split(jax.random.key(0), 4800)
    strengths = {"brightness": 0.4, "contrast": 0.8, "saturation": 1.5, "hue": 0.1}
    drawn = quick_jit(jax.vmap(lambda key: ops.draw_color_jitter(key, **strengths)))(keys)
    bounds = {
        "brightness": (0.6, 1.4),
        "contrast": (0.2, 1.8),
        "saturation": (0.0, 2.5),
        "hue": (-0.1, 0.1),
    }
    columns = []
    for name, (low, high) in bounds.items():
        values = np.float64(getattr(drawn, name))
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3, name
        columns.append(values)
    order = np.asarray(drawn.order)
    assert (np.sort(order, axis=1) == np.arange(4)).all()
    counts = np.unique(order @ 4 ** np.arange(4), return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3
    # No draw tells anything of another: 1 / sqrt(4800) is .014.
    correlations = np.corrcoef(np.stack([*columns, *order.T[:3]]))
    assert np.abs(correlations[:4, :4] - np.eye(4)).max() < 0.06
    assert np.abs(correlations[:4, 4:]).max() < 0.06


# --- blur


@pytest.mark.parametrize("kernel_size", [3, 7, 23])
@pytest.mark.parametrize("sigma", [0.1, 0.9, 2.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_blur_against_scipy(kernel_size, sigma, channels):
    image = np.random.default_rng(2).random((14, 12, channels), np.float32)
    offsets = np.arange(kernel_size) - kernel_size // 2
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    expected = np.float64(image)
    for axis in (0, 1):
        expected = ndimage.correlate1d(expected, weights / weights.sum(), axis=axis, mode="mirror")
    np.testing.assert_allclose(
        ops.gaussian_blur(jnp.asarray(image), jnp.float32(sigma), kernel_size), expected, atol=1e-6
    )


def test_blur_of_no_width_changes_no_bit(image):
    np.testing.assert_array_equal(ops.gaussian_blur(image, jnp.float32(0), 5), image)


@pytest.mark.parametrize("kernel_size", [4, 15])
def test_blur_refuses_a_kernel_that_cannot_be(image, kernel_size):
    with pytest.raises(ValueError, match=f"kernel of {kernel_size} .*odd"):
        ops.gaussian_blur(image, 1.0, kernel_size)


def test_sigma_is_uniform():
    keys = jax.random.split(jax.random.key(3), 2000)
    drawn = np.float64(quick_jit(jax.vmap(lambda key: ops.draw_sigma(key, (0.1, 2.0))))(keys))
    assert stats.kstest(drawn, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


# --- common to all


@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_an_operation_is_applied_with_its_probability(p):
    keys = jax.random.split(jax.random.key(4), 4000)
    applied = quick_jit(jax.vmap(lambda key: ops.draw_applied(key, p)))(keys)
    share = float(np.mean(applied))
    assert abs(share - p) <= 4 * np.sqrt(p * (1 - p) / 4000)


def test_random_operations_are_a_draw_and_an_operation(image):
    key = jax.random.key(5)
    strengths = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    np.testing.assert_array_equal(
        ops.random_color_jitter(key, image, **strengths),
        ops.color_jitter(image, ops.draw_color_jitter(key, **strengths)),
    )
    np.testing.assert_array_equal(
        ops.random_gaussian_blur(key, image, sigma=(0.1, 2.0), kernel_size=5),
        ops.gaussian_blur(image, ops.draw_sigma(key, (0.1, 2.0)), 5),
    )
    np.testing.assert_array_equal(
        ops.random_flip(key, image, 0.5), ops.flip(image, ops.draw_applied(key, 0.5))
    )


@pytest.mark.parametrize(
    "operation",
    [
        lambda image: unchecked(ops.grayscale)(image),
        *(lambda image, f=f: unchecked(f)(image, 1.0) for f in (*ADJUST, ops.adjust_hue_yiq)),
        lambda image: unchecked(ops.color_jitter)(image, jitter_of((0, 1, 2, 3))),
    ],
)
@pytest.mark.parametrize("channels", [1, 4])
def test_colour_operations_name_the_channels_they_cannot_take(operation, channels):
    with pytest.raises(ValueError, match=f"3 channels, and got {channels}: .*jitter_p=0"):
        operation(jnp.zeros((4, 4, channels)))
