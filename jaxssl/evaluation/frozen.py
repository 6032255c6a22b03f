"""Networks as a probe sees them: from a batch to features, and never changed."""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt
from ml_collections import ConfigDict

from jaxssl.augment.augmentation import Augmentation
from jaxssl.augment.policies import make_finisher
from jaxssl.augment.views import augment_view, to_float
from jaxssl.checkpoint import CheckpointReader
from jaxssl.distributed import replicated, templates
from jaxssl.evaluation.features import Batch
from jaxssl.models import build_encoder
from jaxssl.randomness import Purpose, sample_keys, step_key

Apply = Callable[[Any, Array], Array]


def make_cropped_view(config: ConfigDict) -> Callable[..., Float[Array, "b h w c"]]:
    """From (batch, seed, epoch) to images cropped and flipped, differently in each epoch.

    Crop and flip are those of pretraining's first view, its colour operations left out; all else is
    as in the test-time images.
    """
    view = config.views.view1
    finish = make_finisher(config)
    recipe = Augmentation(
        size=view.size,
        crop_scale=view.crop_scale,
        crop_ratio=view.crop_ratio,
        crop_filter=view.crop_filter,
        crop_antialias=view.crop_antialias,
        crop_subpixel=view.crop_subpixel,
        flip_p=view.flip_p,
    )

    def cropped_view(
        batch: Batch, seed: UInt[Array, ""], epoch: Int[Array, ""]
    ) -> Float[Array, "b h w c"]:
        index = batch["index"]
        epochs = jnp.full_like(index, epoch)
        keys = sample_keys(seed, Purpose.PROBE_VIEW, batch["split"], epochs, index, 0)
        images = augment_view(to_float(batch["image"]), keys, recipe)[0]
        return finish(images, batch, 0)

    return cropped_view


class Network:
    """A frozen map from images to features.

    Attributes:
      arrays: parameters and statistics, a pytree.
    """

    def __init__(self, apply: Apply, arrays: Any):
        """Takes ``apply(arrays, images) -> features`` [B, D], pure."""
        self.arrays = arrays
        self._apply = apply

    def through(self, view: Callable[..., Float[Array, "b h w c"]]) -> Callable[..., Array]:
        """Jitted: features of what ``view`` makes of a batch and further arguments."""
        embed = jax.jit(lambda arrays, *inputs: self._apply(arrays, view(*inputs)))
        return lambda *inputs: embed(self.arrays, *inputs)

    def digest(self) -> str:
        """SHA-256 of all parameters and statistics, in hexadecimal."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.arrays):
            digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
        return digest.hexdigest()


def restored_encoder(
    checkpoints: CheckpointReader, step: int | None, config: ConfigDict, channels: int, mesh: Mesh
) -> tuple[Network, int]:
    """The encoder of a checkpoint, on any mesh, and the step it is of.

    Raises:
      UserError: if the checkpoint is absent, damaged, or of another encoder.
    """
    graph, params, rest = nnx.eval_shape(lambda: _split_encoder(config, channels))
    template = templates(mesh, {"params": {"encoder": params}, "rest": {"encoder": rest}})
    step, state = checkpoints.restore_partial(template, step)
    arrays = (state["params"]["encoder"], state["rest"]["encoder"])
    return Network(_pooled(graph), arrays), step


def fresh_encoder(config: ConfigDict, channels: int, mesh: Mesh) -> Network:
    """The encoder with the weights that the run itself began with."""
    graph = nnx.eval_shape(lambda: _split_encoder(config, channels))[0]
    arrays = jax.jit(lambda: _split_encoder(config, channels)[1:], out_shardings=replicated(mesh))()
    return Network(_pooled(graph), arrays)


def raw_pixels() -> Network:
    """The normalised pixels themselves as features."""
    return Network(lambda arrays, images: images.reshape(images.shape[0], -1), ())


def _split_encoder(config: ConfigDict, channels: int) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    # The stream and the order of drawing are build_method's, so that the weights are too.
    rngs = nnx.Rngs(step_key(config.init_seed, Purpose.INIT, 0))
    return nnx.split(build_encoder(config.encoder, channels, rngs), nnx.Param, ...)


def _pooled(graph: nnx.GraphDef) -> Apply:
    return lambda arrays, images: nnx.merge(graph, *arrays, copy=True)(images, train=False).pooled
