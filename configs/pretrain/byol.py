"""BYOL (arXiv:2006.07733): ResNet-18 on CIFAR-10, ResNet-50 on ImageNet.

    python -m jaxssl.pretrain --config configs/pretrain/byol.py --workdir runs/byol
    python -m jaxssl.pretrain --config configs/pretrain/byol.py:preset=solo --workdir RUN

Presets (preset=NAME; all but the first train on the whole split and watch the test split):

jaxssl (CIFAR-10, batch 512, 200 epochs, 5,000 images held out for choices): lightly's heads, decay
  and rate with this library's views and schedule.
lightly (CIFAR-10, batch 128, 200 epochs): BYOLModel of its benchmark,
  python docs/source/getting_started/benchmarks/cifar10_benchmark.py
  SGD .06 B/128 on a loss that is a quarter of BYOL's, which is written here as a quarter of the
  rate and four times the decay of weights; heads 1024-256, teacher decay .99.
  Published: kNN (k=200, T=.1) .869; at batch=512,epochs=800 .910; best epoch on the test split.
  Differs: batches straddle epochs (78,125 steps, there 78,000).
solo (CIFAR-10 and -100, batch 256, 1000 epochs): solo-learn,
  python3 main_pretrain.py --config-path scripts/pretrain/cifar --config-name byol.yaml
  Published: 92.58 % and 70.46 %, of a linear classifier that is trained online.
  Differs: batches straddle epochs (195,312 steps, there 195,000), float32, our probe.
paper (ImageNet, batch 4096, 300 epochs; also 100 and 1000): the authors' JAX code,
  python -m byol.main_loop --experiment_mode=pretrain --worker_mode=train --pretrain_epochs=300
  LARS .45 / .3 / .2 B/256 for 100 / 300 / 1000 epochs, decay 1e-6 (1000: 1.5e-6), teacher decay
  .99 (1000: .996) rising to 1; heads 4096-256.
  Published: 74.3 % linear (the paper's abstract), after 1000 epochs; 74.0 to 74.5 % of this code.
  Differs: crops are drawn from pictures of at most 448 pixels, with torchvision's boxes.

Cost: not yet measured on an accelerator.
Expected here: not yet measured.

Arguments: preset, dataset, batch, epochs, width, size (views, pixels), policy (of the views).
"""

from ml_collections import ConfigDict

from configs.common import Preset, from_preset, head_group, schedule
from configs.protocols import byol_lars, house, imagenet, lightly, solo, solo_lars, warm_up
from jaxssl.augment.augmentation import byol, solo_asymmetric


def byol_group(hidden_dim: int, **settings: bool) -> ConfigDict:
    """Head and predictor of two layers, to 256."""
    method = ConfigDict()
    method.name = "byol"
    method.head = head_group(256, hidden_dim=hidden_dim, **settings)
    method.predictor = head_group(256, hidden_dim=hidden_dim, **settings)
    return method


def _lightlys_own(config: ConfigDict) -> None:
    config.hyper.learning_rate.value /= 4  # with the next line: SGD on a quarter of the loss
    config.hyper.weight_decay *= 4
    config.hyper.ema = 0.99  # share of itself that the teacher keeps a step
    config.method = byol_group(hidden_dim=1024, output_bias=True)


def _jaxssl(config: ConfigDict, given: ConfigDict) -> None:
    house(config, given)
    _lightlys_own(config)


def _lightly(config: ConfigDict, given: ConfigDict) -> None:
    lightly(config, given)
    _lightlys_own(config)


def _solo(config: ConfigDict, given: ConfigDict) -> None:
    solo(config, given, solo_asymmetric)
    config.optimizer = solo_lars()
    config.hyper.learning_rate.value = 1.0
    config.hyper.weight_decay = 1e-5
    config.hyper.ema = schedule(0.99, end=1.0)
    config.method = byol_group(hidden_dim=4096, hidden_bias=True, output_bias=True)


def _paper(config: ConfigDict, given: ConfigDict) -> None:
    imagenet(config, given, byol)
    config.encoder.zero_init_residual = True
    config.encoder.kernel_init = "fan_in_truncated_normal"  # Haiku's
    config.optimizer = byol_lars()
    warm_up(config, given)
    long = given.epochs >= 1000
    config.hyper.learning_rate.value = 0.2 if long else 0.3 if given.epochs > 100 else 0.45
    config.hyper.weight_decay = 1.5e-6 if long else 1e-6
    config.hyper.ema = schedule(0.996 if long else 0.99, end=1.0)
    config.method = byol_group(hidden_dim=4096, hidden_bias=True)
    for head in (config.method.head, config.method.predictor):
        head.init = "fan_in_truncated_normal"


PRESETS = {
    "jaxssl": Preset(_jaxssl, ("cifar10",), {}, held_out=0.1),
    "lightly": Preset(_lightly, ("cifar10",), {"batch": 128}),
    "solo": Preset(_solo, ("cifar10", "cifar100"), {"batch": 256, "epochs": 1000.0}),
    "paper": Preset(_paper, ("imagenet2012",), {"batch": 4096, "epochs": 300.0, "size": 224}),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return from_preset(arg, PRESETS)
