"""RandBit's channels: an integer of the image's own, the same whoever asks."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from quick_compilation import at_once, quick_jit

from jaxssl.augment.bits import append_channels, bit_channels, image_integers
from jaxssl.randomness import Split


@functools.partial(quick_jit, static_argnames=("seed", "num_bits", "fresh", "split"))
def _draw(index, epoch, seed, num_bits, fresh, split):
    return image_integers(
        jnp.full_like(index, split),
        index,
        epoch,
        seed=seed,
        num_bits=num_bits,
        fresh_per_epoch=fresh,
    )


def draw(count, num_bits, epoch=0, seed=0, fresh=False, split=Split.TRAIN):
    index = jnp.arange(count, dtype=jnp.int32)
    return np.asarray(_draw(index, jnp.full_like(index, epoch), seed, num_bits, fresh, int(split)))


def test_bits_are_the_integers_binary_digits_least_significant_first():
    integers = draw(500, 11)
    bits = np.asarray(at_once(bit_channels)(integers, 11))
    assert bits.dtype == np.float32
    np.testing.assert_array_equal(bits @ 2.0 ** np.arange(11), integers)
    expected = [[int(digit) for digit in reversed(f"{integer:011b}")] for integer in integers]
    np.testing.assert_array_equal(bits, expected)


def test_integers_depend_on_seed_split_and_index_alone():
    first = draw(300, 20)
    np.testing.assert_array_equal(draw(100, 20), first[:100])
    np.testing.assert_array_equal(draw(300, 20, epoch=7), first)
    for other in (draw(300, 20, seed=1), draw(300, 20, split=Split.TEST)):
        assert (other != first).mean() > 0.99
    fresh = draw(300, 20, fresh=True)
    np.testing.assert_array_equal(fresh, first)  # epoch 0 is what evaluation sees
    assert (draw(300, 20, fresh=True, epoch=1) != first).mean() > 0.99


@pytest.mark.parametrize("num_bits", [1, 3, 8])
def test_integers_are_uniform(num_bits):
    counts = np.bincount(draw(60_000, num_bits), minlength=2**num_bits)
    assert counts.shape == (2**num_bits,)
    mean = 60_000 / 2**num_bits
    freedom = 2**num_bits - 1
    # 5 standard deviations of chi-squared.
    assert np.sum((counts - mean) ** 2 / mean) < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(("num_bits", "published"), [(15, 14.75), (20, 15.83)])
def test_collisions_leave_fewer_bits(num_bits, published):
    """log2 of the distinct integers of 60,000 images."""
    found = np.log2(len(np.unique(draw(60_000, num_bits))))
    n, k = 60_000, 2.0**num_bits
    expected = np.log2(k * -np.expm1(n * np.log1p(-1 / k)))
    assert abs(expected - published) < 0.006
    assert abs(found - expected) < 0.01


def test_channels_are_appended_and_constant():
    images = jnp.asarray(np.random.default_rng(0).random((4, 3, 5, 2), np.float32))
    bits = np.asarray(at_once(bit_channels)(np.arange(4, dtype=np.uint32), 3))
    joined = np.asarray(at_once(append_channels)(images, bits))
    assert joined.shape == (4, 3, 5, 5)
    np.testing.assert_array_equal(joined[..., :2], images)
    np.testing.assert_array_equal(
        joined[..., 2:], np.broadcast_to(bits[:, None, None], (4, 3, 5, 3))
    )


@pytest.mark.parametrize("num_bits", [0, 33, -1])
def test_impossible_numbers_of_bits_are_refused(num_bits):
    with pytest.raises(ValueError, match=f"num_bits={num_bits} must be"):
        draw(2, num_bits)
