"""Prototypes: directions that features are compared with (SwAV, DINO's last layer)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxssl.losses.arrays import normalize
from jaxssl.models.layers import COMPUTE_DTYPES, param_dtype


class Prototypes(nnx.Module):
    """K vectors of unit length, and the cosines of features with them.

    Attributes:
      kernel: [D, K], one prototype a column, random directions at first.
    """

    def __init__(self, dim: int, count: int, dtype: str, rngs: nnx.Rngs):
        """K = ``count`` directions of D = ``dim`` components.

        Args:
          dim: size of the features.
          count: number of prototypes.
          dtype: the encoder's, a key of `jaxssl.models.layers.COMPUTE_DTYPES`.
          rngs: source of the directions.
        """
        self.compute_dtype = COMPUTE_DTYPES[dtype]
        directions = jax.random.normal(rngs.params(), (count, dim), param_dtype(dtype))
        self.kernel = nnx.Param(normalize(directions).T)

    def __call__(self, features: Float[Array, "*batch d"]) -> Float[Array, "*batch k"]:
        """Cosines [..., K], in at least float32, of features of any length and the prototypes.

        The gradient to the prototypes is that of a plain product; `normalize` keeps them of unit
        length, as SwAV's code does.
        """
        return self._cosines(features, self.kernel[...])

    def _cosines(
        self, features: Float[Array, "*batch d"], directions: Float[Array, "d k"]
    ) -> Float[Array, "*batch k"]:
        return jnp.dot(
            normalize(features).astype(self.compute_dtype),
            directions.astype(self.compute_dtype),
            preferred_element_type=directions.dtype,
        )

    def normalize(self) -> None:
        """Makes the prototypes of unit length again, after the optimizer has moved them."""
        self.kernel[...] = normalize(self.kernel[...].T).T


class WeightNormalized(Prototypes):
    """Prototypes of any length whose direction alone counts: weight normalisation, gain 1.

    The gradient (arXiv:1602.07868, with the gain fixed at 1) is at right angles to each prototype.
    """

    def __call__(self, features: Float[Array, "*batch d"]) -> Float[Array, "*batch k"]:
        """Cosines [..., K], in at least float32."""
        return self._cosines(features, normalize(self.kernel[...].T).T)
