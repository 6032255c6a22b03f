"""The supervised yardstick, ResNet-18, with the same views, order and schedule as SimCLR's recipe.

    python -m jaxssl.pretrain --config configs/pretrain/supervised.py --workdir runs/supervised

Recipe: cross-entropy of one linear layer on both views of SimCLR's CIFAR policy, SGD .06 B/128,
momentum .9, decay 5e-4 on everything, cosine, no warm-up.
Published, with SSL augmentations (arXiv:2206.05259, table 1): 89.53 % linear, of an encoder trained
on all 50,000 images (--config.data.validation_fraction=0 --config.evals.knn.split=test); here 5,000
are held out.
Cost: not yet measured on an accelerator.
Expected here: not yet measured at full width; see "What to expect" in the README for width 16.

Arguments: dataset, batch, epochs, width, size (views, pixels), policy (of the views).
"""

from ml_collections import ConfigDict

from configs.common import arguments, base_config, canonical, view_group, view_policy
from jaxssl.augment.augmentation import simclr_cifar


def get_config(arg: str | None = None) -> ConfigDict:
    given = arguments(
        arg, dataset="cifar10", batch=512, epochs=200.0, width=64, size=32, policy="multi_view"
    )
    config = base_config()
    config.batch_size = given.batch
    config.data.name = given.dataset
    config.epochs = given.epochs
    config.views = view_group(simclr_cifar(given.size))
    view_policy(config, given.policy)
    canonical(config, given.size)
    config.encoder.width = given.width
    config.optimizer.scaling = "linear"
    config.hyper.learning_rate.value = 0.12  # at 256: .06 at 128

    method = config.method = ConfigDict()
    method.name = "supervised"
    return config.lock()
