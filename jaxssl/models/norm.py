"""Batch normalisation over the global batch, or over groups of it (arXiv:1502.03167)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxssl.compilation import target
from jaxssl.errors import UserError
from jaxssl.words import counted


def at_least_float32(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The array in float32, or as it is where that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def sums_by_group(x: Float[Array, "v g i *space d"]) -> Float[Array, "g d"]:
    """Sums over all axes but the groups and the last.

    On a CPU, first over the last axis of space, then as a product with ones: that takes XLA about a
    third of the time of one sum of long columns. The gradient of `spread` is such a sum too.
    """
    if target() != "cpu":
        return x.sum((0, *range(2, x.ndim - 1)))
    if x.ndim > 4:
        # Without a barrier XLA makes one sum of the two.
        x = jax.lax.optimization_barrier(x.sum(-2))
    rows = x.reshape(*x.shape[:2], -1, x.shape[-1])
    ones = jnp.ones((*x.shape[:2], 1, rows.shape[2]), x.dtype)
    return jnp.matmul(ones, rows).sum((0, 2))


def spread(
    values: Float[Array, "g d"], like: Float[Array, "v g i *space d"]
) -> Float[Array, "v g i *space d"]:
    """One value for every place in an array: the transpose of `sums_by_group`."""
    return jax.linear_transpose(sums_by_group, like)(values)[0]


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last, in at least float32.

    The statistics are those of the array it is given. Under `jax.jit` on a mesh with automatic
    axes that is the global batch, however it is sharded: there is no axis name and no gather.

    The running variance is the *biased* one, as in Flax and in SimCLR's cross-replica layer;
    PyTorch's buffer holds the unbiased one, n / (n - 1) times as large. Both normalise a training
    batch with the biased one.

    Attributes:
      scale: gamma [features], absent where `use_scale` is False.
      bias: beta [features], absent where `use_bias` is False.
      mean: running mean [features], zero at first.
      var: running variance [features], one at first.
    """

    def __init__(
        self,
        features: int,
        *,
        momentum: float,
        epsilon: float,
        groups: int,
        use_scale: bool = True,
        use_bias: bool = True,
        zero_scale: bool = False,
        param_dtype: DTypeLike = jnp.float32,
    ):
        """Makes the parameters; nothing is drawn at random.

        Args:
          features: size of the last axis.
          momentum: share of the running statistics that a training call keeps, in [0, 1):
            TensorFlow's convention, so .9 here is PyTorch's .1.
          epsilon: added to the variance, > 0.
          groups: number of contiguous, equal parts of the *images* that are normalised each by its
            own statistics, all views of an image with it. It does in one place what BatchNorm on
            as many devices without communication does (MoCo arXiv:1911.05722 section 3.3; "split"
            BatchNorm), whatever the device count. The running statistics move by the mean over
            the groups.
          use_scale: whether there is a gamma.
          use_bias: whether there is a beta (TensorFlow's ``center``).
          zero_scale: start gamma at 0, not 1: the last layer of a residual branch.
          param_dtype: dtype of parameters and running statistics.

        Raises:
          UserError: if `groups` < 1.
        """
        if groups < 1:
            raise UserError(
                f"bn_groups={groups} (of --config.encoder or of a head) must be at least 1."
            )
        self.features = features
        self.momentum = momentum
        self.epsilon = epsilon
        self.groups = groups
        gamma = jnp.zeros if zero_scale else jnp.ones
        self.scale = nnx.Param(gamma(features, param_dtype)) if use_scale else None
        self.bias = nnx.Param(jnp.zeros(features, param_dtype)) if use_bias else None
        self.mean = nnx.BatchStat(jnp.zeros(features, param_dtype))
        self.var = nnx.BatchStat(jnp.ones(features, param_dtype))

    def __call__(
        self, x: Float[Array, "b *space d"], train: bool, views: int = 1
    ) -> Float[Array, "b *space d"]:
        """Normalises x.

        Args:
          x: activations [V * B, ..., features], any floating dtype: V views of B images one after
            the other, all images of view 1 first.
          train: use the statistics of x and move the running ones; else use the running ones.
          views: V. It matters to `groups` alone, which cut the images.

        Returns:
          An array of x's shape and dtype; the arithmetic is at least float32.

        Raises:
          ValueError: if the last axis is not `features`, or V does not divide the rows.
          UserError: if `groups` does not divide B.
        """
        if x.shape[-1] != self.features:
            raise ValueError(f"BatchNorm of {self.features} features was given {x.shape[-1]}.")
        wide = at_least_float32(x)
        normalised = self._by_batch(wide, views) if train else self._by_running(wide)
        return normalised.astype(x.dtype)

    def _gain(self, variance: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
        gain = jax.lax.rsqrt(variance + self.epsilon)
        return gain if self.scale is None else gain * self.scale[...]

    def _by_running(self, x: Float[Array, "b *space d"]) -> Float[Array, "b *space d"]:
        normalised = (x - self.mean[...]) * self._gain(self.var[...])
        return normalised if self.bias is None else normalised + self.bias[...]

    def _by_batch(self, x: Float[Array, "b *space d"], views: int) -> Float[Array, "b *space d"]:
        if x.shape[0] % views:
            raise ValueError(f"{x.shape[0]} rows are not {views} views of the same images.")
        images = x.shape[0] // views
        if images % self.groups:
            raise UserError(
                f"{counted(images, 'image')} cannot make {self.groups} equal BatchNorm groups: use "
                "a --config.batch_size that is a multiple of bn_groups "
                "(--config.encoder.bn_groups, --config.method.head.bn_groups)."
            )
        # Both moments in one pass over the activations and one all-reduce. Taken about the running
        # mean, their difference does not cancel where the mean is large against the deviation.
        running_mean = self.mean[...]
        # One group keeps the rows in one axis: whatever their sharding, it survives.
        cut = (1, 1, len(x)) if self.groups == 1 else (views, self.groups, images // self.groups)
        grouped = x.reshape(*cut, *x.shape[1:]) - running_mean
        count = grouped.size // (self.groups * self.features)
        first = sums_by_group(grouped) / count
        second = sums_by_group(jnp.square(grouped)) / count
        variance = jnp.maximum(second - jnp.square(first), 0.0)
        # One factor and one summand, of which all else is a matter of a few numbers a feature.
        factor = self._gain(variance)
        summand = -first * factor
        if self.bias is not None:
            summand = summand + self.bias[...]
        normalised = grouped * spread(factor, grouped) + spread(summand, grouped)

        self._move(self.mean, running_mean + first.mean(0))
        self._move(self.var, variance.mean(0))
        return normalised.reshape(x.shape)

    def _move(self, running: nnx.BatchStat, current: Float[Array, " d"]) -> None:
        moved = self.momentum * running[...] + (1.0 - self.momentum) * current
        running[...] = jax.lax.stop_gradient(moved).astype(running.dtype)
