"""Networks as a probe sees them: from a batch to a named layer, and never changed."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt
from ml_collections import ConfigDict

import jaxssl
from jaxssl import extensions
from jaxssl.augment.augmentation import Augmentation
from jaxssl.augment.policies import make_clean_view, make_finisher, make_policy
from jaxssl.augment.views import augment_view, to_float
from jaxssl.checkpoint import CheckpointReader
from jaxssl.compilation import compiler_options
from jaxssl.distributed import layout, templates
from jaxssl.errors import UserError
from jaxssl.evaluation.features import Batch, as_vectors
from jaxssl.methods import Spec, build_method
from jaxssl.randomness import Purpose, sample_keys
from jaxssl.run_directory import read_config, read_info
from jaxssl.storage import Path
from jaxssl.training.schedules import Schedules
from jaxssl.training.state import merge, split, traced_scalars
from jaxssl.upgrade import spec_of

PIXELS = "pixels"  # the one layer of `raw_pixels`

View = Callable[..., Float[Array, "b h w c"]]
Represent = Callable[[Any, Array], Mapping[str, Array]]


def make_test_view(config: ConfigDict) -> Callable[[Batch], Float[Array, "b h w c"]]:
    """The test-time images of a run's config."""
    finish = make_finisher(config.corruption, config.normalize, config.randbit)
    return make_clean_view(config.views.global_crops.size, finish)


def make_pair_views(config: ConfigDict, spec: Spec, seed: int) -> tuple[View, View]:
    """Two augmented views of a batch by the run's own policy, drawn by ``seed``.

    They are the first two global crops, at one size; a run with one view has a second by the same
    recipe. What the policy reads from ``hyper`` is as at the end of the run's schedules, so that
    all checkpoints of a run are measured by the same views.
    """
    views = config.views.copy_and_resolve_references()
    with views.unlocked():
        views.global_crops.count = 2
        if "local_crops" in views:
            del views["local_crops"]
        if "second" in views.global_crops and "size" in views.global_crops.second:
            del views.global_crops.second["size"]
    finish = make_finisher(config.corruption, config.normalize, config.randbit)
    policy = make_policy(views, finish, order=config.corruption.order)
    schedules = Schedules.from_config(config.hyper, config.epochs, spec.steps_per_epoch)
    # The last step of a run may fall short of its horizon by a part of one.
    beyond = int(config.epochs * spec.steps_per_epoch) + 1
    numbers = schedules.at(traced_scalars(config), beyond)
    numbers["data_seed"] = jnp.uint32(seed)

    def view_of(number: int) -> View:
        return lambda batch: policy(batch, numbers).images[number]

    return view_of(0), view_of(1)


def make_cropped_view(config: ConfigDict) -> View:
    """From (batch, seed, epoch) to images cropped and flipped, differently in each epoch.

    Crop and flip are those of pretraining's first view, its colour operations left out; all else is
    as in the test-time images. The epoch is one for all, or one an image.
    """
    view = config.views.global_crops
    finish = make_finisher(config.corruption, config.normalize, config.randbit)
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
        batch: Batch, seed: UInt[Array, ""], epoch: Int[Array, "*images"]
    ) -> Float[Array, "b h w c"]:
        index = batch["index"]
        epochs = jnp.full_like(index, epoch)
        keys = sample_keys(seed, Purpose.PROBE_VIEW, batch["split"], epochs, index, 0)
        images = augment_view(to_float(batch["image"]), keys, recipe, batch["content"])[0]
        return finish(images, batch, 0)

    return cropped_view


class Network:
    """A frozen map from images to named layers.

    Attributes:
      arrays: two trees, the parameters and all other variables.
      computes: names what is made of the arrays, for what is kept on disk: equal arrays may lie in
        networks of another precision, or of code that has changed since; "": not told apart.
    """

    def __init__(self, represent: Represent, arrays: tuple[Any, Any], computes: str = ""):
        """Takes ``represent(arrays, images)``, pure, which gives [B, ..., D] arrays by name."""
        self.arrays = arrays
        self.computes = computes
        self._represent = represent

    def layers(self, view: View, *inputs: Any) -> dict[str, tuple[int, ...]]:
        """Shapes of the layers there are for what ``view`` makes of a batch; computes nothing."""
        images = jax.eval_shape(view, *inputs)
        found = jax.eval_shape(self._represent, self.arrays, images)
        return {name: layer.shape for name, layer in found.items()}

    def through(
        self, view: View, layer: str, *, flat: bool = False
    ) -> Callable[..., Float[Array, "b d"]]:
        """Jitted: a layer, as vectors, of what ``view`` makes of a batch and further arguments.

        Args:
          view: makes the images.
          layer: its name.
          flat: a map is a vector of all its cells, in rows, and not averaged over them.
        """

        def embed(arrays: tuple[Any, Any], *inputs: Any) -> Float[Array, "b d"]:
            found = self._represent(arrays, view(*inputs))[layer]
            return found.reshape(len(found), -1) if flat else as_vectors(found)

        jitted = jax.jit(embed, compiler_options=compiler_options())
        return lambda *inputs: jitted(self.arrays, *inputs)

    def digest(self) -> str:
        """SHA-256 of all parameters and other variables, in hexadecimal."""
        return _sha256(self.arrays)

    def encoder_digest(self) -> str:
        """SHA-256 of the parameters and statistics of the encoder alone."""
        return _sha256(tree["encoder"] for tree in self.arrays if "encoder" in tree)


def _sha256(trees: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(list(trees)):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()


class Restored(NamedTuple):
    """The method of a run as one of its checkpoints has it.

    Attributes:
      network: its layers are those of `jaxssl.methods.Method.represent`.
      step: the step of the checkpoint.
      config: the run's.
      spec: what the method was built for.
    """

    network: Network
    step: int
    config: ConfigDict
    spec: Spec


def read_spec(run: Path) -> Spec:
    """What the method of a run was built for; a run of format 1 did not note it.

    Raises:
      UserError: if there is no run, or none of its checkpoints can be read where it has to be.
    """
    info = read_info(run)
    if "spec" in info:
        return Spec.from_json(info["spec"])
    shapes = CheckpointReader(run / "checkpoints").shapes()
    return Spec.from_json(spec_of({**info, "config": read_config(run).to_dict()}, shapes))


def restored_method(run: Path, step: int | None, mesh: Mesh) -> Restored:
    """Reads the method of a checkpoint without its optimizer; changes nothing.

    Args:
      run: directory of a pretraining run, of any format up to today's.
      step: which checkpoint; None: the newest sound one.
      mesh: where the arrays are to lie, whole on every device.

    Raises:
      UserError: if there is no run, or the checkpoint is absent, damaged or of another config.
    """
    config, info = read_config(run), read_info(run)
    for clause in extensions.differences(info.get("extensions", {}), extensions.noted(config)):
        logging.warning("%s since %s was trained.", clause, run)
    checkpoints = CheckpointReader(run / "checkpoints")
    spec = read_spec(run)
    graph, params, rest = nnx.eval_shape(lambda: split(_fresh(config, spec)))
    template = templates(mesh, {"params": params, "rest": rest})
    step, state = checkpoints.restore_partial(template, step)
    arrays = state["params"], state["rest"]
    network = Network(represented(graph), arrays, computed_by(config))
    return Restored(network, step, config, spec)


def fresh_method(config: ConfigDict, spec: Spec, mesh: Mesh) -> Network:
    """The method with the weights that the run itself began with."""
    graph, *shapes = nnx.eval_shape(lambda: split(_fresh(config, spec)))
    make = jax.jit(lambda: split(_fresh(config, spec))[1:], out_shardings=layout(mesh, (*shapes,)))
    return Network(represented(graph), make(), computed_by(config))


def computed_by(config: ConfigDict) -> str:
    """SHA-256 of what a method computes with its arrays: its config, its own files, this version.

    Raises:
      UserError: if a module of the user's own cannot be imported.
    """
    told = {
        "method": config.method.to_dict(),
        "encoder": config.encoder.to_dict(),
        "files": extensions.digests(extensions.noted(config)),
        "jaxssl": jaxssl.__version__,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def raw_pixels() -> Network:
    """The normalised pixels themselves, as the layer `PIXELS`."""
    return Network(lambda arrays, images: {PIXELS: images.reshape(len(images), -1)}, ({}, {}))


def check_layer(flag: str, layer: str, names: Collection[str]) -> None:
    """Raises UserError, with the list, unless there is such a layer."""
    if layer not in names:
        raise UserError(f"{flag}={layer} is unknown: choose one of {', '.join(sorted(names))}.")


def _fresh(config: ConfigDict, spec: Spec) -> Any:
    return build_method(config.method, config.encoder, spec, config.init_seed)


def represented(graph: nnx.GraphDef) -> Represent:
    """From parameters, other variables and images to the layers of a method."""
    return lambda arrays, images: merge(graph, *arrays).represent(images)
