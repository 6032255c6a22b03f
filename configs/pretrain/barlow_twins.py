"""Barlow Twins (arXiv:2103.03230).

    python -m jaxssl.pretrain --config configs/pretrain/barlow_twins.py --workdir runs/barlow
    python -m jaxssl.pretrain --config configs/pretrain/barlow_twins.py:preset=solo --workdir RUN

Presets (preset=NAME; all but the first train on the whole split and watch the test split):

jaxssl (CIFAR-10, ResNet-18, batch 512, 200 epochs, 5,000 images held out for choices): simclr.py's
  views, optimizer and schedule; lightly's head and lambda.
lightly (CIFAR-10, ResNet-18, batch 128, 200 epochs): BarlowTwinsModel of its benchmark,
  python docs/source/getting_started/benchmarks/cifar10_benchmark.py
  Head 2048-2048, lambda .005.
  Published: kNN (k=200, T=.1) .842; at batch=512,epochs=800 .859; best epoch on the test split.
  Differs: batches straddle epochs (78,125 steps, there 78,000).
solo (CIFAR-10 and -100, ResNet-18, batch 256, 1000 epochs): solo-learn,
  python3 main_pretrain.py --config-path scripts/pretrain/cifar --config-name barlow.yaml
  Head 2048-2048-2048, lambda .0051, the loss times .1.
  Published: 92.10 % and 70.90 %, of a linear classifier that is trained online.
  Differs: batches straddle epochs (195,312 steps, there 195,000), float32, our probe.
paper (ImageNet, ResNet-50, batch 2048, 1000 epochs): facebookresearch/barlowtwins,
  python main.py /path/to/imagenet/
  Head 8192-8192-8192, LARS .2 B/256 for weights and .0048 B/256 for biases and BatchNorm.
  Published: 73.3 % linear.
  Differs: crops are drawn from pictures of at most 448 pixels.

Cost: not yet measured on an accelerator.
Expected here: not yet measured.

Arguments: preset, dataset, batch, epochs, width, size (views, pixels), policy (of the views).
"""

from ml_collections import ConfigDict

from configs.common import Preset, from_preset, head_group
from configs.protocols import byol_lars, house, imagenet, lightly, solo, solo_lars, warm_up
from jaxssl.augment.augmentation import byol, solo_asymmetric
from jaxssl.training.optim import ParameterGroup


def barlow_group(out_dim: int, num_layers: int, *, bias: bool, last_bias: bool) -> ConfigDict:
    """A head of layers of one width, BatchNorm between them."""
    method = ConfigDict()
    method.name = "barlow_twins"
    method.head = head_group(
        out_dim,
        num_layers=num_layers,
        hidden_dim=out_dim,
        hidden_bias=bias,
        output_bias=last_bias,
    )
    return method


def _loss(config: ConfigDict, off_diagonal_weight: float, scale: float = 1.0) -> None:
    config.hyper.off_diagonal_weight = off_diagonal_weight  # the paper's lambda
    config.hyper.scale = scale  # factor of the whole loss


def _lightlys_own(config: ConfigDict) -> None:
    _loss(config, 0.005)
    config.method = barlow_group(2048, 2, bias=False, last_bias=True)


def _jaxssl(config: ConfigDict, given: ConfigDict) -> None:
    house(config, given)
    _lightlys_own(config)


def _lightly(config: ConfigDict, given: ConfigDict) -> None:
    lightly(config, given)
    _lightlys_own(config)


def _solo(config: ConfigDict, given: ConfigDict) -> None:
    solo(config, given, solo_asymmetric)
    config.optimizer = solo_lars()
    config.hyper.learning_rate.value = 0.3
    config.hyper.weight_decay = 1e-4
    _loss(config, 0.0051, scale=0.1)
    config.method = barlow_group(2048, 3, bias=True, last_bias=True)


def _paper(config: ConfigDict, given: ConfigDict) -> None:
    imagenet(config, given, byol)
    config.encoder.zero_init_residual = True
    config.optimizer = byol_lars()
    slow = ParameterGroup(".*/(bias|scale)", 0.0, False, 0.0048 / 0.2, True)
    config.optimizer.groups = (slow, config.optimizer.groups[1])
    warm_up(config, given)
    config.hyper.learning_rate.value = 0.2
    config.hyper.learning_rate.end = 0.2 * 0.001
    config.hyper.weight_decay = 1e-6
    _loss(config, 0.0051)
    config.method = barlow_group(8192, 3, bias=False, last_bias=False)


PRESETS = {
    "jaxssl": Preset(_jaxssl, ("cifar10",), {}, held_out=0.1),
    "lightly": Preset(_lightly, ("cifar10",), {"batch": 128}),
    "solo": Preset(_solo, ("cifar10", "cifar100"), {"batch": 256, "epochs": 1000.0}),
    "paper": Preset(_paper, ("imagenet2012",), {"batch": 2048, "epochs": 1000.0, "size": 224}),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return from_preset(arg, PRESETS)
