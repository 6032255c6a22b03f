"""Two crops of one image, drawn together: the spatial policies of Jha and Tuytelaars (2024).

A box is float32 (y0, x0, y1, x1) in pixels, edges and not centres, inside the image (0, 0, H, W).
Each sampler takes a key, the height and the width in pixels, and numbers that may be traced; it has
no branch, serves one image (``jax.vmap`` for a batch) and does not check its numbers: ``check_*``
does, on plain floats. Areas are fractions of the image's and hold to 1e-6.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxssl.augment import ops

Pixels = Int[Array, ""] | int
Scalar = Float[Array, ""] | float
Boxes = tuple[Float[Array, "4"], Float[Array, "4"]]

# Aspects lie between 1 / _ASPECT and _ASPECT, as those of random resized crops do.
_ASPECT = 4 / 3
# What the checks forgive: 1 - 0.8 is less than 2 * 0.1 in floating point.
_SLACK = 1e-6


def check_overlap(overlap: float) -> None:
    """Refuses what `overlap_boxes` cannot meet.

    Raises:
      ValueError: naming the value and what is feasible; as of every ``check_*``.
    """
    _require(0 < overlap <= 1, f"overlap={overlap} must be a fraction above 0, at most 1.")


def check_fixed_area(overlap: float, area: float) -> None:
    """Refuses what `fixed_area_overlap_boxes` cannot meet.

    Two crops of area a share at least 2 a - 1, since together they cover no more than the image,
    and at most a, when they are the same.
    """
    _require(0 < area <= 1, f"area={area} must be a fraction above 0, at most 1.")
    least = max(2 * area - 1, 0.0)
    _require(
        overlap > 0 and least - _SLACK <= overlap <= area + _SLACK,
        f"overlap={overlap} cannot be met by two crops of area={area}: "
        f"give one {f'from {least:.6g}' if least > 0 else 'above 0'} to {area:.6g}.",
    )


def check_patch(area: float, height: int = 1, width: int = 1) -> None:
    """Refuses what `patch_boxes` cannot meet; the image is square unless its sides are given."""
    most = min(height, width) / max(height, width)
    _require(
        0 < area <= most + _SLACK,
        f"area={area} of a square in an image of {height} x {width} must be a fraction above 0, at "
        f"most {most:.6g}.",
    )


def check_exclusive(gap: float, min_side: float, height: int = 2, width: int = 2) -> None:
    """Refuses what `exclusive_boxes` cannot meet."""
    _check_two_pixels(height, width)
    _require(0 <= gap < 1, f"gap={gap} must be a fraction from 0, below 1.")
    most = (1 - gap) / 2
    _require(
        0 < min_side <= most + _SLACK,
        f"min_side={min_side} leaves no room for two crops beside gap={gap}: "
        f"give a fraction above 0, at most (1 - gap) / 2 = {most:.6g}.",
    )


def check_non_overlapping(min_side: float, height: int = 2, width: int = 2) -> None:
    """Refuses what `non_overlapping_boxes` cannot meet."""
    _check_two_pixels(height, width)
    _require(
        0 < min_side <= 0.5 + _SLACK,
        f"min_side={min_side} leaves no room for two crops: give a fraction above 0, at most 0.5.",
    )


def _check_two_pixels(height: int, width: int) -> None:
    _require(
        max(height, width) > 1,
        f"no two crops of an image of {height} x {width} pixels are without a pixel in common.",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def overlap_boxes(key: Key[Array, ""], height: Pixels, width: Pixels, *, overlap: Scalar) -> Boxes:
    """Two crops of random sizes that share exactly the area ``overlap``.

    The shared rectangle has an aspect (relative to the image's) log-uniform in [3/4, 4/3] as far as
    it fits. On each axis the two lengths are uniform over all that can share its side inside the
    image, their place is uniform, and either crop comes first with probability 1/2; neither
    contains the other. Larger overlaps need larger crops: the mean area of a crop is .30, .40, .49,
    .65, .80, .93 for an overlap of .1, .2, .3, .5, .7, .9; `fixed_area_overlap_boxes` parts the
    two.

    Args:
      key: what the boxes depend on.
      height: of the image, pixels.
      width: of the image, pixels.
      overlap: area of the intersection, fraction of the image's, in (0, 1].
    """
    overlap = jnp.asarray(overlap, jnp.float32)
    shape_key, place_key = jax.random.split(key)
    draws = jax.random.uniform(shape_key, (5,), jnp.float32)

    low, high = jnp.maximum(1 / _ASPECT, overlap), jnp.minimum(_ASPECT, 1 / overlap)
    shared_width = jnp.sqrt(overlap * _log_uniform(draws[0], low, high))
    shared = _shared_sides(overlap, shared_width)

    # Lengths a, b share o inside [0, 1] if and only if a >= o, b >= o and a + b <= 1 + o: a
    # triangle, and half a square folded onto the other half is uniform over it.
    unit = draws[1:].reshape(2, 2)
    unit = jnp.where(jnp.sum(unit, axis=0) > 1.0, 1.0 - unit, unit)
    sides = shared + ops.product(1.0 - shared, unit)
    return _placed(place_key, height, width, sides, shared)


def fixed_area_overlap_boxes(
    key: Key[Array, ""], height: Pixels, width: Pixels, *, overlap: Scalar, area: Scalar
) -> Boxes:
    """Two crops of exactly the area ``area`` that share exactly the area ``overlap``.

    The control for `overlap_boxes`, whose crops grow with the overlap. Let the aspects (relative to
    the image's) be exp(2 (m + d)) and exp(2 (m - d)), and m0 the least |m| of two crops of one
    shape that can share as little as ``overlap`` inside the image: 0 if squares can. Both aspects
    are at most a = 4/3 exp(2 m0) and at least 1 / a, as far as no side exceeds the image's. From m0
    on |m| has the density that two independent log-uniform aspects have (it falls linearly to 0 at
    the limit), its sign is fair, and d is uniform over all that can meet the numbers; so where
    these leave the aspects free they are independent and log-uniform in [3/4, 4/3]. The width of
    the shared rectangle is log-uniform over all that the four sides allow, the place of the two is
    uniform, and either comes first with probability 1/2 on each axis.

    Args:
      key: what the boxes depend on.
      height: of the image, pixels.
      width: of the image, pixels.
      overlap: area of the intersection, fraction of the image's, above 0, in
        [2 area - 1, area].
      area: of each crop, fraction of the image's, in (0, 1].
    """
    overlap, area = jnp.asarray(overlap, jnp.float32), jnp.asarray(area, jnp.float32)
    shape_key, place_key = jax.random.split(key)
    draws = jax.random.uniform(shape_key, (4,), jnp.float32)

    widths = _widths_of_equal_areas(draws[:3], overlap, area)
    sides = jnp.stack([area / widths, widths], axis=1)
    # What two lengths can share inside [0, 1]: from a + b - 1, or nothing, to the shorter.
    least = jnp.maximum(jnp.sum(sides, axis=0) - 1.0, 1e-30)
    most = jnp.min(sides, axis=0)
    low = jnp.maximum(least[1], overlap / most[0])
    high = jnp.minimum(most[1], overlap / least[0])
    # Where one value is left rounding may swap the bounds: keep what binds the longer side, or
    # the other bound, a quotient, would miss it by the error over the shorter.
    tall = least[0] > least[1]
    low, high = (
        jnp.where(tall, jnp.minimum(low, high), low),
        jnp.where(tall, high, jnp.maximum(low, high)),
    )
    shared = _shared_sides(overlap, _log_uniform(draws[3], low, high))
    return _placed(place_key, height, width, sides, shared)


def _widths_of_equal_areas(
    draws: Float[Array, "3"], overlap: Float[Array, ""], area: Float[Array, ""]
) -> Float[Array, "2"]:
    """Widths s exp(m + d), s exp(m - d) of two crops in the unit square; their heights follow.

    Here s**2 is the area. The crops can share as little as r = overlap if and only if
    (w1 + w2 - 1)+ (h1 + h2 - 1)+ <= r, which is
    2 s cosh d <= cosh m + sqrt(sinh(m)**2 + r), and as much if and only if
    min(w1, w2) min(h1, h2) >= r, which is 2 |d| <= log(area / r).
    """
    s = jnp.sqrt(area)
    # Of two crops of one shape: the least |m|. cosh m - 1 is written without cancellation.
    least_m = _arccosh_above_1(((2.0 * s - 1.0) ** 2 - overlap) / (4.0 * s))
    least_m = jnp.where(2.0 * s > 1.0, least_m, 0.0)
    # |m| + |d| is the larger |log aspect| / 2; no side exceeds the image's where it is <= -log s.
    longest = -jnp.log(s)
    least_m = jnp.minimum(least_m, longest)
    limit = jnp.minimum(least_m + math.log(_ASPECT) / 2, longest)

    m = limit - ops.product(limit - least_m, jnp.sqrt(draws[0]))
    sinh = jnp.sinh(m)
    widest = jnp.cosh(m) + jnp.sqrt(ops.product(sinh, sinh) + overlap)
    limits = [
        limit - m,
        jnp.maximum(jnp.log(area / overlap), 0.0) / 2,
        _arccosh_above_1(widest / (2.0 * s) - 1.0),
    ]
    d = ops.product(2.0 * draws[1] - 1.0, jnp.min(jnp.stack(limits)))
    m = jnp.where(draws[2] < 0.5, m, -m)
    return s * jnp.exp(jnp.stack([m + d, m - d]))


def _arccosh_above_1(excess: Float[Array, ""]) -> Float[Array, ""]:
    """arccosh(1 + excess), 0 where the excess is negative."""
    excess = jnp.maximum(excess, 0.0)
    return jnp.log1p(excess + jnp.sqrt(ops.product(excess, excess + 2.0)))


def _log_uniform(
    draw: Float[Array, ""], low: Float[Array, ""], high: Float[Array, ""]
) -> Float[Array, ""]:
    return jnp.exp(ops.between(jnp.log(low), jnp.log(high), draw))


def _shared_sides(overlap: Float[Array, ""], shared_width: Float[Array, ""]) -> Float[Array, "2"]:
    """(height, width) of the shared rectangle in the unit square; their product is ``overlap``."""
    return jnp.stack([overlap / shared_width, shared_width])


def _placed(
    key: Key[Array, ""],
    height: Pixels,
    width: Pixels,
    sides: Float[Array, "2 2"],
    shared: Float[Array, "2"],
) -> Boxes:
    """Two crops of the unit square with sides [crop, axis] that share ``shared`` on each axis."""
    place, coin = jax.random.uniform(key, (2, 2), jnp.float32)
    first = coin < 0.5
    earlier = jnp.where(first, sides[0], sides[1])
    later = jnp.where(first, sides[1], sides[0])
    before = earlier - shared
    start = ops.product(place, jnp.maximum(1.0 - (before + later), 0.0))
    # Both crops are built outwards from the one shared interval, so that no rounding of their own
    # sides reaches the intersection.
    inner = start + before
    earlier_ends = jnp.stack([start, inner + shared])
    later_ends = jnp.stack([inner, inner + later])
    image = jnp.array([height, width], jnp.float32)

    def pixels(ends: Float[Array, "2 2"]) -> Float[Array, "4"]:
        return (jnp.clip(ends, 0.0, 1.0) * image).reshape(4)

    box1 = pixels(jnp.where(first, earlier_ends, later_ends))
    box2 = pixels(jnp.where(first, later_ends, earlier_ends))
    return box1, box2


def patch_boxes(key: Key[Array, ""], height: Pixels, width: Pixels, *, area: Scalar) -> Boxes:
    """The whole image, and a square of exactly the area ``area`` at a uniform place.

    The square is one of pixels, of side sqrt(area H W), also in an image that is not; there its
    area cannot exceed min(H, W) / max(H, W), and at larger values the largest square is taken.

    Args:
      key: what the second box depends on.
      height: of the image, pixels.
      width: of the image, pixels.
      area: of the square, fraction of the image's, in (0, min(H, W) / max(H, W)].
    """
    image = jnp.array([height, width], jnp.float32)
    side = jnp.sqrt(jnp.asarray(area, jnp.float32) * (height * width))
    side = jnp.minimum(side, jnp.minimum(height, width))
    corner = ops.product(jax.random.uniform(key, (2,), jnp.float32), image - side)
    square = jnp.concatenate([corner, corner + side])
    return jnp.array([0, 0, height, width], jnp.float32), square


def exclusive_boxes(
    key: Key[Array, ""], height: Pixels, width: Pixels, *, gap: Scalar, min_side: Scalar
) -> Boxes:
    """Two squares that a band of the area ``gap`` keeps apart.

    The band has the full width or, with probability 1/2, the full height of the image, which it
    crosses if that has a single pixel on the other axis; its place is uniform over all that leave
    ``min_side`` on both sides of it. The squares (of pixels, also in an
    image that is not) have uniform sides and places on either side of the band, and either comes
    first with probability 1/2. They do not touch for any gap above 0, and `resized_crop`, which
    reads each pixel that a box touches, reads none for both: a band thinner than a pixel starts on
    a pixel's edge, uniform over the edges in its range. (If there is none it takes one of the two
    about its range that leave a pixel on both sides, and a square may then be smaller than
    ``min_side`` by less than a pixel.)

    Args:
      key: what the boxes depend on.
      height: of the image, pixels.
      width: of the image, pixels.
      gap: area of the band, fraction of the image's, in [0, 1).
      min_side: smallest side of a square, fraction of the image's shorter side, above 0, at most
        (1 - gap) / 2.
    """
    gap, min_side = jnp.asarray(gap, jnp.float32), jnp.asarray(min_side, jnp.float32)
    draws = jax.random.uniform(key, (9,), jnp.float32)
    # A band across a single pixel would leave nothing on one side.
    thin = jnp.minimum(height, width) < 2
    stacked = jnp.where(thin, jnp.greater(height, width), draws[0] < 0.5)
    length = jnp.where(stacked, height, width).astype(jnp.float32)
    across = jnp.where(stacked, width, height).astype(jnp.float32)
    smallest = ops.product(min_side, jnp.float32(jnp.minimum(height, width)))
    band = ops.product(gap, length)

    low, high = smallest, length - band - smallest
    on_edge, anywhere = _pixel_edge(draws[1], low, high, length), ops.between(low, high, draws[1])
    edge = jnp.where(band < 1.0, on_edge, anywhere)
    regions = ((jnp.zeros_like(edge), edge), (edge + band, length))
    before, after = (
        _square_within(draws[2 + 3 * k : 5 + 3 * k], *regions[k], across, smallest, stacked)
        for k in range(2)
    )
    swapped = draws[8] < 0.5
    return jnp.where(swapped, after, before), jnp.where(swapped, before, after)


def _pixel_edge(
    draw: Float[Array, ""],
    low: Float[Array, ""],
    high: Float[Array, ""],
    length: Float[Array, ""],
) -> Float[Array, ""]:
    """A whole number uniform over those in [low, high]; if there is none, one of the two about.

    It is an edge inside: neither 0 nor ``length``.
    """
    # A thousandth of a pixel: a range that float32 cut short of a whole number still holds it.
    ends = jnp.stack([jnp.ceil(low - 1e-3), jnp.floor(high + 1e-3)])
    ends = jnp.clip(ends, 1.0, length - 1.0)
    first, last = jnp.min(ends), jnp.max(ends)
    return jnp.minimum(first + jnp.floor(draw * (last - first + 1.0)), last)


def _square_within(
    draws: Float[Array, "3"],
    start: Float[Array, ""],
    stop: Float[Array, ""],
    across: Float[Array, ""],
    smallest: Float[Array, ""],
    stacked: Bool[Array, ""],
) -> Float[Array, "4"]:
    """A square of uniform side and place within [start, stop] x [0, across], pixels.

    The first axis is y if ``stacked``, else x.
    """
    room = stop - start
    low = jnp.minimum(smallest, room)
    side = ops.between(low, jnp.minimum(room, across), draws[0])
    along = start + ops.product(room - side, draws[1])
    aside = ops.product(across - side, draws[2])
    # Rounding may carry the sum past the end that the other box relies on.
    y_first = jnp.stack([along, aside, jnp.minimum(along + side, stop), aside + side])
    return jnp.where(stacked, y_first, y_first[jnp.array([1, 0, 3, 2])])


def non_overlapping_boxes(
    key: Key[Array, ""], height: Pixels, width: Pixels, *, min_side: Scalar
) -> Boxes:
    """Two squares that share no pixel: `exclusive_boxes` without a gap.

    For the non-overlapping positive pairs of Moon et al. (BMVC 2022, 4.4).

    Args:
      key: what the boxes depend on.
      height: of the image, pixels.
      width: of the image, pixels.
      min_side: smallest side of a square, fraction of the image's shorter side, in (0, 1/2].
    """
    return exclusive_boxes(key, height, width, gap=0.0, min_side=min_side)


def cut_out(image: Float[Array, "h w c"], box: Float[Array, "4"]) -> Float[Array, "h w c"]:
    """Blackens ``box``; a pixel that it covers in part keeps the rest of its light.

    Args:
      image: float in [0, 1], any number of channels.
      box: (y0, x0, y1, x1), pixels.
    """
    return image * (1.0 - _coverage(box, image.shape))


def blur_out(
    image: Float[Array, "h w c"], box: Float[Array, "4"], sigma: Scalar, kernel_size: int
) -> Float[Array, "h w c"]:
    """Blurs ``box``; a pixel that it covers in part is blended with its blurred self.

    The blur sees what surrounds the box, so the kernel may exceed it.

    Args:
      image: float in [0, 1], any number of channels.
      box: (y0, x0, y1, x1), pixels.
      sigma: standard deviation, pixels; 0 changes no bit.
      kernel_size: taps along each axis, odd.

    Raises:
      ValueError: as `ops.gaussian_blur`, if the kernel does not suit the image.
    """
    blurred = ops.gaussian_blur(image, sigma, kernel_size)
    # Not (1 - c) image + c blurred, which would change bits where the two are equal.
    return jnp.clip(image + _coverage(box, image.shape) * (blurred - image), 0.0, 1.0)


def _coverage(box: Float[Array, "4"], shape: Sequence[int]) -> Float[Array, "h w 1"]:
    """The part of each pixel's area that lies in ``box``."""

    def covered(start: Float[Array, ""], stop: Float[Array, ""], length: int) -> Array:
        pixels = jnp.arange(length, dtype=jnp.float32)
        inside = jnp.minimum(pixels + 1.0, stop) - jnp.maximum(pixels, start)
        return jnp.clip(inside, 0.0, 1.0)

    rows, columns = covered(box[0], box[2], shape[0]), covered(box[1], box[3], shape[1])
    return rows[:, None, None] * columns[None, :, None]


def centre_distance(box1: Float[Array, "*b 4"], box2: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """L2 distance of the centres, pixels: the phi of Jha and Tuytelaars (2024), Eq. 1."""
    difference = (box1[..., :2] + box1[..., 2:] - box2[..., :2] - box2[..., 2:]) / 2
    return jnp.sqrt(jnp.sum(difference**2, axis=-1))


def intersection_area(box1: Float[Array, "*b 4"], box2: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """Area that two boxes share, square pixels."""
    start = jnp.maximum(box1[..., :2], box2[..., :2])
    stop = jnp.minimum(box1[..., 2:], box2[..., 2:])
    return jnp.prod(jnp.maximum(stop - start, 0.0), axis=-1)
