"""Measures that tell a collapsed encoder from a working one."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxssl.metrics.normalization import unit_rows


def feature_std(z: Float[Array | np.ndarray, "n d"]) -> Float[Array, ""]:
    """Standard deviation of the L2-normalised outputs over the sphere's: 1 spread out, 0 collapsed.

    The quantity of section 4.1 of SimSiam (arXiv:2011.10566), the mean over components of their
    standard deviation, times sqrt(d): there 1/sqrt(d) is the value of an even spread over the
    sphere. It is at most sqrt(1 - |m|^2), m being the mean of the normalised outputs.

    Args:
      z: outputs, n >= 1, not normalised; a zero row stays zero.

    Returns:
      scalar in [0, 1]; at least float32.
    """
    stds = jnp.std(unit_rows(jnp.asarray(z)), axis=0)
    return stds.mean() * math.sqrt(z.shape[1])
