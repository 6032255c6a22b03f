"""Patch shuffling and gamma by their properties; what a config names; what is refused."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import unchecked

from jaxssl.corruptions import (
    CIFAR_C,
    CORRUPTIONS,
    IMAGENET_C,
    Corruption,
    defocus_blur,
    draw_permutation,
    draw_uniforms,
    gamma,
    global_shuffle,
    grayscale,
    inverse,
    jpeg,
    local_shuffle,
    shot_noise,
)

SHUFFLES = {"global": global_shuffle, "local": local_shuffle}
each_shuffle = pytest.mark.parametrize("shuffle", SHUFFLES.values(), ids=SHUFFLES)
draws = settings(max_examples=40, deadline=None, derandomize=True)


def words_of(seed):
    return np.random.Philox(key=seed).random_raw


def length(shuffle, shape, patches):
    height, width = shape[-3:-1]
    return patches**2 if shuffle is global_shuffle else height * width // patches**2


@st.composite
def scenes(draw):
    """Images [B, H, W, C], uint8 or float32, patches a side, and a seed."""
    patches, height, width, channels, batch = (draw(st.integers(1, 4)) for _ in range(5))
    seed = draw(st.integers(0, 2**32))
    shape = (batch, patches * height, patches * width, channels)
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    if draw(st.booleans()):
        images = images.astype(np.float32) / 255
    return images, patches, seed


def config(**changes):
    group = {"patches": 4, "per_image": False, "exponent": 2.5, "severity": 3, "constants": "cifar"}
    return SimpleNamespace(**{**group, **changes})


def pixels(images):
    """The pixels of each image as a sorted list: its multiset."""
    flat = images.reshape(len(images), -1, images.shape[-1])
    return [sorted(map(tuple, image.tolist())) for image in flat]


# The draws


@draws
@given(n=st.integers(2, 6), seed=st.integers(0, 2**64 - 1))
def test_a_drawn_permutation_is_one_and_moves_something(n, seed):
    sigma = draw_permutation(words_of(seed), n)
    assert sigma.dtype == np.int32
    np.testing.assert_array_equal(np.sort(sigma), np.arange(n))
    assert (sigma != np.arange(n)).any()
    np.testing.assert_array_equal(sigma, draw_permutation(words_of(seed), n))


def test_the_identity_is_drawn_again():
    stream = iter([[1, 2, 3], [5, 5, 5], [9, 4, 7]])
    sigma = draw_permutation(lambda n: np.array(next(stream), dtype=np.uint64), 3)
    np.testing.assert_array_equal(sigma, [1, 2, 0])
    np.testing.assert_array_equal(draw_permutation(words_of(0), 1), [0])


def test_permutations_are_uniform_over_all_but_the_identity():
    words = words_of(3)
    drawn = [tuple(draw_permutation(words, 3).tolist()) for _ in range(3000)]
    counts = [drawn.count(p) for p in set(drawn)]
    assert len(counts) == 5
    chi_square = sum((count - 600) ** 2 / 600 for count in counts)
    assert chi_square < 18.5  # 4 degrees of freedom: exceeded once in a thousand


def test_drawn_uniforms_are_multiples_of_2_to_the_minus_23_and_uniform():
    uniforms = draw_uniforms(words_of(1), (5, 7, 3))
    assert uniforms.dtype == np.float32
    np.testing.assert_array_equal(uniforms * 2**23, np.rint(uniforms * 2**23))
    many = draw_uniforms(words_of(2), (200, 200, 1)).reshape(-1)
    assert many.min() >= 0
    assert many.max() < 1
    histogram = np.histogram(many, bins=16, range=(0, 1))[0]
    assert ((histogram - 2500) ** 2 / 2500).sum() < 37.7  # 15 degrees of freedom: one in a thousand
    neighbours = np.corrcoef(many[::2], many[1::2])[0, 1]  # the two halves of one word
    assert abs(neighbours) < 3.5 / np.sqrt(many.size / 2)
    largest = draw_uniforms(lambda n: np.full(n, 2**64 - 1, dtype=np.uint64), (3,))
    np.testing.assert_array_equal(largest, np.float32(1 - 2.0**-23))


# Shuffles


def by_slices(images, sigma, patches, kind):
    """The definition, patch by patch."""
    height, width = images.shape[-3] // patches, images.shape[-2] // patches

    def patch(k):
        top, left = divmod(k, patches)
        return np.s_[..., top * height : (top + 1) * height, left * width : (left + 1) * width, :]

    shuffled = np.empty_like(images)
    for k in range(patches**2):
        if kind == "global":
            shuffled[patch(k)] = images[patch(sigma[k])]
        else:
            inside = images[patch(k)]
            flat = inside.reshape(*inside.shape[:-3], height * width, -1)
            shuffled[patch(k)] = flat[..., sigma, :].reshape(inside.shape)
    return shuffled


@pytest.mark.parametrize("kind", SHUFFLES)
@draws
@given(scene=scenes())
def test_shuffle_follows_its_definition_and_is_undone_by_the_inverse(kind, scene):
    images, patches, seed = scene
    shuffle = SHUFFLES[kind]
    sigma = draw_permutation(words_of(seed), length(shuffle, images.shape, patches))
    shuffled = shuffle(images, sigma, patches)
    assert shuffled.dtype == images.dtype
    np.testing.assert_array_equal(shuffled, by_slices(images, sigma, patches, kind))
    np.testing.assert_array_equal(shuffle(shuffled, inverse(sigma), patches), images)
    assert pixels(shuffled) == pixels(images)


@each_shuffle
@draws
@given(scene=scenes())
def test_a_permutation_an_image_is_that_of_each_image_alone(shuffle, scene):
    images, patches, seed = scene
    n = length(shuffle, images.shape, patches)
    words = words_of(seed)
    sigmas = np.stack([draw_permutation(words, n) for _ in images])
    shuffled = shuffle(images, sigmas, patches)
    for image, sigma, one in zip(images, sigmas, shuffled, strict=True):
        np.testing.assert_array_equal(one, shuffle(image, sigma, patches))
    np.testing.assert_array_equal(shuffle(shuffled, inverse(sigmas), patches), images)


@draws
@given(side=st.integers(2, 6), channels=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_the_ends_of_the_scale(side, channels, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2, side, side, channels), dtype=np.uint8)
    whole = np.zeros(1, dtype=np.int32)
    np.testing.assert_array_equal(global_shuffle(images, whole, 1), images)
    np.testing.assert_array_equal(local_shuffle(images, whole, side), images)
    sigma = draw_permutation(words_of(seed), side**2)
    np.testing.assert_array_equal(
        global_shuffle(images, sigma, side), local_shuffle(images, sigma, 1)
    )


@each_shuffle
@pytest.mark.parametrize("kind", [np.uint8, np.float32, jnp.bfloat16])
@pytest.mark.parametrize("per_image", [False, True])
def test_numpy_and_jax_shuffle_alike(shuffle, kind, per_image):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3)).astype(kind)
    n = length(shuffle, images.shape, 4)
    words = words_of(7)
    sigma = (
        np.stack([draw_permutation(words, n) for _ in images])
        if per_image
        else draw_permutation(words, n)
    )
    expected = shuffle(images, sigma, 4)
    compiled = jax.jit(shuffle, static_argnums=2)(jnp.asarray(images), jnp.asarray(sigma), 4)
    assert compiled.dtype == images.dtype
    np.testing.assert_array_equal(compiled, expected)
    # What the host drew meets what is on the device, and one image at a time is the same.
    np.testing.assert_array_equal(shuffle(jnp.asarray(images), sigma, 4), expected)
    axis = 0 if per_image else None
    mapped = jax.vmap(lambda image, sigma: shuffle(image, sigma, 4), in_axes=(0, axis))
    np.testing.assert_array_equal(mapped(jnp.asarray(images), jnp.asarray(sigma)), expected)
    undone = shuffle(compiled, inverse(jnp.asarray(sigma)), 4)
    np.testing.assert_array_equal(undone, images)


# Gamma


@draws
@given(exponent=st.floats(0.05, 8), channels=st.integers(1, 4))
def test_gamma_is_the_rounded_power(exponent, channels):
    images = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), (16, 16, channels))
    exact = 255 * (images / 255) ** exponent
    corrupted = gamma(images, exponent)
    assert corrupted.dtype == np.uint8
    assert np.abs(corrupted - exact).max() <= 0.5 + 1e-9
    real = gamma((images / 255).astype(np.float32), exponent)
    np.testing.assert_array_equal(real, (corrupted / 255).astype(np.float32))


def test_a_float_image_is_taken_at_the_nearest_level():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    off = (levels + np.where(levels % 2, 0.4, -0.4)) / 255
    expected = gamma(levels, 2.5) / 255
    np.testing.assert_array_equal(gamma(off, 2.5), expected)


def test_gamma_loses_levels_and_keeps_them_at_one():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    np.testing.assert_array_equal(gamma(levels, 1.0), levels)
    # x**2.5 is flat at the dark end and x**0.2 at the bright one: many levels become one.
    assert len(np.unique(gamma(levels, 2.5)[:4])) < 10
    assert len(np.unique(gamma(levels, 0.2)[12:])) < 20


@pytest.mark.parametrize("exponent", [0.2, 2.5])
@pytest.mark.parametrize("kind", [np.uint8, np.float32, jnp.bfloat16])
def test_numpy_and_jax_agree_on_gamma_to_the_bit(exponent, kind):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    if kind is not np.uint8:
        images = rng.uniform(-0.1, 1.1, images.shape).astype(kind)  # beyond the range: clipped
    expected = gamma(images, exponent)
    compiled = jax.jit(jax.vmap(lambda image: gamma(image, exponent)))(jnp.asarray(images))
    assert compiled.dtype == images.dtype
    np.testing.assert_array_equal(compiled, expected)


# What a config names


def test_grayscale_is_pillows_on_the_host_and_on_a_device():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)
    expected = np.stack([PIL.Image.fromarray(image).convert("L") for image in images])[..., None]
    expected = np.broadcast_to(expected, images.shape)
    np.testing.assert_array_equal(grayscale(images), expected)
    np.testing.assert_array_equal(jax.jit(grayscale)(jnp.asarray(images)), expected)
    real = grayscale((images / 255).astype(np.float32))
    np.testing.assert_array_equal(np.rint(real * 255), expected)
    assert real.dtype == np.float32
    with pytest.raises(ValueError, match="images of 1 channels have no colour"):
        grayscale(images[..., :1])


def test_the_constants_of_the_benchmark():
    assert CIFAR_C.shot_noise == (500, 250, 100, 75, 50)
    assert IMAGENET_C.shot_noise == (60, 25, 12, 5, 3)
    assert CIFAR_C.defocus_blur == ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
    assert IMAGENET_C.defocus_blur == ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
    assert CIFAR_C.jpeg == (80, 65, 58, 50, 40)
    assert IMAGENET_C.jpeg == (25, 18, 15, 10, 7)


def expected_of(name, images, drawn):
    return {
        "none": lambda: images,
        "global_shuffle": lambda: global_shuffle(images, drawn, 4),
        "local_shuffle": lambda: local_shuffle(images, drawn, 4),
        "gamma": lambda: gamma(images, 2.5),
        "grayscale": lambda: grayscale(images),
        "shot_noise": lambda: shot_noise(images, drawn, 5),
        "defocus_blur": lambda: defocus_blur(images, 8, 0.5),
        "jpeg": lambda: jpeg(images, 10),
    }[name]()


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("per_image", [False, True])
def test_each_corruption_does_what_its_name_and_settings_say(name, per_image):
    corruption = CORRUPTIONS[name](config(severity=4, constants="imagenet", per_image=per_image))
    assert isinstance(corruption, Corruption)
    shuffles = name.endswith("shuffle")
    once = "image" if per_image else "once"
    kind = {"shot_noise": "pixel"}.get(name, once if shuffles else "nothing")
    assert corruption.drawn == kind
    assert corruption.on_device == (name != "jpeg")
    shape = (8, 12, 3)
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    drawn = None
    if kind in ("image", "pixel"):
        drawn = np.stack([corruption.draw(words_of(i), shape) for i in range(5)])
        assert not np.array_equal(drawn[0], drawn[1])
        assert drawn.dtype == (np.int32 if shuffles else np.float32)
    elif corruption.drawn == "once":
        drawn = corruption.draw(words_of(0), shape)
        assert drawn.shape == ({"global_shuffle": 16, "local_shuffle": 6}[name],)
    else:
        assert corruption.draw(words_of(0), shape) is None
    corrupted = corruption(images, drawn)
    assert (name == "none") == np.array_equal(corrupted, images)
    np.testing.assert_array_equal(corrupted, expected_of(name, images, drawn))


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "jpeg"])
def test_devices_share_the_work_on_a_sharded_batch(name):
    corruption = CORRUPTIONS[name](config(per_image=True, severity=5))
    images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3)).astype(np.float32) / 255
    drawn = None
    if corruption.drawn in ("image", "pixel"):
        drawn = np.stack([corruption.draw(words_of(i), images.shape[1:]) for i in range(16)])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    arguments = jax.device_put((images, drawn), rows)
    compiled = jax.jit(corruption.__call__, out_shardings=rows).lower(*arguments).compile()
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-to-all"))
    np.testing.assert_allclose(compiled(*arguments), corruption(images, drawn), atol=1e-6)


# What is refused


@each_shuffle
def test_an_indivisible_image_is_refused(shuffle):
    images, sigma = np.zeros((2, 12, 8, 3), np.uint8), np.zeros(9, np.int32)
    with pytest.raises(ValueError, match=r"patches=3 .* of 12x8 pixels: choose one of 1, 2, 4"):
        unchecked(shuffle)(images, sigma, 3)
    corruption = CORRUPTIONS["local_shuffle"](config(patches=3))
    with pytest.raises(ValueError, match="patches=3 a side do not divide"):
        corruption.draw(words_of(0), (12, 8, 3))


@each_shuffle
@pytest.mark.parametrize("shape", [(5,), (3, 4), (1, 2, 4)])
def test_permutations_that_do_not_suit_the_images_are_refused(shuffle, shape):
    images = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="one of 4, or one of 4 an image"):
        shuffle(images, np.zeros(shape, np.int32), 2)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("global_shuffle", {"patches": 0}, "patches=0"),
        ("local_shuffle", {"patches": -4}, "patches=-4"),
        ("gamma", {"exponent": 0.0}, "exponent=0.0"),
        ("gamma", {"exponent": float("nan")}, "exponent=nan"),
        ("shot_noise", {"severity": 0}, "severity=0"),
        ("defocus_blur", {"severity": 6}, "severity=6"),
        ("jpeg", {"constants": "coco"}, "constants='coco'.*cifar or imagenet"),
    ],
)
def test_settings_that_cannot_be_are_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        CORRUPTIONS[name](config(**changes))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: gamma(x, -1), "exponent=-1"),
        (lambda x: shot_noise(x, np.zeros_like(x, np.float32), 0), "photons=0"),
        (lambda x: defocus_blur(x, float("inf"), 0.5), "radius=inf"),
        (lambda x: defocus_blur(x, 3, 0), "alias=0"),
        (lambda x: jpeg(x, 0), "quality=0"),
        (lambda x: jpeg(jnp.asarray(x), 50), "host alone"),
        (lambda x: jpeg(x[..., :2], 50), "1 or 3 channels, not 2"),
        (lambda x: CORRUPTIONS["shot_noise"](config())(x, None), "draw"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((2, 8, 8, 3), np.uint8))


def test_arrays_that_are_no_images_are_refused():
    for array in (np.zeros((4, 4, 3), np.int32), np.zeros((4, 4), np.uint8)):
        with pytest.raises(ValueError, match="cannot be corrupted"):
            unchecked(gamma)(array, 2.5)
    with pytest.raises(ValueError, match="one a pixel and channel"):
        unchecked(shot_noise)(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.float32), 5)
