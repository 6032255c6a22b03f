"""Pairs of crops as the samplers draw them, and what tests of them ask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from quick_compilation import quick_jit
from scipy import stats

from jaxssl.augment import spatial

EXACT = 1e-6
SAMPLERS = {
    "overlap": spatial.overlap_boxes,
    "fixed_area": spatial.fixed_area_overlap_boxes,
    "patch": spatial.patch_boxes,
    "exclusive": spatial.exclusive_boxes,
    "non_overlapping": spatial.non_overlapping_boxes,
}
SIZES = st.sampled_from([(32, 32), (448, 448), (29, 40)])
SEEDS = st.integers(0, 2**31 - 1)
FEW = settings(max_examples=40, deadline=None, derandomize=True)


@functools.cache
def compiled(name, height, width, jit=quick_jit):
    def boxes(keys, numbers):
        return jax.vmap(lambda key: SAMPLERS[name](key, height, width, **numbers))(keys)

    return jit(boxes)


def draw(name, size, n=64, seed=0, **numbers):
    """n pairs of boxes, float64 of the float32 that came."""
    keys = jax.random.split(jax.random.key(seed), n)
    numbers = {k: np.float32(v) for k, v in numbers.items()}
    box1, box2 = compiled(name, *size)(keys, numbers)
    assert box1.dtype == box2.dtype == jnp.float32
    return np.float64(box1), np.float64(box2)


def sides(box):
    return box[:, 2:] - box[:, :2]


def area(box):
    return np.prod(sides(box), axis=1)


def shared(box1, box2):
    stop, start = np.minimum(box1[:, 2:], box2[:, 2:]), np.maximum(box1[:, :2], box2[:, :2])
    return np.prod(np.maximum(stop - start, 0), axis=1)


def assert_inside(size, *boxes):
    for box in boxes:
        assert (box[:, :2] >= 0).all()
        assert (box[:, 2:] <= size).all()
        assert (box[:, 2:] > box[:, :2]).all()


def assert_fair(hits):
    assert stats.binomtest(int(hits.sum()), hits.size).pvalue > 1e-3


def assert_same_distribution(seen, expected):
    assert stats.ks_2samp(seen, expected).pvalue > 1e-3
