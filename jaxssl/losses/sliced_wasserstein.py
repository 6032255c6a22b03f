"""Sliced Wasserstein distance to a prior, and the generalised contrastive loss built on it.

Source: Chen, Luo and Li, arXiv:2011.02803, Table 1, Eq. 5 and Algorithm 1, in the form of their
code where the two differ (a mean over the batch, both views matched).
"""

import itertools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, ScalarLike

from jaxssl.losses.arrays import (
    check_choice,
    check_features,
    check_positive,
    interleave,
    inverse,
    promote,
)
from jaxssl.losses.arrays import normalize as unit
from jaxssl.losses.blockwise import everything, other_group, self_logsumexp
from jaxssl.losses.characteristic import sliced_characteristic
from jaxssl.losses.collectives import (
    AxisName,
    axis_size,
    check_negatives,
    mean_over_shards,
    row_numbers,
)

PRIORS = ("normal", "hypercube", "hypersphere")
DISTRIBUTIONS = ("logsumexp", *PRIORS, "characteristic")  # of `generalized_contrastive`
PANEL = 64  # directions that are made orthogonal to one another one by one


def sliced_wasserstein(
    h: Float[Array, "b d"],
    *,
    key: Key[Array, ""],
    prior: str,
    num_projections: int | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Squared sliced 2-Wasserstein distance of a batch to a sample of a prior.

    ``key`` draws B prior samples and orthonormal directions; features and prior are projected
    on the same directions, each projection is sorted over the batch, and the squared differences
    are averaged over directions and samples. With other keys each step this is a noisy estimate of
    the distance to the prior itself, above it by the distance of two samples.

    The gradient is that of the sorted differences: a feature is drawn to the prior sample of its
    rank. Projections that tie exactly share the mean of the targets of their ranks, so that the
    gradient does not depend on the order of the batch.

    Args:
      h: features, [B, D], taken as they are: not normalised.
      key: randomness of this call; the same on every shard.
      prior: "normal" (standard), "hypercube" (uniform in [-1, 1]^D) or "hypersphere" (uniform on
        the unit sphere).
      num_projections: directions, 1 to D; None takes D of them, a basis.
      axis_name: mapped axis that the batch is sharded over.

    Raises:
      ValueError: if ``h`` is not [B, D] or empty, for an unknown prior, or another number of
        projections.

    >>> import jax, jax.numpy as jnp
    >>> collapsed = jnp.zeros((256, 64))
    >>> loss = sliced_wasserstein(collapsed, key=jax.random.key(0), prior="hypersphere")
    >>> print(f"{64 * loss:.4f}")  # the mean square of a unit vector's coordinate is 1/64
    1.0000
    """
    check_features(h=h)
    check_choice("prior", prior, PRIORS)
    dimension = h.shape[1]
    count = dimension if num_projections is None else num_projections
    if not 1 <= count <= dimension:
        raise ValueError(f"num_projections={count}: give 1 to {dimension}, orthogonal in [B, D].")
    h = promote(h)
    shards = axis_size(axis_name)
    direction_key, prior_key = jax.random.split(key)
    directions = orthonormal_directions(direction_key, dimension, count, h.dtype)
    sample = draw_prior(prior_key, prior, (h.shape[0] * shards, dimension), h.dtype)
    if axis_name is None:
        cost = _transport_cost(_project(h, directions).T, _project(sample, directions).T)
    else:
        # Each shard sorts its share of the directions; those added to make shares equal cost zero.
        share = -(-count // shards)
        directions = jnp.pad(directions, ((0, 0), (0, share * shards - count)))
        start = share * jax.lax.axis_index(axis_name)
        own = jax.lax.dynamic_slice_in_dim(directions, start, share, axis=1)
        projected = jax.lax.all_to_all(
            _project(h, directions), axis_name, split_axis=1, concat_axis=0, tiled=True
        )
        cost = shards * _transport_cost(projected.T, _project(sample, own).T)
    return mean_over_shards(cost / float(count * sample.shape[0]), axis_name)


def generalized_contrastive(
    z1: Float[Array, "b d"],
    z2: Float[Array, "b d"],
    *others: Float[Array, "b d"],
    key: Key[Array, ""],
    distribution: str,
    weight: ScalarLike,
    temperature: ScalarLike = 1.0,
    scale: ScalarLike = 1.0,
    normalize: bool = True,
    halve_alignment: bool = True,
    divide_by_dimension: bool = True,
    self_term: bool = True,
    views_together: bool = True,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> Float[Array, ""]:
    """Alignment plus ``weight`` times the distance of the features to a distribution.

    ``scale * (alignment + weight * distance)`` (arXiv:2011.02803, Table 1) over features that are
    L2-normalised, or not. The alignment is the mean over pairs of views, batch and dimensions of
    ``(z1 - z2)^2 / 2``. The distance is

    - "logsumexp": the mean over all V B features of ``log sum_j exp(z_i . z_j / temperature)``,
      less ``log D``; with normalised features, the decoupled NT-Xent;
    - "normal", "hypercube", "hypersphere": their ``sliced_wasserstein`` to that prior;
    - "characteristic": their ``sliced_characteristic``, to the standard normal.

    Defaults are those of the authors' code, which multiplies by ``scale=1000`` for normalised
    features. Their table prints no half (``halve_alignment=False``); their Eq. 4 has neither the
    division by the dimension nor the self term: with half and the other two False, and unit
    vectors, this is ``decoupled_nt_xent`` but for constants. Their Algorithm 1 takes the views one
    by one (``views_together=False``). So does LeJEPA (arXiv:2511.08544), which is, with its lambda,
    ``scale = (1 - lambda) (V - 1) / V`` and ``weight = lambda / scale`` of "characteristic".

    Args:
      z1: first views, [B, D].
      z2: second views, [B, D].
      others: further views, [B, D] each.
      key: randomness of this call, unused by "logsumexp"; the same on every shard.
      distribution: one of ``DISTRIBUTIONS``.
      weight: the paper's lambda.
      temperature: of "logsumexp", above 0.
      scale: factor of the whole.
      normalize: put the features on the unit sphere first.
      halve_alignment: divide the squared differences by 2.
      divide_by_dimension: average them over dimensions instead of summing.
      self_term: let j = i into the sum of "logsumexp".
      views_together: the distance of all views' features; else the mean of that of each view's.
      axis_name: mapped axis that the batch is sharded over.
      block_size: side of the tiles of pairs in "logsumexp", as for ``nt_xent``.

    Raises:
      ValueError: for shapes that are not one [B, D], an unknown distribution, a known temperature
        that is not above 0, a single image without its self term, or "characteristic" of normalised
        features, which cannot be normal.

    >>> import jax, jax.numpy as jnp
    >>> z = jnp.eye(4)
    >>> loss = generalized_contrastive(
    ...     z, z, key=jax.random.key(0), distribution="logsumexp", weight=1.0
    ... )
    >>> print(f"{loss:.4f}")  # log(2 e + 6) - log 4
    1.0505
    """
    views = (z1, z2, *others)
    check_features(**{f"z{number}": z for number, z in enumerate(views, 1)})
    check_positive(temperature=temperature)
    _check_distribution(distribution, normalize)
    if distribution == "logsumexp" and not self_term:
        check_negatives(z1.shape[0], axis_name)
    features = [unit(z) if normalize else promote(z) for z in views]
    alignment = _alignment(features, halve_alignment, divide_by_dimension)
    samples = [interleave(*features)] if views_together else features
    among = (temperature, self_term, axis_name, block_size)
    distances = [_distance(z, distribution, key, *among) for z in samples]
    spread = jnp.asarray(weight, alignment.dtype) * _mean(distances)
    return jnp.asarray(scale, alignment.dtype) * mean_over_shards(alignment + spread, axis_name)


def _check_distribution(distribution: str, normalize: bool) -> None:
    check_choice("distribution", distribution, DISTRIBUTIONS)
    if distribution == "characteristic" and normalize:
        raise ValueError(
            f"normalize={normalize} with distribution={distribution!r}: give normalize=False, for "
            "unit vectors are not normally distributed."
        )


def _alignment(
    views: list[Float[Array, "b d"]], halve: bool, divide_by_dimension: bool
) -> Float[Array, ""]:
    """Squared distance of two views, the mean over pairs of views and the images of this shard."""
    pairs = itertools.combinations(views, 2)
    squares = _mean([jnp.mean(jnp.sum((a - b) ** 2, axis=1)) for a, b in pairs])
    return squares / ((2 if halve else 1) * (views[0].shape[1] if divide_by_dimension else 1))


def _distance(
    z: Float[Array, "n d"],
    distribution: str,
    key: Key[Array, ""],
    temperature: ScalarLike,
    self_term: bool,
    axis_name: AxisName,
    block_size: int | None,
) -> Float[Array, ""]:
    """How far features are from a distribution of ``DISTRIBUTIONS``."""
    if distribution == "logsumexp":
        return _logsumexp_distance(z, temperature, self_term, axis_name, block_size)
    if distribution == "characteristic":
        return sliced_characteristic(z, key=key, axis_name=axis_name)
    return sliced_wasserstein(z, key=key, prior=distribution, axis_name=axis_name)


def _mean(values: list[Float[Array, ""]]) -> Float[Array, ""]:
    return values[0] if len(values) == 1 else jnp.mean(jnp.stack(values))


def _logsumexp_distance(
    z: Float[Array, "n d"],
    temperature: ScalarLike,
    self_term: bool,
    axis_name: AxisName,
    block_size: int | None,
) -> Float[Array, ""]:
    """Mean over this shard's rows of ``log sum_j exp(z_i . z_j / temperature) - log D``."""
    spread = self_logsumexp(
        z,
        row_numbers(z.shape[0], axis_name)[:, None],
        scale=inverse(temperature, z),
        allowed=everything if self_term else other_group,
        axis_name=axis_name,
        block_size=block_size,
    )
    return jnp.mean(spread) - math.log(z.shape[1])


def orthonormal_directions(
    key: Key[Array, ""], dimension: int, count: int, dtype: jnp.dtype
) -> Float[Array, "d p"]:
    """``count`` orthonormal columns, uniformly (Haar) distributed: Gaussian ones by Gram-Schmidt.

    Panel by panel, and twice, which is enough for full accuracy. Not by a QR of LAPACK's: on a CPU
    its threads wait for more work by spinning, and take the cores from the sorts that come next.
    """
    size = min(PANEL, count)
    panels = -(-count // size)
    gaussian = jax.random.normal(key, (count, dimension), dtype)
    gaussian = jnp.pad(gaussian, ((0, panels * size - count), (0, 0)))

    def add_panel(k: Int[Array, ""], rows: Float[Array, "p d"]) -> Float[Array, "p d"]:
        panel = jax.lax.dynamic_slice_in_dim(gaussian, k * size, size)
        for _ in range(2):
            panel = _orthonormal_rows(_without(panel, rows))
        return jax.lax.dynamic_update_slice_in_dim(rows, panel, k * size, axis=0)

    # Panels that are not yet filled are zero and change nothing.
    rows = jax.lax.fori_loop(0, panels, add_panel, 0 * gaussian)
    return rows[:count].T


def _orthonormal_rows(panel: Float[Array, "m d"]) -> Float[Array, "m d"]:
    def add_row(i: Int[Array, ""], done: Float[Array, "m d"]) -> Float[Array, "m d"]:
        row = _without(_without(panel[i], done), done)
        return done.at[i].set(unit(row))

    return jax.lax.fori_loop(0, panel.shape[0], add_row, 0 * panel)


def _without(x: Float[Array, "*m d"], rows: Float[Array, "p d"]) -> Float[Array, "*m d"]:
    """``x`` less its projections on orthonormal rows."""
    precision = jax.lax.Precision.HIGHEST
    return x - jnp.matmul(jnp.matmul(x, rows.T, precision=precision), rows, precision=precision)


def draw_prior(
    key: Key[Array, ""], prior: str, shape: tuple[int, int], dtype: jnp.dtype
) -> Float[Array, "n d"]:
    """Rows drawn from one of ``PRIORS``."""
    if prior == "hypercube":
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0)
    sample = jax.random.normal(key, shape, dtype)
    return unit(sample) if prior == "hypersphere" else sample


def _project(x: Float[Array, "n d"], directions: Float[Array, "d p"]) -> Float[Array, "n p"]:
    return jnp.matmul(x, directions, precision=jax.lax.Precision.HIGHEST)


def _transport_cost(x: Float[Array, "p n"], y: Float[Array, "p n"]) -> Float[Array, ""]:
    """Sum over rows of the squared cost of the optimal 1-D transport of x to y; y is constant."""
    fixed = jax.lax.stop_gradient(x)
    sorted_x = _sort(fixed)
    sorted_y = _sort(jax.lax.stop_gradient(y))
    cost = jnp.sum((sorted_x - sorted_y) ** 2)
    # The gradient does not go through the sort: ranks come from a search in the sorted row, several
    # times faster than carrying a permutation through the sort.
    targets = _tie_means(sorted_x, sorted_y)
    ranks = jax.vmap(jnp.searchsorted)(sorted_x, fixed)
    matched = jnp.sum((x - jnp.take_along_axis(targets, ranks, axis=1)) ** 2)
    return cost + (matched - jax.lax.stop_gradient(matched))


def _sort(x: Float[Array, "p n"]) -> Float[Array, "p n"]:
    """Rows in ascending order, as integers of the same order: those sort four times faster."""
    kind = jnp.int32 if x.dtype.itemsize == 4 else jnp.int64
    # As an integer, -0.0 would sort before 0.0, though the two tie.
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0, x), kind)
    magnitude = jnp.iinfo(kind).max
    ordered = jnp.sort(jnp.where(bits < 0, bits ^ magnitude, bits), axis=1, stable=False)
    bits = jnp.where(ordered < 0, ordered ^ magnitude, ordered)
    return jax.lax.bitcast_convert_type(bits, x.dtype)


def _tie_means(x: Float[Array, "p n"], y: Float[Array, "p n"]) -> Float[Array, "p n"]:
    """Where a run of equal entries begins in the sorted x, the mean of y over that run."""

    def joined(stride: int | Int[Array, ""]) -> Bool[Array, "p n"]:
        places = jnp.arange(x.shape[1])
        return (jnp.roll(x, -stride, axis=1) == x) & (places + stride < x.shape[1])

    def extend(sums: tuple[Array, ...], stride: int | Int[Array, ""]) -> tuple[Array, ...]:
        """Sums over the first entries of a run become sums over twice as many."""
        ahead = joined(stride)
        return tuple(part + jnp.where(ahead, jnp.roll(part, -stride, axis=1), 0) for part in sums)

    def double(state: tuple) -> tuple:
        _, stride, *sums = state
        return jnp.any(joined(2 * stride)), 2 * stride, *extend(tuple(sums), stride)

    # Random floats tie in pairs; the loop, which is slower, runs only for longer runs.
    sums = extend((y, jnp.ones_like(x)), 1)
    start = (jnp.any(joined(2)), jnp.array(2), *sums)
    _, _, total, count = jax.lax.while_loop(lambda state: state[0], double, start)
    return total / count
