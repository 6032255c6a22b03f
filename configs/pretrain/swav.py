"""SwAV (arXiv:2006.09882): ResNet-18 on CIFAR-10 and -100, ResNet-50 on ImageNet.

    python -m jaxssl.pretrain --config configs/pretrain/swav.py --workdir runs/swav
    python -m jaxssl.pretrain --config configs/pretrain/swav.py:preset=solo --workdir runs/swav_solo

Presets (preset=NAME; all but the first train on the whole split and watch the test split):

jaxssl (CIFAR-10, batch 512, 200 epochs, 5,000 images held out for choices): lightly's numbers with
  this library's views and schedule; the prototypes are frozen in the first epoch, as in the paper.
lightly (CIFAR-10, batch 128, 200 epochs): SwaVModel of its benchmark,
  python docs/source/getting_started/benchmarks/cifar10_benchmark.py
  Adam 1e-3 B/128, decay 1e-6, cosine by epoch; head 512-512-128, 512 prototypes, temperature .1,
  epsilon .05, three iterations; two views of 32 pixels from .14, no queue, nothing frozen.
  Published: kNN (k=200, T=.1) .812; at batch=512,epochs=800 .884; best epoch on the test split.
  Differs: batches straddle epochs (78,125 steps, there 78,000); BatchNorm sees both views at once,
  there one at a time; its prototypes have a bias; AdamW, not Adam with a decay of 1e-6.
solo (CIFAR-10 and -100, batch 256, 1000 epochs): solo-learn,
  python3 main_pretrain.py --config-path scripts/pretrain/cifar --config-name swav.yaml
  LARS .6 to 6e-4, decay 1e-6; head 2048-128, 3000 prototypes frozen for two epochs, a queue of
  3,840 from epoch 50.
  Published: 89.17 % and 64.88 %, of a linear classifier that is trained online.
  Differs: batches straddle epochs (195,312 steps, there 195,000), float32, our probe, BatchNorm
  sees both views at once; its prototypes are a layer under weight normalisation.
multicrop (CIFAR-10 and -100, as solo): solo-learn,
  python3 main_pretrain.py --config-path scripts/pretrain/cifar-multicrop --config-name swav.yaml
  Two views of 32 pixels from .2 and six of 18 pixels.
  Published: no figure.
  Differs: as solo.
paper (ImageNet, batch 4096, 200 epochs): the authors' scripts/swav_200ep_pretrain.sh. SGD with LARC
  .001, 4.8 to .0048 after ten epochs from .3, decay 1e-6; two views of 224 and six of 96 pixels,
  3000 prototypes frozen for the first epoch (313 iterations), no queue.
  Published: 73.9 % linear.
  Differs: crops are drawn from pictures of at most 448 pixels; float32.
paper_256 (ImageNet, batch 256, 200 epochs): its scripts/swav_200ep_bs256_pretrain.sh, .6 to .0006
  without a warm-up, and a queue of 3,840 from epoch 15.
  Published: 72.7 % linear.
  Differs: as paper.

Cost: not yet measured on an accelerator.
Expected here: not yet measured.

Arguments: preset, dataset, batch, epochs, width, size (views, pixels), policy (of the views).
"""

from ml_collections import ConfigDict

from configs.common import Preset, adamw_group, from_epoch, from_preset, head_group, view_group
from configs.protocols import (
    SWAV,
    house,
    imagenet,
    larc,
    lightly,
    normalized,
    solo,
    solo_lars,
    warm_up,
)
from jaxssl.augment.augmentation import (
    lightly_swav,
    solo_swav_multi_crop,
    solo_symmetric,
    swav_multi_crop,
)
from jaxssl.training.optim import ParameterGroup

PROTOTYPES = ParameterGroup("prototypes/kernel", 1.0, True, "prototypes_rate", True)


def swav_group(num_prototypes: int, hidden_dim: int, queue_size: int) -> ConfigDict:
    """A head of two layers to 128, and so many prototypes."""
    method = ConfigDict()
    method.name = "swav"
    method.num_prototypes = num_prototypes
    method.sinkhorn_iterations = 3  # rounds of the assignment
    method.queue_size = queue_size  # past projections a view, a multiple of the batch; 0: none
    method.head = head_group(128, hidden_dim=hidden_dim, hidden_bias=True, output_bias=True)
    return method


def constants(config: ConfigDict, frozen: float, queue: float) -> None:
    """The paper's; prototypes that are frozen for some epochs, and a queue from some epoch on."""
    config.hyper.temperature = 0.1  # of the cosine similarities
    config.hyper.epsilon = 0.05  # entropic regularisation of the assignment
    config.hyper.queue = from_epoch(queue)  # whether the queue, if there is one, takes part
    if frozen:
        config.optimizer.groups = (PROTOTYPES, *config.optimizer.groups)
        config.hyper.prototypes_rate = from_epoch(frozen)  # multiplies their learning rate


def _lightlys_own(config: ConfigDict) -> None:
    config.optimizer = adamw_group()
    config.optimizer.scaling = "linear"
    config.hyper.learning_rate.value = 2e-3  # at 256: 1e-3 at 128
    config.hyper.weight_decay = 1e-6
    config.method = swav_group(512, hidden_dim=512, queue_size=0)


def _jaxssl(config: ConfigDict, given: ConfigDict) -> None:
    house(config, given)
    _lightlys_own(config)
    constants(config, frozen=min(1.0, given.epochs / 10), queue=0.0)


def _lightly(config: ConfigDict, given: ConfigDict) -> None:
    lightly(config, given)
    config.views = view_group(lightly_swav(given.size))
    _lightlys_own(config)
    constants(config, frozen=0.0, queue=0.0)


def _solo(config: ConfigDict, given: ConfigDict) -> None:
    solo(config, given, solo_symmetric)
    config.optimizer = solo_lars()
    config.hyper.learning_rate.value = 0.6
    config.hyper.learning_rate.end = 6e-4
    config.hyper.weight_decay = 1e-6
    config.method = swav_group(3000, hidden_dim=2048, queue_size=15 * given.batch)
    constants(config, frozen=min(2.0, given.epochs / 10), queue=min(50.0, given.epochs / 10))


def _multicrop(config: ConfigDict, given: ConfigDict) -> None:
    _solo(config, given)
    config.views = view_group(solo_swav_multi_crop(given.size))


def _paper(config: ConfigDict, given: ConfigDict) -> None:
    imagenet(config, given, swav_multi_crop)
    normalized(config, SWAV)
    config.optimizer = larc()
    config.hyper.weight_decay = 1e-6
    if given.preset == "paper_256":
        config.hyper.learning_rate.update(value=0.6, end=0.0006)
        config.method = swav_group(3000, hidden_dim=2048, queue_size=15 * given.batch)
        constants(config, frozen=min(1.0, given.epochs / 10), queue=min(15.0, given.epochs / 10))
        return
    warm_up(config, given)
    # At 256; times 16 at 4096.
    config.hyper.learning_rate.update(value=4.8 / 16, warmup_from=0.3 / 16, end=0.0048 / 16)
    config.method = swav_group(3000, hidden_dim=2048, queue_size=0)
    constants(config, frozen=min(1.0, given.epochs / 10), queue=0.0)


SOLO = {"batch": 256, "epochs": 1000.0}
PRESETS = {
    "jaxssl": Preset(_jaxssl, ("cifar10",), {}, held_out=0.1),
    "lightly": Preset(_lightly, ("cifar10",), {"batch": 128}),
    "solo": Preset(_solo, ("cifar10", "cifar100"), SOLO),
    "multicrop": Preset(_multicrop, ("cifar10", "cifar100"), SOLO),
    "paper": Preset(_paper, ("imagenet2012",), {"batch": 4096, "size": 224}),
    "paper_256": Preset(_paper, ("imagenet2012",), {"batch": 256, "size": 224}),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return from_preset(arg, PRESETS)
