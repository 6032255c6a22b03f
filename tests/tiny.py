"""The smallest real runs: digits of 8x8 pixels, a net of a few thousand weights, each method."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
from any_size import AnySize
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs.common import from_epoch, vit_group
from configs.quickstart import get_config as quickstart
from jaxssl.data.pipeline import training_rows
from jaxssl.data.sources import load
from jaxssl.distributed import global_batch, layout
from jaxssl.methods import METHODS as KINDS
from jaxssl.methods import Method
from jaxssl.models import ENCODERS
from jaxssl.plan import make_spec, policy_of, resolve
from jaxssl.training.schedules import Schedules
from jaxssl.training.state import Blueprint, TrainState, traced_scalars
from jaxssl.training.step import embedding_keys, make_epoch_hook, make_fill, make_step

# A recipe is named after its method, but for this one.
RECIPE_OF = {"dense_align_uniform": "dense_contrastive"}
ARGUMENTS = {"dense_align_uniform": "objective=align_uniform"}
METHODS = tuple(sorted(KINDS))
RECIPES = {
    name: importlib.import_module(f"configs.pretrain.{RECIPE_OF.get(name, name)}")
    for name in METHODS
}
BATCH = 64
ENCODERS["any_size"] = AnySize


def config_for(method: str, dtype: str = "float32", epochs: float = 4.0) -> ConfigDict:
    """A shipped recipe's method on the quickstart's data, views and encoder, all of them small."""
    config = quickstart(f"batch={BATCH},width=4,canvas=8,size=8,epochs={epochs}")
    recipe = RECIPES[method].get_config(ARGUMENTS.get(method))
    with config.unlocked():
        config.method = recipe.method
        config.hyper = recipe.hyper
        config.hyper.learning_rate.update(granularity="step", warmup_epochs=0.0)
        config.encoder.dtype = dtype
        config.run.checkpoint_every_steps = 10
        config.run.log_every_steps = 5
        for head in {"head", "predictor"} & set(config.method):
            config.method[head].update(hidden_dim=32, out_dim=16)
        config.optimizer.groups = recipe.optimizer.groups
        if "num_prototypes" in config.method:
            config.method.num_prototypes = 24
        if method in ("dino", "swav"):
            use_small_crop(config)
        if method == "swav":
            config.method.queue_size = 2 * BATCH
            config.hyper.queue = from_epoch(1.0)
            config.hyper.learning_rate.value = 0.1  # SGD's, where the recipe has Adam
        if method in ("moco_v2", "densecl"):
            config.method.queue_size = 2 * BATCH
            config.encoder.bn_groups = 8
        if "dense_head" in config.method:
            config.method.dense_head.update(hidden_dim=32, out_dim=16)
            config.hyper.dense_weight = 0.5
            config.views.global_crops.size = config.encoder.image_size = 16  # four cells a map
        if method in ("mae", "vae"):
            config.views.global_crops.count = 1
        if method == "mae":
            config.encoder = vit_group("nano", 8, 2)
            config.encoder.update(width=8, depth=2, heads=2, stages=(2,), dtype=dtype)
            config.method.decoder.update(width=8, depth=1, heads=2)
            config.hyper.learning_rate.update(value=0.1, warmup_epochs=0.0)  # SGD, no AdamW here
        if method == "vae":
            config.method.update(image_size=8, latent_dim=8)
            config.hyper.learning_rate.value = 0.002  # SGD's, of a loss in nats
        if method == "dense_align_uniform":
            config.hyper.learning_rate.value = 0.02  # at more, rounding grows threefold a step
    return config.lock()


def six_steps(method: str = "simclr", **changes: Any) -> ConfigDict:
    """A run that stops after six steps, saved after three, on one device and without evaluations.

    ``changes`` by the name of a setting, such as ``run.stop_step``.
    """
    config = config_for(method)
    with config.unlocked():
        config.update_from_flattened_dict(
            {
                "run.stop_step": 6,
                "run.checkpoint_every_steps": 3,
                "run.log_every_steps": 2,
                "run.num_devices": 1,
                "evals.knn.every": 0.0,
            }
            | changes
        )
    return config


def use_small_crop(config: ConfigDict) -> None:
    """Two views of 8 pixels and one of 6, and an encoder that takes both."""
    small = {"size": 6, "count": 1, "crop_scale": (0.2, 0.5)}
    config.encoder.name = "any_size"
    config.views.global_crops.crop_filter = "bilinear"
    config.views.local_crops = {**config.views.global_crops, **small}


class Run:
    """What a program has in its hands before the first step."""

    def __init__(self, config: ConfigDict):
        self.config = resolve(config)
        self.source = load(self.config.data, "train")
        self.policy = policy_of(self.config)
        spec = make_spec(self.config, self.source, self.policy)
        self.blueprint = Blueprint.from_config(
            self.config.method, self.config.encoder, self.config.optimizer, spec
        )
        self.schedules = Schedules.from_config(
            self.config.hyper, self.config.epochs, spec.steps_per_epoch
        )

    def step(self):
        """The step, not yet jitted."""
        return make_step(
            self.blueprint,
            self.policy,
            self.schedules,
            batch_size=self.config.batch_size,
            learning_rate_scaling=self.config.optimizer.scaling,
        )

    def start(self, mesh: Mesh, state: TrainState | None = None) -> TrainState:
        """The state before the first step, after what a method does before an epoch.

        ``state``: as it was created, if it was already, on whatever devices.
        """
        if state is None:
            state = self.blueprint.create(self.config.init_seed, mesh)
        # A copy, for what comes next may take its memory.
        state = jax.device_put(state, layout(mesh, state), may_alias=False)
        hyper = traced_scalars(self.config)
        kind = KINDS[self.config.method.name]
        if kind.fill is not Method.fill:
            fill = make_fill(self.blueprint, self.policy, self.schedules, mesh)
            for number in range(-(-len(self.source) // self.config.batch_size)):
                batch = global_batch(mesh, self.batch(number))
                state = fill(state, batch, jnp.int32(number), hyper)
        if kind.on_epoch is not Method.on_epoch:
            rates = {
                "batch_size": self.config.batch_size,
                "learning_rate_scaling": self.config.optimizer.scaling,
            }
            hook = make_epoch_hook(self.blueprint, self.schedules, mesh, **rates)
            state = hook(state, jnp.int32(0), hyper)
        return state

    def batch(self, step: int) -> dict:
        """The global batch of a step, on the host."""
        size, seed = self.config.batch_size, self.config.data_seed
        return self.source.gather(*training_rows(step, size, len(self.source), seed))

    def scalars(self, step: int = 0) -> dict:
        """What every leaf of ``hyper`` is at a step, and the seeds."""
        return self.schedules.at(traced_scalars(self.config), step)

    def views(self, step: int):
        """The views of a step, on the first device."""
        return jax.jit(self.policy)(self.batch(step), self.scalars(step))

    def keys(self, step: int):
        """What the networks may draw from at a step."""
        return jax.jit(embedding_keys)(self.views(step), step, self.scalars(step))
