"""SimCLR on real handwritten digits, scikit-learn's, on a canvas: minutes on two cores.

    make quickstart

A digit of 8x8 pixels lies anywhere on a black canvas of 16x16, so that pixels tell little of its
class until an encoder has learnt what a shifted digit has in common with itself. 1,294 of 1,797
digits train it: each epoch draws as many of them, with replacement, and places them anew. 360 test
it, each in one place; so are the 1,294 when a probe trains on them.
Paper: SimCLR (arXiv:2002.05709); crops alone, no flips (digits have a direction) and no colour.
Cost and expected numbers: see "What to expect" in the README.

Arguments: canvas (side, pixels; 8: the digits as they are), size (views, pixels), epochs, seed,
batch, width, policy (of the views), method (simclr, or supervised: the yardstick with labels, all
else the same).
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
from configs.pretrain.multi_digits import compose_group
from jaxssl.augment.augmentation import Augmentation
from jaxssl.errors import UserError


def get_config(arg: str | None = None) -> ConfigDict:
    given = arguments(
        arg,
        canvas=16,
        size=16,
        epochs=250.0,
        seed=0,
        batch=128,
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
    config.data.image_size = 8
    _place(config.data, given.canvas)
    config.epochs = given.epochs
    config.hyper.learning_rate.warmup_epochs = min(5.0, given.epochs / 10)
    view = Augmentation(size=given.size, crop_scale=(0.4, 1.0), flip_p=0.0)
    config.views = view_group((view, view))
    view_policy(config, given.policy)
    config.encoder = convn_group(given.size, given.width)
    config.hyper.learning_rate.value = 0.2
    config.evals.knn.protocol = "dino"
    METHODS[given.method](config)
    return config.lock()


def _place(data: ConfigDict, canvas: int) -> None:
    """Digits of 8x8 pixels, each anywhere on a black canvas of that side."""
    if canvas == 8:  # there is one place
        data.name = "digits"
        return
    data.name = "multi_digits"
    data.compose = compose_group(
        digits="digits",
        canvas=canvas,
        count=1,
        sizes=(8,),
        placement="random",
        evaluation_size=8,
    )


def _simclr(config: ConfigDict) -> None:
    config.hyper.temperature = 0.1
    config.method = simclr_group(out_dim=64)
    config.method.head.output_norm = "bn"


def _supervised(config: ConfigDict) -> None:
    config.method = ConfigDict({"name": "supervised"})


METHODS = {"simclr": _simclr, "supervised": _supervised}
