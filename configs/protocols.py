"""What recipes of one protocol share: views, normalisation, optimizer, schedule.

Each function writes its part into a config; heads, constants and rates are the recipes' own.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs.common import lars_group, view_group
from jaxssl.augment.augmentation import Augmentation, align_uniform, lightly_cifar, simclr_cifar
from jaxssl.training.optim import DECAY_ALL

Views = Callable[[int], tuple[Augmentation, ...]]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SWAV = (IMAGENET[0], (0.228, 0.224, 0.225))  # as its code writes them
MOCO_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
STL10 = ((0.4409, 0.4279, 0.3868), (0.2683, 0.2610, 0.2687))
SUPCONTRAST = {
    "cifar10": MOCO_CIFAR,
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
SOLO = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def normalized(config: ConfigDict, constants: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    """Mean and standard deviation of each channel."""
    config.normalize.mean, config.normalize.std = constants


def house(config: ConfigDict, given: ConfigDict) -> None:
    """The protocol that this library compares methods by: lightly's, with SimCLR's own CIFAR views.

    SGD .06 B/128, momentum .9, decay 5e-4 on everything, cosine, no warm-up.
    """
    config.views = view_group(simclr_cifar(given.size))
    config.optimizer.scaling = "linear"
    config.hyper.learning_rate.value = 0.12  # at 256: .06 at 128
    config.hyper.weight_decay = 5e-4


def lightly(config: ConfigDict, given: ConfigDict) -> None:
    """The CIFAR-10 benchmark of lightly: SGD .06 B/128 as `house`, cosine by epoch."""
    house(config, given)
    config.views = view_group(lightly_cifar(given.size))
    normalized(config, IMAGENET)
    config.hyper.learning_rate.granularity = "epoch"


def solo(config: ConfigDict, given: ConfigDict, views: Views) -> None:
    """solo-learn's CIFAR scripts: SGD, momentum .9, linear warm-up of ten epochs, cosine.

    A recipe sets the rate, the decay and, mostly, `solo_lars`.
    """
    config.views = view_group(views(given.size))
    normalized(config, SOLO[given.dataset])
    with config.encoder.ignore_type():  # a number where the default is a word
        config.encoder.stem_padding = 2
    config.optimizer.scaling = "linear"
    warm_up(config, given)
    config.hyper.learning_rate.warmup_from = 3e-5


def solo_lars() -> ConfigDict:
    """solo-learn's LARS: the rate outside the momentum, the ratio clipped."""
    optimizer = lars_group()
    optimizer.trust_coefficient = 0.02
    optimizer.trust_formula = "sum_of_norms"
    optimizer.lr_in_momentum = False
    optimizer.clip_trust = True
    return optimizer


def supcontrast(config: ConfigDict, given: ConfigDict, rate: float) -> None:
    """SupContrast's CIFAR code: a ResNet-50, SGD, cosine by epoch to a thousandth of ``rate``."""
    normalized(config, SUPCONTRAST[given.dataset])
    config.encoder.name = "resnet50"
    warm_up(config, given)
    config.hyper.learning_rate.warmup_from = 0.01
    config.hyper.learning_rate.value = rate
    config.hyper.learning_rate.end = rate * 0.001
    config.hyper.learning_rate.granularity = "epoch_from_one"
    config.hyper.weight_decay = 1e-4


def imagenet(config: ConfigDict, given: ConfigDict, views: Views) -> None:
    """A ResNet-50 on ImageNet, linear scaling of the rate."""
    config.views = view_group(views(given.size))
    normalized(config, IMAGENET)
    config.encoder.name = "resnet50"
    config.encoder.stem = "imagenet"
    config.optimizer.scaling = "linear"


def wang_isola(config: ConfigDict, given: ConfigDict) -> None:
    """The STL-10 code of arXiv:2005.10242: SGD .12 B/256, momentum .9, decay 1e-4 on everything.

    The rate falls tenfold at epochs 155, 170 and 185 of 200.
    """
    config.views = view_group(align_uniform(given.size))
    normalized(config, STL10)
    config.optimizer.scaling = "linear"
    config.hyper.learning_rate.update(value=0.12, shape="stepped", granularity="epoch")
    config.hyper.weight_decay = 1e-4


def byol_lars() -> ConfigDict:
    """LARS of BYOL, Barlow Twins, VICReg and MoCo-v3: the rate outside the momentum."""
    optimizer = lars_group()
    optimizer.lr_in_momentum = False
    return optimizer


def larc() -> ConfigDict:
    """SwAV's and DeepCluster-v2's: apex's LARC around SGD, on every parameter."""
    optimizer = lars_group()
    optimizer.scaling = "linear"
    optimizer.groups = DECAY_ALL
    optimizer.trust_formula = "sum_of_norms"
    optimizer.lr_in_momentum = False
    return optimizer


def warm_up(config: ConfigDict, given: ConfigDict) -> None:
    """The rate rises for ten epochs, or for a tenth of a run that is shorter than a hundred."""
    config.hyper.learning_rate.warmup_epochs = min(10.0, given.epochs / 10)
