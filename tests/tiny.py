"""The smallest real runs: digits of 8x8 pixels, a net of a few thousand weights, each method."""

import jax
from ml_collections import ConfigDict

from configs.common import vit_group
from configs.pretrain import (
    byol,
    dense_contrastive,
    densecl,
    mae,
    moco_v2,
    simclr,
    supervised,
    vae,
)
from configs.quickstart import get_config as quickstart
from jaxssl.data.pipeline import training_rows
from jaxssl.data.sources import load
from jaxssl.pretrain import make_spec, policy_of, resolve
from jaxssl.training.schedules import Schedules
from jaxssl.training.state import Blueprint, traced_scalars
from jaxssl.training.step import embedding_keys, make_step

RECIPES = {
    "byol": byol,
    "dense_align_uniform": dense_contrastive,
    "dense_contrastive": dense_contrastive,
    "densecl": densecl,
    "mae": mae,
    "moco_v2": moco_v2,
    "simclr": simclr,
    "supervised": supervised,
    "vae": vae,
}
ARGUMENTS = {"dense_align_uniform": "objective=align_uniform"}
METHODS = tuple(RECIPES)
BATCH = 64


def config_for(method: str, dtype: str = "float32", epochs: float = 4.0) -> ConfigDict:
    """A shipped recipe's method on the quickstart's data, views and encoder, all of them small."""
    config = quickstart(f"batch={BATCH},width=4,size=8,epochs={epochs}")
    recipe = RECIPES[method].get_config(ARGUMENTS.get(method))
    with config.unlocked():
        config.method = recipe.method
        config.hyper = recipe.hyper
        config.hyper.learning_rate.granularity = "step"
        config.encoder.dtype = dtype
        config.run.checkpoint_every_steps = 10
        config.run.log_every_steps = 5
        for head in {"head", "predictor"} & set(config.method):
            config.method[head].update(hidden_dim=32, out_dim=16)
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
            config.hyper.learning_rate.value = 0.001  # SGD's, of a loss in nats
    return config.lock()


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
        return embedding_keys(self.views(step), step, self.scalars(step))
