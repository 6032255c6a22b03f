"""Transport between two small sets of equally heavy points, for matching the cells of two maps."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike

from jaxssl.losses.arrays import check_positive, inverse
from jaxssl.losses.collectives import varying_like


def entropic_plan(
    cost: Float[Array, "*batch p p"], *, epsilon: ScalarLike, iterations: int | Int[Array, ""]
) -> Float[Array, "*batch p p"]:
    """Entropic optimal transport plan by Sinkhorn's iteration on logarithms (arXiv:1306.0895).

    Minimises ``sum T cost - epsilon H(T)`` over plans whose rows and columns each sum to 1 / P.

    Args:
      cost: cost of each pair, [..., P, P].
      epsilon: regularisation in units of the cost, above 0.
      iterations: rounds, 1 or more; the rows sum to 1 / P exactly, the columns in the limit.

    Raises:
      ValueError: for a known epsilon or number of rounds that is not above 0.

    >>> import jax.numpy as jnp
    >>> cost = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    >>> print(entropic_plan(cost, epsilon=0.05, iterations=50).round(4))
    [[0.5 0. ]
     [0.  0.5]]
    """
    check_positive(epsilon=epsilon, iterations=iterations)

    def scale(_: Int[Array, ""], log_plan: Array) -> Array:
        log_plan = jax.nn.log_softmax(log_plan, axis=-2)
        return jax.nn.log_softmax(log_plan, axis=-1)

    log_plan = jax.lax.fori_loop(0, iterations, scale, -cost * inverse(epsilon, cost))
    return jnp.exp(log_plan) / cost.shape[-1]


def exact_assignment(cost: Float[Array, "p p"]) -> Int[Array, " p"]:
    """The permutation of least total cost: column of each row. The reference for the plan.

    Shortest augmenting paths (Hungarian method), one row after the other: P^3 steps of which P run
    side by side, so for small P. ``optax.assignment.hungarian_algorithm`` gives the same answer but
    not inside ``shard_map``: its loops start from constants, which ``check_vma`` refuses.

    Args:
      cost: cost of each pair, [P, P]; one that is not finite counts as 0.

    >>> import jax.numpy as jnp
    >>> print(exact_assignment(jnp.array([[1.0, 0.0], [1.0, 1.0]])))
    [1 0]
    """
    size = cost.shape[0]
    # With NaN or infinite costs the search for a path would never end.
    cost = jnp.where(jnp.isfinite(cost), cost, 0)
    # Column 0 and row 0 stand for "unassigned", so that a path starts at the new row's column 0.
    padded = jnp.pad(cost, ((1, 0), (1, 0)))
    like = partial(varying_like, other=cost)

    def add_row(row: Array, state: tuple) -> tuple:
        row_price, column_price, row_of = state
        row_of = row_of.at[0].set(row)

        def unfinished(search: tuple) -> Array:
            return row_of[search[0]] != 0

        def grow(search: tuple) -> tuple:
            column, slack, previous, used, row_price, column_price = search
            used = used.at[column].set(True)
            reduced = padded[row_of[column]] - row_price[row_of[column]] - column_price
            closer = ~used & (reduced < slack)
            slack = jnp.where(closer, reduced, slack)
            previous = jnp.where(closer, column, previous)
            open_slack = jnp.where(used, jnp.inf, slack)
            following = jnp.argmin(open_slack)
            step = open_slack[following]
            row_price = row_price.at[row_of].add(jnp.where(used, step, 0))
            column_price = jnp.where(used, column_price - step, column_price)
            return following, slack - step, previous, used, row_price, column_price

        search = (
            like(jnp.zeros((), int)),
            like(jnp.full(size + 1, jnp.inf, cost.dtype)),
            like(jnp.zeros(size + 1, int)),
            like(jnp.zeros(size + 1, int)) > 0,
            row_price,
            column_price,
        )
        column, _, previous, _, row_price, column_price = jax.lax.while_loop(
            unfinished, grow, search
        )

        def turn(path: tuple) -> tuple:
            column, row_of = path
            before = previous[column]
            return before, row_of.at[column].set(row_of[before])

        _, row_of = jax.lax.while_loop(lambda path: path[0] != 0, turn, (column, row_of))
        return row_price, column_price, row_of

    prices = like(jnp.zeros(size + 1, cost.dtype))
    start = (prices, prices, like(jnp.zeros(size + 1, int)))
    _, _, row_of = jax.lax.fori_loop(1, size + 1, add_row, start)
    return jnp.zeros(size, int).at[row_of[1:] - 1].set(jnp.arange(size))
