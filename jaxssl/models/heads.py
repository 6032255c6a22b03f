"""Projection and prediction heads: stacks of one to a few dense layers on pooled features.

Published heads are settings of one class (hidden layers; last layer):

    SimCLR v1/v2   arXiv:2002.05709  no bias, BatchNorm, ReLU; no bias, "bn_no_center"; N(0, .01)
    MoCo-v2        arXiv:2003.04297  bias, ReLU; bias; fan_in_uniform
    MoCo's CIFAR demo                num_layers=1: bias; fan_in_uniform
    BYOL           arXiv:2006.07733  4096: bias, BatchNorm, ReLU; 256: no bias
    SimSiam        arXiv:2011.10566  no bias, BatchNorm, ReLU; no bias, "bn_no_affine"
    Barlow Twins   arXiv:2103.03230  8192: no bias, BatchNorm, ReLU; no bias
    SwAV           arXiv:2006.09882  2048: bias, BatchNorm, ReLU; 128: bias; fan_in_uniform
    DINO           arXiv:2104.14294  2048, 2048: bias, GELU; 256: bias; normal_0.02
    Align-Uniform  arXiv:2005.10242  num_layers=1 (fc8 of the small AlexNet): bias; normal_0.02
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jaxssl.errors import UserError, choose
from jaxssl.models.layers import LayerSettings
from jaxssl.models.norm import BatchNorm, at_least_float32
from jaxssl.ranges import AT_LEAST_ONE, MOMENTUM, NON_NEGATIVE, POSITIVE, check_ranges

Activation = Callable[[Array], Array]

SETTINGS = {
    "num_layers": AT_LEAST_ONE,
    "hidden_dim": NON_NEGATIVE,
    "out_dim": AT_LEAST_ONE,
    "bn_momentum": MOMENTUM,
    "bn_epsilon": POSITIVE,
    "bn_groups": AT_LEAST_ONE,
}


class DenseInit(NamedTuple):
    """Initial values of a dense layer: `bias` takes the layer's input size."""

    kernel: Callable
    bias: Callable[[int], Callable]


def _uniform_bias(in_dim: int) -> Callable:
    limit = in_dim**-0.5

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def _zero_bias(in_dim: int) -> Callable:
    del in_dim
    return jax.nn.initializers.zeros


DENSE_INITS = {
    "normal_0.01": DenseInit(jax.nn.initializers.normal(0.01), _zero_bias),  # SimCLR
    # Align-Uniform; DINO, whose code cuts it off at +-2: never.
    "normal_0.02": DenseInit(jax.nn.initializers.normal(0.02), _zero_bias),
    # PyTorch's Linear: kernel and bias uniform in +-1/sqrt(fan_in).
    "fan_in_uniform": DenseInit(
        jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), _uniform_bias
    ),
    # Haiku's Linear (BYOL).
    "fan_in_truncated_normal": DenseInit(
        jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal"), _zero_bias
    ),
}


def _no_norm(settings: LayerSettings, features: int) -> None:
    return None


def _full_norm(settings: LayerSettings, features: int) -> BatchNorm:
    return settings.norm(features)


def _norm_without_center(settings: LayerSettings, features: int) -> BatchNorm:
    return settings.norm(features, use_bias=False)


def _norm_without_affine(settings: LayerSettings, features: int) -> BatchNorm:
    return settings.norm(features, use_scale=False, use_bias=False)


OUTPUT_NORMS: dict[str, Callable[[LayerSettings, int], BatchNorm | None]] = {
    "none": _no_norm,
    "bn": _full_norm,
    "bn_no_center": _norm_without_center,
    "bn_no_affine": _norm_without_affine,
}


class ProjectionHead(nnx.Module):
    """Hidden layers of dense, perhaps BatchNorm, ReLU; then a dense layer, perhaps BatchNorm.

    A method may have another activation than ReLU.

    Attributes:
      in_dim: size of the input.
      out_dim: size of the output.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        num_layers: int,
        *,
        hidden_norm: bool,
        hidden_bias: bool,
        output_norm: str,
        output_bias: bool,
        init: str,
        settings: LayerSettings,
        rngs: nnx.Rngs,
        group: str = "method.head",
        activation: Activation = jax.nn.relu,
    ):
        """Makes the head.

        Args:
          in_dim: size of the input.
          hidden_dim: size of the hidden layers; 0 for that of the input.
          out_dim: size of the output.
          num_layers: dense layers, the last one included, >= 1.
          hidden_norm: BatchNorm between a hidden dense layer and its ReLU.
          hidden_bias: whether hidden dense layers have a bias.
          output_norm: what follows the last dense layer, a key of `OUTPUT_NORMS`.
          output_bias: whether the last dense layer has a bias.
          init: a key of `DENSE_INITS`.
          settings: BatchNorm and dtype.
          rngs: source of the initial values.
          group: of the config, for messages.
          activation: of the hidden layers.

        Raises:
          UserError: if an argument names no known option, or a size is not possible.
        """
        if num_layers < 1 or min(in_dim, out_dim) < 1 or hidden_dim < 0:
            raise UserError(
                f"a head with num_layers={num_layers}, in_dim={in_dim}, out_dim={out_dim}, "
                f"hidden_dim={hidden_dim} is not possible: hidden_dim must be at least 0 and the "
                "others at least 1."
            )
        self.in_dim, self.out_dim = in_dim, out_dim
        self.compute_dtype = settings.compute_dtype
        self.activation = activation
        dense_init = choose(f"{group}.init", init, DENSE_INITS)
        hidden = [hidden_dim or in_dim] * (num_layers - 1)
        sizes = [in_dim, *hidden, out_dim]

        def dense(inputs: int, outputs: int, use_bias: bool) -> nnx.Linear:
            return nnx.Linear(
                inputs,
                outputs,
                use_bias=use_bias,
                dtype=settings.compute_dtype,
                param_dtype=settings.param_dtype,
                kernel_init=dense_init.kernel,
                bias_init=dense_init.bias(inputs),
                rngs=rngs,
            )

        self.hidden = nnx.List(
            [dense(a, b, hidden_bias) for a, b in zip(sizes[:-2], hidden, strict=True)]
        )
        self.hidden_norms = nnx.List([settings.norm(size) for size in hidden if hidden_norm])
        self.output = dense(sizes[-2], out_dim, output_bias)
        self.output_norm = choose(f"{group}.output_norm", output_norm, OUTPUT_NORMS)(
            settings, out_dim
        )

    def __call__(
        self, x: Float[Array, "b *space d"], train: bool, views: int = 1
    ) -> Float[Array, "b *space k"]:
        """Projects features.

        Args:
          x: features [V * B, in_dim], or maps [V * B, ..., in_dim], whose cells are projected
            alike: on a map the dense layers are 1x1 convolutions.
          train: normalise by the batch and move BatchNorm's running statistics.
          views: V, how many views of the same images are stacked in x.

        Returns:
          Projections [V * B, ..., out_dim], not normalised to unit length, in at least float32.
        """
        return self.layers(x, train, views)[-1]

    def layers(
        self, x: Float[Array, "b *space d"], train: bool, views: int = 1
    ) -> tuple[Float[Array, "b *space _k"], ...]:
        """What each layer gives, in at least float32: hidden ones activated, then the last.

        SimCLR-v2 (arXiv:2006.10029) probes a middle one. Arguments as of `__call__`.
        """
        x = x.astype(self.compute_dtype)
        outputs = []
        for layer, dense in enumerate(self.hidden):
            x = dense(x)
            if self.hidden_norms:
                x = self.hidden_norms[layer](x, train, views)
            x = self.activation(x)
            outputs.append(at_least_float32(x))
        x = self.output(x)
        if self.output_norm is not None:
            x = self.output_norm(x, train, views)
        return (*outputs, at_least_float32(x))


def build_head(
    config: ConfigDict,
    in_dim: int,
    dtype: str,
    rngs: nnx.Rngs,
    group: str = "method.head",
    activation: Activation = jax.nn.relu,
) -> ProjectionHead:
    """The head or predictor that a group of a config describes.

    Args:
      config: fields `num_layers`, `hidden_dim`, `out_dim`, `hidden_norm`, `hidden_bias`,
        `output_norm`, `output_bias`, `init`, as in `ProjectionHead`; `bn_momentum`, `bn_epsilon`,
        `bn_groups`, as in `LayerSettings`.
      in_dim: size of the input: an encoder's `feature_dim`, or the `out_dim` of another head.
      dtype: the encoder's.
      rngs: source of the initial values.
      group: where in the config the fields are, for messages.
      activation: of the hidden layers, the method's own choice.

    Raises:
      UserError: if a field names no known option or is out of range.
    """
    check_ranges(group, config, SETTINGS)
    return ProjectionHead(
        in_dim,
        config.hidden_dim,
        config.out_dim,
        config.num_layers,
        hidden_norm=config.hidden_norm,
        hidden_bias=config.hidden_bias,
        output_norm=config.output_norm,
        output_bias=config.output_bias,
        init=config.init,
        settings=LayerSettings(
            bn_momentum=config.bn_momentum,
            bn_epsilon=config.bn_epsilon,
            bn_groups=config.bn_groups,
            dtype=dtype,
        ),
        rngs=rngs,
        group=group,
        activation=activation,
    )


def build_predictor(
    config: ConfigDict, head: ProjectionHead, dtype: str, rngs: nnx.Rngs
) -> ProjectionHead:
    """The predictor that ``config.method.predictor`` describes: from projections to projections.

    Args:
      config: as of `build_head`.
      head: whose outputs it takes, and predicts.
      dtype: the encoder's.
      rngs: source of the initial values.

    Raises:
      UserError: as `build_head`, or if the two differ in their outputs' size.
    """
    if config.out_dim != head.out_dim:
        raise UserError(
            f"--config.method.predictor.out_dim={config.out_dim} must be that of the projections "
            f"it predicts, --config.method.head.out_dim={head.out_dim}."
        )
    return build_head(config, head.out_dim, dtype, rngs, "method.predictor")
