"""VICReg (arXiv:2105.04906).

    python -m jaxssl.pretrain --config configs/pretrain/vicreg.py --workdir runs/vicreg
    python -m jaxssl.pretrain --config configs/pretrain/vicreg.py:preset=solo --workdir RUN

Presets (preset=NAME; all but the first train on the whole split and watch the test split):

jaxssl (CIFAR-10, ResNet-18, batch 512, 200 epochs, 5,000 images held out for choices): simclr.py's
  views, optimizer and schedule; solo-learn's head.
solo (CIFAR-10 and -100, ResNet-18, batch 256, 1000 epochs): solo-learn,
  python3 main_pretrain.py --config-path scripts/pretrain/cifar --config-name vicreg.yaml
  Head 2048-2048-2048; weights 25, 25, 1 of a loss that adds the views' variance terms.
  Published: 92.07 % and 68.54 %, of a linear classifier that is trained online.
  Differs: batches straddle epochs (195,312 steps, there 195,000), float32, our probe.
paper (ImageNet, ResNet-50, batch 2048, 1000 epochs): facebookresearch/vicreg,
  python run_with_submitit.py --nodes 4 --ngpus 8 --arch resnet50 --epochs 1000 --batch-size 2048
  --base-lr 0.2
  Head 8192-8192-8192, weights 25, 25, 1; views as in lightly's VICRegTransform.
  Published: 73.2 % linear.
  Differs: crops are drawn from pictures of at most 448 pixels.

Cost: not yet measured on an accelerator.
Expected here: not yet measured.

Arguments: preset, dataset, batch, epochs, width, size (views, pixels), policy (of the views).
"""

from ml_collections import ConfigDict

from configs.common import Preset, from_preset, head_group
from configs.protocols import byol_lars, house, imagenet, solo, solo_lars, warm_up
from jaxssl.augment.augmentation import solo_vicreg, vicreg


def vicreg_group(out_dim: int, *, last_bias: bool) -> ConfigDict:
    """The expander: three layers of one width, BatchNorm between them."""
    method = ConfigDict()
    method.name = "vicreg"
    method.head = head_group(
        out_dim, num_layers=3, hidden_dim=out_dim, hidden_bias=True, output_bias=last_bias
    )
    return method


def _weights(config: ConfigDict, variance: float) -> None:
    config.hyper.invariance_weight = 25.0  # of the squared differences of the views
    config.hyper.variance_weight = variance  # of the mean over the views of the hinge at 1
    config.hyper.covariance_weight = 1.0  # of the squared covariances


def _jaxssl(config: ConfigDict, given: ConfigDict) -> None:
    house(config, given)
    _weights(config, 25.0)
    config.method = vicreg_group(2048, last_bias=True)


def _solo(config: ConfigDict, given: ConfigDict) -> None:
    solo(config, given, solo_vicreg)
    config.optimizer = solo_lars()
    config.hyper.learning_rate.value = 0.3
    config.hyper.weight_decay = 1e-4
    _weights(config, 50.0)
    config.method = vicreg_group(2048, last_bias=True)


def _paper(config: ConfigDict, given: ConfigDict) -> None:
    imagenet(config, given, vicreg)
    config.encoder.zero_init_residual = True
    config.optimizer = byol_lars()
    warm_up(config, given)
    config.hyper.learning_rate.value = 0.2
    config.hyper.learning_rate.end = 0.2 * 0.001
    config.hyper.weight_decay = 1e-6
    _weights(config, 25.0)
    config.method = vicreg_group(8192, last_bias=False)


PRESETS = {
    "jaxssl": Preset(_jaxssl, ("cifar10",), {}, held_out=0.1),
    "solo": Preset(_solo, ("cifar10", "cifar100"), {"batch": 256, "epochs": 1000.0}),
    "paper": Preset(_paper, ("imagenet2012",), {"batch": 2048, "epochs": 1000.0, "size": 224}),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return from_preset(arg, PRESETS)
