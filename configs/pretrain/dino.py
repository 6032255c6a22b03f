"""DINO (arXiv:2104.14294), ResNet-18 on CIFAR-10 and -100.

    python -m jaxssl.pretrain --config configs/pretrain/dino.py --workdir runs/dino
    python -m jaxssl.pretrain --config configs/pretrain/dino.py:preset=solo --workdir runs/dino_solo

Presets (preset=NAME; all but the first train on the whole split and watch the test split):

jaxssl (CIFAR-10, batch 512, 200 epochs, 5,000 images held out for choices): lightly's numbers with
  this library's schedule; the last layer is frozen in the first epoch, as in the paper.
lightly (CIFAR-10, batch 128, 200 epochs): its cifar10_benchmark.py, DINOModel. SGD .06 B/128, decay
  5e-4 on everything; head 2048-256 with BatchNorm, 2048 outputs; temperatures .1 and .04, centre
  .9, teacher decay .99, all constant; two views of 32 pixels from .4, nothing frozen.
  Published: kNN (k=200, T=.1) .840; at batch=512,epochs=800 .848; best epoch on the test split.
  Differs: batches straddle epochs (78,125 steps, there 78,000); BatchNorm sees both views at once,
  there one at a time; the teacher follows after the step, there before it.
solo (CIFAR-10 and -100, batch 256, 1000 epochs): solo-learn,
  python3 main_pretrain.py --config-path scripts/pretrain/cifar --config-name dino.yaml
  LARS .3, decay 1e-6; head 2048-2048-256 without BatchNorm, 4096 outputs; temperatures .1 and .07,
  teacher decay .9995 rising to 1, last layer frozen in the first epoch.
  Published: 89.52 % and 66.76 %, of a linear classifier that is trained online.
  Differs: batches straddle epochs (195,312 steps, there 195,000), float32, our probe, BatchNorm
  sees both views at once.

Cost: not yet measured on an accelerator.
Expected here: not yet measured.

Arguments: preset, dataset, batch, epochs, width, size (views, pixels), policy (of the views).
"""

from ml_collections import ConfigDict

from configs.common import Preset, from_epoch, from_preset, head_group, schedule, view_group
from configs.protocols import house, lightly, solo, solo_lars
from jaxssl.augment.augmentation import lightly_dino, solo_asymmetric
from jaxssl.training.optim import ParameterGroup

LAST_LAYER = ParameterGroup("last_layer/kernel", 1.0, True, "last_layer_rate", True)


def dino_group(num_prototypes: int, **settings: int | bool | str) -> ConfigDict:
    """A head to 256, and so many outputs."""
    method = ConfigDict()
    method.name = "dino"
    method.num_prototypes = num_prototypes  # outputs K of the last layer
    method.head = head_group(256, hidden_dim=2048, output_bias=True, **settings)
    return method


def freeze_last_layer(config: ConfigDict, epochs: float) -> None:
    """The last layer stays as it is for so many epochs."""
    config.optimizer.groups = (LAST_LAYER, *config.optimizer.groups)
    config.hyper.last_layer_rate = from_epoch(epochs)  # multiplies its learning rate


def _lightlys_own(config: ConfigDict, given: ConfigDict) -> None:
    config.views = view_group(lightly_dino(given.size))
    config.hyper.student_temperature = 0.1
    config.hyper.teacher_temperature = 0.04
    config.hyper.center_momentum = 0.9  # share of itself that the centre keeps a step
    config.hyper.ema = 0.99  # share of itself that the teacher keeps a step
    config.method = dino_group(2048)


def _jaxssl(config: ConfigDict, given: ConfigDict) -> None:
    house(config, given)
    _lightlys_own(config, given)
    freeze_last_layer(config, min(1.0, given.epochs / 10))


def _lightly(config: ConfigDict, given: ConfigDict) -> None:
    lightly(config, given)
    _lightlys_own(config, given)


def _solo(config: ConfigDict, given: ConfigDict) -> None:
    solo(config, given, solo_asymmetric)
    config.optimizer = solo_lars()
    config.hyper.learning_rate.value = 0.3
    config.hyper.weight_decay = 1e-6
    config.hyper.student_temperature = 0.1
    config.hyper.teacher_temperature = 0.07
    config.hyper.center_momentum = 0.9
    config.hyper.ema = schedule(0.9995, end=1.0)
    config.method = dino_group(
        4096, num_layers=3, hidden_norm=False, hidden_bias=True, init="normal_0.02"
    )
    freeze_last_layer(config, min(1.0, given.epochs / 10))


PRESETS = {
    "jaxssl": Preset(_jaxssl, ("cifar10",), {}, held_out=0.1),
    "lightly": Preset(_lightly, ("cifar10",), {"batch": 128}),
    "solo": Preset(_solo, ("cifar10", "cifar100"), {"batch": 256, "epochs": 1000.0}),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return from_preset(arg, PRESETS)
