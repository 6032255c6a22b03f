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
from jaxssl.augment.views import augment_view, normalize, to_float
from jaxssl.checkpoint import CheckpointReader
from jaxssl.distributed import replicated
from jaxssl.evaluation.features import Batch, Embed, clean_view
from jaxssl.models import build_encoder
from jaxssl.randomness import Purpose, Split, sample_keys, step_key

Apply = Callable[[Any, Array], Array]


def _cropped_view(
    batch: Batch, config: ConfigDict, seed: UInt[Array, ""], epoch: Int[Array, ""]
) -> Float[Array, "b h w c"]:
    """Crop and flip of pretraining's first view, its colour operations left out."""
    view = config.views.view1
    recipe = Augmentation(
        size=view.size,
        crop_scale=view.crop_scale,
        crop_ratio=view.crop_ratio,
        crop_filter=view.crop_filter,
        crop_antialias=view.crop_antialias,
        crop_subpixel=view.crop_subpixel,
        flip_p=view.flip_p,
    )
    index = batch["index"]
    epochs = jnp.full_like(index, epoch)
    keys = sample_keys(seed, Purpose.PROBE_VIEW, Split.TRAIN, epochs, index, 0)
    images = augment_view(to_float(batch["image"]), keys, recipe)[0]
    return normalize(images, config.normalize.mean, config.normalize.std)


class Network:
    """A frozen map from images to features.

    Attributes:
      arrays: parameters and statistics, a pytree.
    """

    def __init__(self, config: ConfigDict, apply: Apply, arrays: Any):
        """Takes ``apply(arrays, images) -> features`` [B, D], pure."""
        self.arrays = arrays
        self._clean = jax.jit(lambda arrays, batch: apply(arrays, clean_view(batch, config)))
        self._cropped = jax.jit(
            lambda arrays, batch, seed, epoch: apply(
                arrays, _cropped_view(batch, config, seed, epoch)
            )
        )

    def clean(self) -> Embed:
        """Features of the images as they are."""
        return lambda batch: self._clean(self.arrays, batch)

    def cropped(self, seed: int, epoch: int) -> Embed:
        """Features of the images cropped and flipped, differently in each epoch."""
        draw = (jnp.uint32(seed), jnp.int32(epoch))
        return lambda batch: self._cropped(self.arrays, batch, *draw)

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
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)),
        {"params": {"encoder": params}, "rest": {"encoder": rest}},
    )
    step, state = checkpoints.restore_partial(template, step)
    arrays = (state["params"]["encoder"], state["rest"]["encoder"])
    return Network(config, _pooled(graph), arrays), step


def fresh_encoder(config: ConfigDict, channels: int, mesh: Mesh) -> Network:
    """The encoder with the weights that the run itself began with."""
    graph = nnx.eval_shape(lambda: _split_encoder(config, channels))[0]
    arrays = jax.jit(lambda: _split_encoder(config, channels)[1:], out_shardings=replicated(mesh))()
    return Network(config, _pooled(graph), arrays)


def raw_pixels(config: ConfigDict) -> Network:
    """The normalised pixels themselves as features."""
    return Network(config, lambda arrays, images: images.reshape(images.shape[0], -1), ())


def _split_encoder(config: ConfigDict, channels: int) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    # The stream and the order of drawing are build_method's, so that the weights are too.
    rngs = nnx.Rngs(step_key(config.init_seed, Purpose.INIT, 0))
    return nnx.split(build_encoder(config.encoder, channels, rngs), nnx.Param, ...)


def _pooled(graph: nnx.GraphDef) -> Apply:
    return lambda arrays, images: nnx.merge(graph, *arrays, copy=True)(images, train=False).pooled
