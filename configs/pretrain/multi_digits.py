"""SimCLR on MultiDigits (arXiv:2011.02803, section 4.3), ResNet-18: several digits on a canvas.

    python -m jaxssl.pretrain --config configs/pretrain/multi_digits.py:count=4 \
        --workdir runs/multi_digits

Recipe: 1 to 16 MNIST digits of 28 pixels on 112x112, composed anew each epoch, crops alone
(area .5 to 1), batch 1024, LARS .2 sqrt(batch), temperature .2, 100 epochs of 60,000 compositions;
probed on single digits of the canvas. The paper leaves epochs, rate, crop area, the placing and the
adding of digits open: these are the values of its other MNIST code, of its CIFAR-10 runs, any
integer corner, and the maximum.
Cost: not yet measured on an accelerator.
Published: linear accuracy of a random encoder 18 %; the table's other values are its study's.
Expected here: not yet measured.

Arguments: count, sizes (pixels, joined by +, one a digit or one for all), evaluation_size,
placement (random, grid), digits (data set), canvas, size (views, pixels), batch, epochs, width,
policy (of the views).
"""

from ml_collections import ConfigDict

from configs.common import (
    arguments,
    base_config,
    lars_group,
    simclr_group,
    view_group,
    view_policy,
)
from jaxssl.augment.augmentation import Augmentation
from jaxssl.errors import UserError


def get_config(arg: str | None = None) -> ConfigDict:
    given = arguments(
        arg,
        count=4,
        sizes="28",
        evaluation_size=28,
        placement="random",
        digits="mnist",
        canvas=112,
        size=112,
        batch=1024,
        epochs=100.0,
        width=64,
        policy="multi_view",
    )
    config = base_config()
    config.batch_size = given.batch
    config.epochs = given.epochs
    config.hyper.learning_rate.warmup_epochs = min(10.0, given.epochs / 10)
    config.data.name = "multi_digits"
    config.data.compose = compose_group(
        digits=given.digits,
        canvas=given.canvas,
        count=given.count,
        sizes=_integers("sizes", given.sizes),
        placement=given.placement,
        evaluation_size=given.evaluation_size,
    )
    view = Augmentation(size=given.size, crop_scale=(0.5, 1.0), crop_filter="bilinear", flip_p=0.0)
    config.views = view_group((view, view))
    view_policy(config, given.policy)
    config.encoder.width = given.width
    config.encoder.stem = "imagenet"
    config.optimizer = lars_group()
    config.optimizer.scaling = "sqrt"
    config.hyper.learning_rate.value = 0.2
    config.hyper.weight_decay = 1e-4
    config.hyper.temperature = 0.2  # of the cosine similarities
    config.method = simclr_group(out_dim=64)
    return config.lock()


def compose_group(
    *,
    digits: str,
    canvas: int,
    count: int,
    sizes: tuple[int, ...],
    placement: str,
    evaluation_size: int,
) -> ConfigDict:
    """How canvases are made of digits."""
    compose = ConfigDict()
    compose.digits = digits  # labelled set of one-channel images that digits are drawn from
    compose.canvas = canvas  # side of the image, pixels
    compose.count = count  # digits on a canvas, 1 to 16
    compose.sizes = sizes  # pixels
    compose.placement = placement  # "random" corners or cells of a "grid"
    compose.combine = "max"  # or "sum", clipped
    compose.evaluation_size = evaluation_size  # pixels of the one digit that is probed
    compose.seed = 0  # of what is drawn where
    return compose


def _integers(key: str, text: str) -> tuple[int, ...]:
    """The whole numbers of an argument that joins them by +.

    Raises:
      UserError: if one is none.
    """
    try:
        return tuple(int(part) for part in text.split("+"))
    except ValueError:
        raise UserError(
            f"config argument {key}={text!r} is no list of whole numbers: join them by +, "
            f"such as {key}=20+28."
        ) from None
