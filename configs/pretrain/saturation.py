"""How many bits a contrastive loss can spread (arXiv:2011.02803, B.2): images of nothing but bits.

    python -m jaxssl.pretrain --config configs/pretrain/saturation.py:bits=8 \
        --workdir runs/saturation

Recipe: k binary channels constant over 32x32 pixels, ResNet-18, head of two layers to 64, no
augmentation, LARS .2 sqrt(batch), 400 epochs. Both views being the same image, the positives of
NT-Xent are constant and only its distribution term learns, as in the paper; unlike there, an
image's own copy stands in the denominator. The paper leaves the size of the set and the rate open:
50,000 integers and the rate of its CIFAR-10 runs.
Cost: not yet measured on an accelerator.
Published: curves alone (figure B.3); the loss stops falling at about the lesser of 1 / (tau ln 2)
and a few more than log2 B bits.
Expected here: not yet measured.

Arguments: bits, examples, side (pixels), batch, epochs, width, temperature.
"""

from ml_collections import ConfigDict

from configs.common import arguments, base_config, lars_group, simclr_group, view_group
from jaxssl.augment.augmentation import Augmentation


def get_config(arg: str | None = None) -> ConfigDict:
    given = arguments(
        arg,
        bits=8,
        examples=50_000,
        side=32,
        batch=512,
        epochs=400.0,
        width=64,
        temperature=0.2,
    )
    config = base_config()
    config.batch_size = given.batch
    config.epochs = given.epochs
    config.hyper.learning_rate.warmup_epochs = min(10.0, given.epochs / 10)
    config.data.name = "saturation"
    compose = config.data.compose = ConfigDict()
    compose.examples = given.examples  # images, each with an integer of its own
    compose.side = given.side  # pixels
    compose.bits = given.bits  # channels
    compose.seed = 0  # of the integers
    config.corruption.order = "no_aug"
    view = Augmentation(size=given.side, crop_scale=(1.0, 1.0))
    config.views = view_group((view, view))
    config.encoder.width = given.width
    config.optimizer = lars_group()
    config.optimizer.scaling = "sqrt"
    config.hyper.learning_rate.value = 0.2
    config.hyper.weight_decay = 1e-4
    config.hyper.temperature = given.temperature  # of the cosine similarities
    config.evals.knn.every = 0.0  # there are no labels
    config.method = simclr_group(out_dim=64)
    return config.lock()
