"""SimCLR on the real handwritten digits that scikit-learn ships, in minutes on two cores.

    make quickstart

1,294 of 1,797 images of 8x8 pixels train the encoder, drawn up to 16x16 by the crop; 360 test it.
Paper: SimCLR (arXiv:2002.05709); crops alone, no flips (digits have a direction) and no colour.
Cost and expected numbers: see "What to expect" in the README.

Arguments: size (views, pixels), epochs, seed, batch, width, policy (of the views), method (simclr,
or supervised: the yardstick with labels, all else the same).
"""

from ml_collections import ConfigDict

from configs.common import (
    arguments,
    base_config,
    convn_group,
    simclr_group,
    view_group,
    view_policy,
)
from jaxssl.augment.augmentation import Augmentation
from jaxssl.errors import UserError


def get_config(arg: str | None = None) -> ConfigDict:
    given = arguments(
        arg,
        size=16,
        epochs=150.0,
        seed=0,
        batch=256,
        width=32,
        policy="multi_view",
        method="simclr",
    )
    if given.method not in METHODS:
        raise UserError(
            f"config argument method={given.method!r} is unknown: this recipe has "
            f"{', '.join(METHODS)}."
        )
    config = base_config()
    config.seed = given.seed
    config.batch_size = given.batch
    config.data.name = "digits"
    config.data.image_size = 8
    config.epochs = given.epochs
    config.hyper.learning_rate.warmup_epochs = min(5.0, given.epochs / 10)
    view = Augmentation(size=given.size, crop_scale=(0.4, 1.0), flip_p=0.0)
    config.views = view_group((view, view))
    view_policy(config, given.policy)
    config.encoder = convn_group(given.size, given.width)
    config.hyper.learning_rate.value = 0.1
    config.evals.knn.protocol = "dino"
    METHODS[given.method](config)
    return config.lock()


def _simclr(config: ConfigDict) -> None:
    config.hyper.temperature = 0.2
    config.method = simclr_group(out_dim=64)
    config.method.head.output_norm = "bn"


def _supervised(config: ConfigDict) -> None:
    config.method = ConfigDict({"name": "supervised"})


METHODS = {"simclr": _simclr, "supervised": _supervised}
