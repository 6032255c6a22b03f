"""Every method on MNIST with one small net, alike in all but the method: minutes on a CPU core.

    python -m jaxssl.pretrain --config configs/pretrain/mnist.py:method=byol --workdir runs/byol
    python -m jaxssl.evaluate --run runs/byol --sections=linear,geometry

Recipe: 10,000 images, the net, crops and Adam of the MNIST experiments of arXiv:2011.02803
(configs/pretrain/randbit.py); a step has 128 images and the rate falls by a cosine. The method's
part and its numbers are those of the first preset of its recipe in configs/pretrain/, with heads
of 256 at most, which is twice what the net gives; what a row of `OF_THEIR_OWN` changes
beside says why. MAE has a ViT of 4 blocks of width 64.
Cost: see docs/benchmarks.md.
Expected: the table of docs/benchmarks.md, which benchmarks/learning.py makes.

Arguments: method, seed, epochs (0: the row's), batch, train (images; 0: all), dataset (mnist, or
digits to try it), image_size, size (views, pixels), width, policy (of the views).
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.common import (
    adamw_group,
    arguments,
    base_config,
    check_sourced,
    convn_group,
    schedule,
    view_group,
    view_policy,
    vit_group,
)
from jaxssl.augment.augmentation import Augmentation
from jaxssl.errors import UserError
from jaxssl.methods import METHODS

WIDEST = 256  # layer of a head


@dataclasses.dataclass(frozen=True)
class Row:
    """How a method is trained here.

    Attributes:
      recipe: of the method; "": the one of its name.
      arguments: of the recipe.
      changed: leaves of the config that differ from the recipe's and from the other methods'.
      layer: what a probe should look at.
      epochs: length of a run, unless it is given.
    """

    recipe: str = ""
    arguments: str = ""
    changed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    layer: str = "pooled"
    epochs: float = 3.0


QUEUE = "queue=2048"  # 16 steps; their 4,096 would be half of the images
GROUPS = {"encoder.bn_groups": 8}  # their recipes' too: ShuffleBN
SMALL_MAE = {
    # The loss reaches the class token last.
    "encoder.pool": "mean",
    # As narrow as the encoder, for half of its time.
    "method.decoder.width": 64,
    "method.decoder.depth": 1,
    # Half of the patches are black. Normalised, the others weigh as much however faint.
    "method.normalize_target": False,
    "normalize.mean": (0.1307,),  # its recipe normalises too
    "normalize.std": (0.3081,),
    # It first learns the mean of each place, and stays at that for some hundred steps: at three
    # times the others' rate and with its recipe's b2 for fewer (docs/benchmarks.md).
    "hyper.learning_rate.value": 3e-3,
    "optimizer.b2": 0.95,
    "hyper.learning_rate.warmup_epochs": 0.5,  # a twentieth of ten epochs, as its recipe has
}
DENSE = "dense_contrastive"
OF_THEIR_OWN = {
    # As many centroids as leave 100 images each.
    "deepcluster_v2": Row(arguments="centroids=100"),
    # The dense loss alone, which reaches the maps and not the dense layer behind them.
    "dense_align_uniform": Row(DENSE, "objective=align_uniform", layer="stage3"),
    "dense_contrastive": Row(layer="stage3"),
    "densecl": Row(arguments=QUEUE, changed=GROUPS),
    # As few outputs as a head has here.
    "dino": Row(changed={"method.num_prototypes": WIDEST}),
    "mae": Row(changed=SMALL_MAE, epochs=10.0),
    "moco_v2": Row(arguments=QUEUE, changed=GROUPS),
    # As many as DeepCluster-v2's.
    "swav": Row(changed={"method.num_prototypes": 100}),
}
ROWS = {name: OF_THEIR_OWN.get(name, Row()) for name in METHODS}


def get_config(arg: str | None = None) -> ConfigDict:
    given = arguments(
        arg,
        method="simclr",
        seed=0,
        epochs=0.0,
        batch=128,
        train=10_000,
        dataset="mnist",
        image_size=28,
        size=28,
        width=32,
        policy="multi_view",
    )
    if given.method not in ROWS:
        raise UserError(
            f"config argument method={given.method!r} is unknown: choose one of {', '.join(ROWS)}."
        )
    row = ROWS[given.method]
    given.epochs = given.epochs or row.epochs
    recipe = _of_the_recipe(row, given)
    config = base_config()
    config.seed = given.seed
    config.batch_size = given.batch
    config.epochs = given.epochs
    config.data.name = check_sourced(given.dataset, ("mnist", "digits"))
    config.data.image_size = given.image_size
    config.data.train_examples = given.train
    view = Augmentation(size=given.size, crop_scale=(0.5, 1.0), crop_filter="bilinear", flip_p=0.0)
    config.views = view_group((view,) * (METHODS[given.method].VIEWS or 2))
    config.method = recipe.method
    config.hyper = recipe.hyper
    view_policy(config, given.policy)
    config.hyper.learning_rate = schedule(1e-3)
    config.hyper.weight_decay = 0.0
    config.optimizer = adamw_group()
    config.optimizer.groups = recipe.optimizer.groups  # what is frozen at first, or not scheduled
    config.encoder = _encoder(given)
    config.evals.knn.every = 0.0
    config.run.log_every_steps = 1  # a run is short
    config.update_from_flattened_dict(dict(row.changed))
    return config.lock()


def _of_the_recipe(row: Row, given: ConfigDict) -> ConfigDict:
    """The recipe's own config, its heads made narrower."""
    own = {"size": given.size, "epochs": given.epochs}
    pairs = [row.arguments, *(f"{key}={value}" for key, value in own.items())]
    recipe = importlib.import_module(f"configs.pretrain.{row.recipe or given.method}")
    config = recipe.get_config(",".join(filter(None, pairs))).unlock()
    for name in {"head", "predictor", "dense_head"} & set(config.method):
        head = config.method[name]
        head.hidden_dim = min(head.hidden_dim, WIDEST)
        head.out_dim = min(head.out_dim, WIDEST)
    return config


def _encoder(given: ConfigDict) -> ConfigDict:
    if given.method == "mae":
        encoder = vit_group("nano", given.size, patch=4)
        encoder.positions, encoder.kernel_init = "sincos", "xavier_uniform"
        return encoder
    encoder = convn_group(given.size, given.width)
    encoder.padding = "valid" if given.size >= 28 else "same"  # the paper's, for 28 pixels: valid
    return encoder
