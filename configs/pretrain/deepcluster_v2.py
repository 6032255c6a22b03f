"""DeepCluster-v2 (arXiv:2006.09882, appendix A.3): ResNet-18 on CIFAR, ResNet-50 on ImageNet.

    python -m jaxssl.pretrain --config configs/pretrain/deepcluster_v2.py --workdir runs/deepcluster
    python -m jaxssl.pretrain --config configs/pretrain/deepcluster_v2.py:preset=solo --workdir RUN

Presets (preset=NAME; all but the first train on the whole split and watch the test split):

jaxssl (CIFAR-10, batch 512, 200 epochs, 5,000 images held out for choices): this library's views,
  optimizer and schedule; head 2048-128, three clusterings of 512 centroids, temperature .1.
solo (CIFAR-10 and -100, batch 256, 1000 epochs): solo-learn,
  python3 main_pretrain.py --config-path scripts/pretrain/cifar --config-name deepclusterv2.yaml
  LARS .6 to 6e-4 after eleven epochs from 0, decay 1e-6; head 2048-128, three clusterings of 3000
  centroids by ten iterations, temperature .1.
  Published: 88.85 % and 63.61 %, of a linear classifier that is trained online.
  Differs: batches straddle epochs (195,312 steps, there 195,000), float32, our probe, BatchNorm
  sees both views at once; the bank is filled before the first epoch, as in the authors' code, where
  solo-learn's first epoch has no targets.
paper (ImageNet, batch 4096, 400 epochs): scripts/deepclusterv2_400ep_2x224_pretrain.sh of the
  authors. SGD with LARC .001, 4.8 to .0048 after ten epochs from .3, decay 1e-6; two views of 224
  pixels from .08.
  Published: 70.2 % linear.
  Differs: crops are drawn from pictures of at most 448 pixels; centroids start from the whole bank,
  there from one process's; the bank is filled in the order of the first epoch, there of another.

Cost: not yet measured on an accelerator.
Expected here: not yet measured.

Arguments: preset, dataset, batch, epochs, width, size (views, pixels), policy (of the views),
centroids.
"""

from ml_collections import ConfigDict

from configs.common import Preset, from_preset, head_group
from configs.protocols import SWAV, house, imagenet, larc, normalized, solo, solo_lars, warm_up
from jaxssl.augment.augmentation import deepcluster_imagenet, solo_symmetric


def _method(config: ConfigDict, given: ConfigDict) -> None:
    config.hyper.temperature = 0.1  # of the cosine similarities
    method = config.method = ConfigDict()
    method.name = "deepcluster_v2"
    method.num_prototypes = given.centroids  # of each clustering, at most the training images
    method.num_clusterings = 3  # sets of centroids, each with a loss of its own
    method.kmeans_iterations = 10  # before each epoch
    method.head = head_group(128, hidden_dim=2048, hidden_bias=True, output_bias=True)


def _jaxssl(config: ConfigDict, given: ConfigDict) -> None:
    house(config, given)
    _method(config, given)


def _solo(config: ConfigDict, given: ConfigDict) -> None:
    solo(config, given, solo_symmetric)
    config.optimizer = solo_lars()
    config.hyper.learning_rate.update(
        value=0.6, end=6e-4, warmup_from=0.0, warmup_epochs=min(11.0, given.epochs / 10)
    )
    config.hyper.weight_decay = 1e-6
    _method(config, given)


def _paper(config: ConfigDict, given: ConfigDict) -> None:
    imagenet(config, given, deepcluster_imagenet)
    normalized(config, SWAV)
    config.optimizer = larc()
    config.hyper.weight_decay = 1e-6
    warm_up(config, given)
    # At 256; times 16 at 4096.
    config.hyper.learning_rate.update(value=4.8 / 16, warmup_from=0.3 / 16, end=0.0048 / 16)
    _method(config, given)


PRESETS = {
    "jaxssl": Preset(_jaxssl, ("cifar10",), {"centroids": 512}, held_out=0.1),
    "solo": Preset(_solo, ("cifar10", "cifar100"), {"batch": 256, "epochs": 1000.0}),
    "paper": Preset(_paper, ("imagenet2012",), {"batch": 4096, "epochs": 400.0, "size": 224}),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return from_preset(arg, PRESETS, centroids=3000)
