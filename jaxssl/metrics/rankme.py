"""RankMe: how many dimensions a representation really uses."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float


def rankme(z: Float[Array | np.ndarray, "n d"], *, block_size: int = 4096) -> float:
    """Effective rank of the outputs: RankMe, arXiv:2210.02885.

    exp of the entropy of the singular values divided by their sum. The paper takes 25,600 images
    or more: with few, n bounds the rank too. It adds 1e-7 to each share, which is left out here.

    On the host and in float64, a block of rows at a time: the triangular factor R of the rows so
    far, [d, d], has their singular values, and those of R and further rows are those of all. A
    covariance would square them, and lose the small ones that tell a rank from a smaller one.

    Args:
      z: outputs, neither centred nor normalised.
      block_size: rows that are taken in at once, at least 1.

    Returns:
      in [1, min(n, d)]; 0 where all outputs are zero, NaN where one is not finite.

    Raises:
      ValueError: for a block without rows.
    """
    if block_size < 1:
        raise ValueError(f"block_size={block_size}: give at least 1.")
    rows = np.asarray(jax.device_get(z))
    factor: Any = np.zeros((0, rows.shape[1]))
    for start in range(0, len(rows), block_size):
        block = rows[start : start + block_size].astype(np.float64)
        if not np.isfinite(block).all():
            return float("nan")
        factor = np.linalg.qr(np.concatenate([factor, block]), mode="r")
    values = np.linalg.svd(factor, compute_uv=False)
    if not values.any():
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))
