"""Dense contrastive losses over the cells of feature maps (Moon, Kim and Choi, BMVC 2022).

Maps are [B, P, D], P cells an image, un-normalised; each cell is promoted to at least float32 and
L2-normalised. ``s(x, y)`` is the cosine. ``axis_name`` and ``block_size`` are as in ``nt_xent``,
with cells for embeddings.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike

from jaxssl.losses.arrays import (
    check_choice,
    check_floating,
    check_matching,
    check_positive,
    check_rank,
    cosine,
    inverse,
    normalize,
)
from jaxssl.losses.blockwise import (
    PLAIN_LOGITS,
    cross_logsumexp,
    is_plain,
    other_group,
    pair_logsumexp,
    self_logsumexp,
)
from jaxssl.losses.collectives import (
    AxisName,
    axis_size,
    check_negatives,
    gather,
    mean_over_shards,
    row_numbers,
)
from jaxssl.losses.transport import entropic_plan, exact_assignment

MATCHINGS = ("index", "cosine", "set")
PLANS = ("entropic", "exact")
NEGATIVES = ("both_views", "other_view")
PAIRS = ("same_index", "all_cells")


def dense_info_nce(
    h1: Float[Array, "b p d"],
    h2: Float[Array, "b p d"],
    *,
    temperature: ScalarLike,
    matching: str = "index",
    match1: Float[Array, "b p e"] | None = None,
    match2: Float[Array, "b p e"] | None = None,
    positive_in_denominator: bool = True,
    negatives: str = "both_views",
    plan: str = "entropic",
    plan_epsilon: ScalarLike = 0.05,
    plan_iterations: int | Int[Array, ""] = 50,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> Float[Array, ""]:
    """InfoNCE of cells (Moon, Kim and Choi, Eq. 2), mean over images, cells and both directions.

    The anchor, cell p of one view, is to find its match m among the cells of the other view:
    ``-log(exp(s(p, m) / temperature) / Z)``. Z sums over the match, the other cells of the other
    view, and all cells of all other images; the anchor's own view of the image is left out.

    The match is

    - "index": the cell of the same index;
    - "cosine": the cell of the largest cosine (DenseCL, arXiv:2011.09157);
    - "set": each cell q with weight ``P T(p, q)``, for T the optimal transport of the one view's
      cells to the other's at cost 1 - cosine. The terms of the cells are averaged by weight.

    The matching is constant: no gradient passes through it.

    Args:
      h1: maps of the first views, [B, P, D].
      h2: maps of the second views, [B, P, D].
      temperature: above 0.
      matching: "index", "cosine" or "set".
      match1: maps in which cells of the first views are matched, [B, P, E], such as the backbone's
        that ``h1`` is projected from; None takes ``h1``. Unused by "index".
      match2: likewise of the second views.
      positive_in_denominator: whether Z has the match itself (the equation as printed leaves it
        out).
      negatives: which cells of other images: "both_views", or the "other_view" than the anchor's.
      plan: transport of "set": "entropic" (Sinkhorn) or the "exact" assignment, which is slow.
      plan_epsilon: entropic regularisation, above 0.
      plan_iterations: Sinkhorn rounds, 1 or more.
      axis_name: mapped axis that the batch is sharded over.
      block_size: side of the tiles of pairs of cells.

    Raises:
      ValueError: for maps of other shapes, one of ``match1`` and ``match2`` without the other, a
        global batch below 2, an unknown choice, or a known temperature or epsilon not above 0.

    >>> import jax.numpy as jnp
    >>> h = jnp.eye(4).reshape(2, 2, 4)
    >>> print(f"{dense_info_nce(h, h, temperature=0.5):.4f}")  # log(1 + 5 exp(-2))
    0.5168
    """
    _check_maps(h1=h1, h2=h2)
    check_positive(temperature=temperature, plan_epsilon=plan_epsilon)
    check_positive(plan_iterations=plan_iterations)
    check_choice("matching", matching, MATCHINGS)
    check_choice("negatives", negatives, NEGATIVES)
    check_choice("plan", plan, PLANS)
    check_negatives(h1.shape[0], axis_name)
    first, second = _maps_to_match(h1, h2, match1, match2)
    h1, h2 = normalize(h1), normalize(h2)
    scale = inverse(temperature, h1)
    other1, other2 = _other_images(h1, h2, scale, negatives, axis_name, block_size)

    def direction(own: Array, other: Array, spread: Array, map1: Array, map2: Array) -> Array:
        weights = _matches(map1, map2, matching, plan, plan_epsilon, plan_iterations)
        logits = scale * _within_images(own, other)
        return _cell_losses(logits, spread, weights, positive_in_denominator)

    losses = direction(h1, h2, other1, first, second) + direction(h2, h1, other2, second, first)
    return mean_over_shards(jnp.mean(losses) / 2, axis_name)


def dense_alignment(h1: Float[Array, "b p d"], h2: Float[Array, "b p d"]) -> Float[Array, ""]:
    """Negated mean cosine of cells of the same index in two views (Moon, Kim and Choi, L_a).

    An affine map of Wang and Isola's squared distance. Samples do not meet one another, so a mapped
    caller takes ``lax.pmean`` of it.

    Args:
      h1: maps of the first views, [B, P, D].
      h2: maps of the second views, [B, P, D].

    Raises:
      ValueError: for shapes that are not one [B, P, D].

    >>> import jax.numpy as jnp
    >>> print(dense_alignment(jnp.ones((2, 3, 4)), jnp.ones((2, 3, 4))))
    -1.0
    """
    _check_maps(h1=h1, h2=h2)
    return -jnp.mean(cosine(h1, h2))


def dense_uniformity(
    h1: Float[Array, "b p d"],
    h2: Float[Array, "b p d"],
    *,
    t: ScalarLike = 2,
    pairs: str = "same_index",
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> Float[Array, ""]:
    """Logarithm of the mean Gaussian potential of cells of different images (L_u).

    ``log mean exp(-t |x - y|^2)`` over all pairs of cells x and y of two different images, in
    either view each (Moon, Kim and Choi, section 3.2, who print t = 1). The squared
    distance of a zero cell to all others counts as 2, as in ``losses.uniformity``.

    Args:
      h1: maps of the first views, [B, P, D].
      h2: maps of the second views, [B, P, D].
      t: inverse width of the potential, above 0.
      pairs: "same_index" compares cells of one index, as printed; "all_cells" any two.
      axis_name: mapped axis that the batch is sharded over.
      block_size: side of the tiles of pairs of cells.

    Raises:
      ValueError: for maps of other shapes, a global batch below 2, an unknown ``pairs``, or a known
        t that is not above 0.

    >>> import jax.numpy as jnp
    >>> h = jnp.eye(2).reshape(2, 1, 2)
    >>> print(dense_uniformity(h, h))  # -2 * 2
    -4.0
    """
    _check_maps(h1=h1, h2=h2)
    check_positive(t=t)
    check_choice("pairs", pairs, PAIRS)
    check_negatives(h1.shape[0], axis_name)
    batch, cells, _ = h1.shape
    z, images = _cells(normalize(h1), normalize(h2), axis_name)
    slope = 2 * jnp.asarray(t, z.dtype)

    def pairs_of(z: Float[Array, "n d"], tags: Int[Array, "n t"]) -> Float[Array, ""]:
        return pair_logsumexp(
            z,
            tags,
            scale=slope,
            allowed=other_group,
            axis_name=axis_name,
            block_size=block_size,
        )

    views = 2 * batch * axis_size(axis_name)
    others = views - 2
    if pairs == "all_cells":
        potential = pairs_of(z, images)
        number = views * others * cells**2
    else:
        # One cell index at a time: [2B, P, D] rows run over images and views within each.
        by_cell = jnp.swapaxes(z.reshape(2 * batch, cells, -1), 0, 1)
        of_cells = _for_each(partial(pairs_of, tags=images[::cells]), by_cell, views, block_size)
        potential = jax.nn.logsumexp(of_cells)
        number = views * others * cells
    return mean_over_shards(potential - slope - math.log(number), axis_name)


def _for_each(
    pairs_of: Callable[[Array], Array],
    by_cell: Float[Array, "p r d"],
    keys: int,
    block_size: int | None,
) -> Float[Array, " p"]:
    """``pairs_of`` the rows of each cell against ``keys`` rows: all cells at once if few pairs."""
    cells, rows, _ = by_cell.shape
    if cells * rows * keys <= PLAIN_LOGITS:
        return jax.vmap(pairs_of)(by_cell)
    if is_plain(rows, keys, block_size):
        # Otherwise the matrices of all cells are kept for the backward pass; tiles keep none.
        pairs_of = jax.checkpoint(pairs_of, prevent_cse=False)
    return jax.lax.map(pairs_of, by_cell)


def cosine_match(map1: Float[Array, "b p e"], map2: Float[Array, "b p e"]) -> Int[Array, "b p"]:
    """For each cell of ``map1`` the cell of the same image's ``map2`` with the largest cosine.

    Args:
      map1: maps of the first views, [B, P, E].
      map2: maps of the second views, [B, P, E].

    Returns:
      Indices of cells, [B, P]; the first of several equals.

    Raises:
      ValueError: for shapes that are not one [B, P, E].

    >>> import jax.numpy as jnp
    >>> cells = jnp.eye(3)[None]
    >>> print(cosine_match(cells, cells[:, ::-1]))
    [[2 1 0]]
    """
    _check_maps(map1=map1, map2=map2)
    return jnp.argmax(_within_images(normalize(map1), normalize(map2)), axis=2)


def _check_maps(**maps: Float[Array, "b p d"]) -> None:
    check_rank(3, "[B, P, D]", **maps)
    check_floating(**maps)
    check_matching(**maps)


def _maps_to_match(
    h1: Float[Array, "b p d"],
    h2: Float[Array, "b p d"],
    match1: Float[Array, "b p e"] | None,
    match2: Float[Array, "b p e"] | None,
) -> tuple[Float[Array, "b p e"], Float[Array, "b p e"]]:
    """The maps whose cells are matched: those given, or the embeddings themselves."""
    if match1 is None and match2 is None:
        return h1, h2
    if match1 is None or match2 is None:
        raise ValueError("match1 and match2 go together: give both or neither.")
    _check_maps(match1=match1, match2=match2)
    check_matching(match1=match1[..., 0], h1=h1[..., 0])
    return match1, match2


def _within_images(x: Float[Array, "b p d"], y: Float[Array, "b q d"]) -> Float[Array, "b p q"]:
    return jnp.einsum("bpd,bqd->bpq", x, y, precision=jax.lax.Precision.HIGHEST)


def _cells(
    h1: Float[Array, "b p d"], h2: Float[Array, "b p d"], axis_name: AxisName
) -> tuple[Float[Array, "n d"], Int[Array, "n 1"]]:
    """Cells of both views as rows that stay on their image's device, and their images' numbers."""
    batch, cells, features = h1.shape
    z = jnp.stack([h1, h2], axis=1).reshape(2 * batch * cells, features)
    return z, jnp.repeat(row_numbers(batch, axis_name), 2 * cells)[:, None]


def _other_images(
    h1: Float[Array, "b p d"],
    h2: Float[Array, "b p d"],
    scale: Float[Array, ""],
    negatives: str,
    axis_name: AxisName,
    block_size: int | None,
) -> tuple[Float[Array, "b p"], Float[Array, "b p"]]:
    """Each cell's logsumexp over the negatives in other images."""
    batch, cells, features = h1.shape
    if negatives == "both_views":
        z, images = _cells(h1, h2, axis_name)
        spread = self_logsumexp(
            z,
            images,
            scale=scale,
            allowed=other_group,
            axis_name=axis_name,
            block_size=block_size,
        ).reshape(batch, 2, cells)
        return spread[:, 0], spread[:, 1]
    images = jnp.repeat(row_numbers(batch, axis_name), cells)[:, None]

    def against(own: Array, other: Array) -> Array:
        keys = gather(other.reshape(-1, features), axis_name)
        rows = scale * own.reshape(-1, features)
        key_images = gather(images, axis_name)
        spread = cross_logsumexp(rows, keys, images, key_images, other_group, block_size)
        return spread.reshape(batch, cells)

    return against(h1, h2), against(h2, h1)


def _matches(
    map1: Float[Array, "b p e"],
    map2: Float[Array, "b p e"],
    matching: str,
    plan: str,
    epsilon: ScalarLike,
    iterations: int | Int[Array, ""],
) -> Float[Array, "b p p"]:
    """Weights of the other view's cells as match of each cell; rows sum to 1 (all but "set").

    Constant. A NaN in the maps becomes one in the weights: an index alone would hide it.
    """
    batch, cells, _ = map1.shape
    map1, map2 = normalize(jax.lax.stop_gradient(map1)), normalize(jax.lax.stop_gradient(map2))
    if matching == "index":
        return jnp.broadcast_to(jnp.eye(cells, dtype=map1.dtype), (batch, cells, cells))
    cost = 1 - _within_images(map1, map2)
    if matching == "set" and plan == "entropic":
        # A loop of traced length would not let a gradient to epsilon through at all.
        fixed = jax.lax.stop_gradient(jnp.asarray(epsilon, cost.dtype))
        return cells * entropic_plan(cost, epsilon=fixed, iterations=iterations)
    match = cosine_match(map1, map2) if matching == "cosine" else jax.vmap(exact_assignment)(cost)
    return jnp.where(jnp.isnan(cost), cost, jax.nn.one_hot(match, cells, dtype=cost.dtype))


def _cell_losses(
    logits: Float[Array, "b p q"],
    spread: Float[Array, "b p"],
    weights: Float[Array, "b p q"],
    positive_in_denominator: bool,
) -> Float[Array, "b p"]:
    """``sum_q weight_q (log Z_q - logit_q)`` of each cell p."""
    spread = spread[..., None]
    if positive_in_denominator:
        normalizer = jnp.logaddexp(jax.nn.logsumexp(logits, axis=2, keepdims=True), spread)
    else:
        normalizer = jnp.logaddexp(_leave_one_out(logits), spread)
    return jnp.sum(weights * (normalizer - logits), axis=2)


def _leave_one_out(logits: Float[Array, "b p q"]) -> Float[Array, "b p q"]:
    """Logsumexp over the last axis without the entry; hugely negative if none is left."""
    # Sums from both ends, not the total less the entry: that would lose a dominant entry's rest.
    nothing = jnp.full_like(logits[..., :1], jnp.finfo(logits.dtype).min / 2)
    before = jax.lax.cumlogsumexp(logits, axis=2)[..., :-1]
    after = jax.lax.cumlogsumexp(logits, axis=2, reverse=True)[..., 1:]
    before = jnp.concatenate([nothing, before], axis=2)
    after = jnp.concatenate([after, nothing], axis=2)
    return jnp.logaddexp(before, after)
