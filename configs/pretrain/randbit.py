"""SimCLR on RandBit MNIST (arXiv:2011.02803, section 5.2): k bits of the image's own beside it.

    python -m jaxssl.pretrain --config configs/pretrain/randbit.py:bits=10 --workdir runs/randbit

Recipe: the authors' MNIST notebook. Three convolutions and a 128-d layer, head 256-64, views that
are crops of area .5 to 1, k channels of bits appended after augmentation, Adam 1e-3 falling
linearly, batch 1000, 10 epochs, temperature .1. Differs from it in the loss (NT-Xent over both
views; theirs has negatives of the other view alone), the decay (none; theirs adds 1e-4 of the
squared kernels to the loss), and the integer (a hash of the image's number; theirs hashes its JPEG
file).
Cost: not yet measured.
Published: curves alone (figure 7); no values. With more bits the digits' accuracy falls to chance.
Expected here: not yet measured.

Arguments: bits, dataset (mnist, or digits to try it), image_size, size (views, pixels), batch,
epochs, width, temperature, policy (of the views).
"""

from ml_collections import ConfigDict

from configs.common import (
    adamw_group,
    arguments,
    base_config,
    check_sourced,
    convn_group,
    simclr_group,
    view_group,
    view_policy,
)
from jaxssl.augment.augmentation import Augmentation


def get_config(arg: str | None = None) -> ConfigDict:
    given = arguments(
        arg,
        bits=10,
        dataset="mnist",
        image_size=28,
        size=28,
        batch=1000,
        epochs=10.0,
        width=32,
        temperature=0.1,
        policy="multi_view",
    )
    config = base_config()
    config.batch_size = given.batch
    config.data.name = check_sourced(given.dataset, ("mnist", "digits"))
    config.data.image_size = given.image_size
    config.epochs = given.epochs
    config.hyper.learning_rate.shape = "linear"
    config.randbit.num_bits = given.bits
    view = Augmentation(size=given.size, crop_scale=(0.5, 1.0), crop_filter="bilinear", flip_p=0.0)
    config.views = view_group((view, view))
    view_policy(config, given.policy)
    encoder = config.encoder = convn_group(given.size, given.width)
    encoder.padding = "valid" if given.size >= 28 else "same"  # the paper's, for 28 pixels: valid
    encoder.bn_momentum = 0.99
    encoder.bn_epsilon = 1e-3
    config.optimizer = adamw_group()
    config.hyper.learning_rate.value = 1e-3
    config.hyper.weight_decay = 0.0
    config.hyper.temperature = given.temperature  # of the cosine similarities
    config.evals.knn.every = 2.0
    config.method = simclr_group(out_dim=64)
    config.method.head.hidden_dim = 256
    return config.lock()
