"""Pre-norm Transformer blocks (arXiv:2010.11929), as timm builds them for vision Transformers.

Tokens are [B, N, D]. The sum along the blocks and the LayerNorms are in at least float32, matrix
products in the compute dtype, attention's softmax in at least float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxssl.errors import UserError, choose
from jaxssl.models.heads import DENSE_INITS, DenseInit
from jaxssl.models.layers import COMPUTE_DTYPES, param_dtype
from jaxssl.models.norm import at_least_float32

NORM_EPSILON = 1e-6  # timm, DINO, MAE and MoCo-v3 alike


class TransformerInit(NamedTuple):
    """Initial values of kernels; biases of `dense` and `qkv` start at 0.

    Attributes:
      dense: of dense layers.
      qkv: of the kernel [D, 3D] that makes queries, keys and values.
      patch: of the layer that embeds a patch, which gets it flattened.
    """

    dense: Callable
    qkv: Callable
    patch: DenseInit


_XAVIER = jax.nn.initializers.xavier_uniform()

TRANSFORMER_INITS: dict[str, TransformerInit] = {
    # timm and DINO. Theirs is truncated, but at a hundred deviations; the patches' layer, to them a
    # convolution, keeps PyTorch's own initial values.
    "normal_0.02": TransformerInit(
        jax.nn.initializers.normal(0.02),
        jax.nn.initializers.normal(0.02),
        DENSE_INITS["fan_in_uniform"],
    ),
    # MoCo-v3 and MAE. Queries, keys and values are three matrices [D, D], whose limit is that of
    # twice the variance in one of [D, 3D]. (MAE takes that one for a whole.)
    "xavier_uniform": TransformerInit(
        _XAVIER,
        jax.nn.initializers.variance_scaling(2.0, "fan_avg", "uniform"),
        DenseInit(_XAVIER, lambda in_dim: jax.nn.initializers.zeros),
    ),
}


def layer_norm(width: int, dtype: str, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A LayerNorm over the last axis, computed in at least float32 whatever the compute dtype."""
    # Not by the mean of squares less the square of the mean, which cancels.
    return nnx.LayerNorm(
        width,
        epsilon=NORM_EPSILON,
        param_dtype=param_dtype(dtype),
        use_fast_variance=False,
        rngs=rngs,
    )


class Attention(nnx.Module):
    """Multi-head self-attention with biases; queries, keys and values come of one layer."""

    def __init__(self, width: int, heads: int, *, kernel_init: str, dtype: str, rngs: nnx.Rngs):
        """Makes the layer; arguments as of `TransformerBlock`."""
        self.heads = heads
        init = choose("encoder.kernel_init", kernel_init, TRANSFORMER_INITS)
        self.qkv = _dense(width, 3 * width, init.qkv, dtype, rngs)
        self.output = _dense(width, width, init.dense, dtype, rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """What each token takes from all of its image, in the compute dtype."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        wide = jnp.promote_types(q.dtype, jnp.float32)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide)
        weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1).astype(v.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return self.output(mixed.reshape(batch, tokens, width))


class TransformerBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with one hidden layer and an exact GELU."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        *,
        kernel_init: str,
        dtype: str,
        rngs: nnx.Rngs,
        group: str = "encoder",
    ):
        """Makes the block.

        Args:
          width: size D of a token.
          heads: of the attention; divides `width`.
          mlp_ratio: size of the hidden layer over `width`.
          kernel_init: a key of `TRANSFORMER_INITS`.
          dtype: a key of `COMPUTE_DTYPES`; parameters are float32 at least.
          rngs: source of the initial kernels.
          group: of the config, for messages.

        Raises:
          UserError: if an argument names no known option, or `heads` does not divide `width`.
        """
        if width % heads:
            raise UserError(
                f"--config.{group}.heads={heads} does not divide --config.{group}.width={width}: "
                "give a divisor."
            )
        init = choose(f"{group}.kernel_init", kernel_init, TRANSFORMER_INITS)
        hidden = round(width * mlp_ratio)
        self.norm1 = layer_norm(width, dtype, rngs)
        self.attention = Attention(width, heads, kernel_init=kernel_init, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, dtype, rngs)
        self.hidden = _dense(width, hidden, init.dense, dtype, rngs)
        self.output = _dense(hidden, width, init.dense, dtype, rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """The block's output in at least float32."""
        # A sum of bfloat16 would lose what a late block adds.
        x = at_least_float32(x)
        x = x + self.attention(self.norm1(x))
        return x + self.output(jax.nn.gelu(self.hidden(self.norm2(x)), approximate=False))


def _dense(inputs: int, outputs: int, init: Callable, dtype: str, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        inputs,
        outputs,
        dtype=choose("encoder.dtype", dtype, COMPUTE_DTYPES),
        param_dtype=param_dtype(dtype),
        kernel_init=init,
        rngs=rngs,
    )
