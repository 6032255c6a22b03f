"""Reconstruction: of masked patches, and the two terms of a variational autoencoder's bound."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxssl.losses.arrays import (
    check_features,
    check_floating,
    check_matching,
    check_rank,
    promote,
)
from jaxssl.losses.collectives import AxisName, axis_size, mean_over_shards, sum_over_shards


def masked_reconstruction(
    prediction: Float[Array, "b p d"],
    target: Float[Array, "b p d"],
    mask: Bool[Array, "b p"],
    *,
    normalize_target: bool,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Mean squared error over the masked patches (MAE, arXiv:2111.06377).

    The error of a patch is averaged over its D values, then over the masked patches of the global
    batch; 0 if none is masked. No gradient reaches the target.

    Args:
      prediction: decoded patches, [B, P, D].
      target: the patches, [B, P, D].
      mask: True where the encoder did not see the patch, [B, P].
      normalize_target: give each target patch zero mean and unit variance (unbiased, plus 1e-6, as
        the reference code) first.
      axis_name: mapped axis that the batch is sharded over.

    Raises:
      ValueError: for shapes other than these, or a single value a patch with ``normalize_target``.

    >>> import jax.numpy as jnp
    >>> prediction, target = jnp.zeros((1, 2, 4)), jnp.array([[[1.0] * 4, [5.0] * 4]])
    >>> mask = jnp.array([[True, False]])
    >>> print(masked_reconstruction(prediction, target, mask, normalize_target=False))
    1.0
    """
    check_rank(3, "[B, P, D]", prediction=prediction, target=target)
    check_floating(prediction=prediction, target=target)
    check_matching(prediction=prediction, target=target)
    check_rank(2, "[B, P]", mask=mask)
    check_matching(mask=mask, patches=prediction[..., 0])
    prediction, target = promote(prediction), promote(jax.lax.stop_gradient(target))
    target = target.astype(jnp.promote_types(target.dtype, prediction.dtype))
    if normalize_target:
        if target.shape[-1] < 2:
            raise ValueError(f"target {target.shape} has one value a patch: it has no variance.")
        variance = jnp.var(target, axis=-1, keepdims=True, ddof=1)
        target = (target - jnp.mean(target, axis=-1, keepdims=True)) / jnp.sqrt(variance + 1e-6)
    error = jnp.mean((prediction - target) ** 2, axis=-1)
    number = sum_over_shards(jnp.sum(mask), axis_name)
    total = jnp.sum(jnp.where(mask, error, 0)) * axis_size(axis_name)
    return mean_over_shards(total / jnp.maximum(number, 1), axis_name)


def bernoulli_nll(
    logits: Float[Array, "b h w c"], target: Float[Array, "b h w c"]
) -> Float[Array, ""]:
    """Negative log-likelihood of images under independent Bernoulli pixels (arXiv:1312.6114, C.1).

    Summed over pixels and channels, mean over the batch, in nats. No gradient reaches the target.
    Samples do not meet one another, so a mapped caller takes ``lax.pmean`` of it.

    Args:
      logits: log-odds of each value, [B, H, W, C].
      target: images in [0, 1], [B, H, W, C]; grey values count as probabilities, so that the loss
        is their cross-entropy. Outside of [0, 1] it has no lower bound.

    Raises:
      ValueError: for shapes that are not one [B, H, W, C].

    >>> import jax.numpy as jnp
    >>> print(f"{bernoulli_nll(jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1))):.4f}")  # 4 log 2
    2.7726
    """
    check_rank(4, "[B, H, W, C]", logits=logits, target=target)
    check_floating(logits=logits, target=target)
    check_matching(logits=logits, target=target)
    logits, target = promote(logits), promote(jax.lax.stop_gradient(target))
    nats = jax.nn.softplus(logits) - target * logits
    return jnp.mean(jnp.sum(nats, axis=(1, 2, 3)))


def gaussian_kl(mean: Float[Array, "b d"], log_variance: Float[Array, "b d"]) -> Float[Array, ""]:
    """Divergence of diagonal Gaussians from the standard one (arXiv:1312.6114, appendix B).

    ``KL(N(mean, exp(log_variance)) || N(0, 1))`` summed over the D values, mean over the batch, in
    nats. Samples do not meet one another, so a mapped caller takes ``lax.pmean`` of it.

    Args:
      mean: [B, D].
      log_variance: [B, D].

    Raises:
      ValueError: for shapes that are not one [B, D].

    >>> import jax.numpy as jnp
    >>> print(gaussian_kl(jnp.ones((1, 4)), jnp.zeros((1, 4))))  # 4 * 1 / 2
    2.0
    """
    check_features(mean=mean, log_variance=log_variance)
    mean, log_variance = promote(mean), promote(log_variance)
    nats = (jnp.exp(log_variance) + mean**2 - 1 - log_variance) / 2
    return jnp.mean(jnp.sum(nats, axis=1))
