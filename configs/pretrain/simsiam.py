"""SimSiam (arXiv:2011.10566), and with margins for crops that show different things.

    python -m jaxssl.pretrain --config configs/pretrain/simsiam.py --workdir runs/simsiam
    python -m jaxssl.pretrain --config configs/pretrain/simsiam.py:preset=margin --workdir RUN

Presets (preset=NAME; all but the first train on the whole split and watch the test split):

jaxssl (CIFAR-10, ResNet-18, batch 512, 200 epochs, 5,000 images held out for choices): simclr.py's
  views and schedule; lightly's heads and its rate .06 whatever the batch; the predictor's rate is
  constant, as in the paper.
lightly (CIFAR-10, ResNet-18, batch 128, 200 epochs): SimSiamModel of its benchmark,
  python docs/source/getting_started/benchmarks/cifar10_benchmark.py
  Head 2048-2048, predictor 512-2048, SGD .06 whatever the batch.
  Published: kNN (k=200, T=.1) .819; at batch=512,epochs=800 .904; best epoch on the test split.
  Differs: batches straddle epochs (78,125 steps, there 78,000).
solo (CIFAR-10 and -100, ResNet-18, batch 256, 1000 epochs): solo-learn,
  python3 main_pretrain.py --config-path scripts/pretrain/cifar --config-name simsiam.yaml
  Published: 90.51 % and 66.04 %, of a linear classifier that is trained online.
  Differs: batches straddle epochs (195,312 steps, there 195,000), float32, our probe.
paper (ImageNet, ResNet-50, batch 512, 100 epochs): facebookresearch/simsiam,
  python main_simsiam.py -a resnet50 --fix-pred-lr
  SGD .05 B/256, cosine by epoch, decay 1e-4 on everything.
  Published: 68.1 % linear.
  Differs: crops are drawn from pictures of at most 448 pixels.
margin (CIFAR-10 and -100, ResNet-50, batch 512, 400 epochs): Jha and Tuytelaars (2024), Eq. 1,
  of which no code is public and who leave the rate and the factor open: SimSiam's rate, and a
  margin that is the distance of the crops' centres over the image's diagonal
  (hyper.distance_margin=1). Their other forms:
  --config.hyper.distance_margin=0 (none), and --config.hyper.margin=0.2 with it (fixed).
  Published: figures alone, no values.
  Differs: the two directions are averaged, there they are summed.

Cost: not yet measured on an accelerator.
Expected here: not yet measured.

Arguments: preset, dataset, batch, epochs, width, size (views, pixels), policy (of the views).
"""

from ml_collections import ConfigDict

from configs.common import Preset, from_preset, head_group, view_group
from configs.protocols import SOLO, house, imagenet, lightly, normalized, solo
from jaxssl.augment.augmentation import moco_v2, solo_symmetric_weak
from jaxssl.training.optim import DECAY_ALL, ParameterGroup

CONSTANT_PREDICTOR = (ParameterGroup("predictor/.*", 1.0, True, 1.0, False), *DECAY_ALL)


def simsiam_group(num_layers: int, output_norm: str) -> ConfigDict:
    """A head to 2048 and a predictor over 512."""
    method = ConfigDict()
    method.name = "simsiam"
    method.head = head_group(2048, num_layers=num_layers, hidden_dim=2048, output_norm=output_norm)
    method.predictor = head_group(2048, hidden_dim=512, output_bias=True)
    return method


def _no_margin(config: ConfigDict) -> None:
    config.hyper.margin = 0.0  # how far short of 1 the cosine of any pair may stay
    config.hyper.distance_margin = 0.0  # that, a distance of the crops of one diagonal


def _lightlys_own(config: ConfigDict) -> None:
    config.optimizer.scaling = "none"
    config.hyper.learning_rate.value = 0.06
    _no_margin(config)
    config.method = simsiam_group(2, "bn")


def _jaxssl(config: ConfigDict, given: ConfigDict) -> None:
    house(config, given)
    _lightlys_own(config)
    config.optimizer.groups = CONSTANT_PREDICTOR


def _lightly(config: ConfigDict, given: ConfigDict) -> None:
    lightly(config, given)
    _lightlys_own(config)


def _solo(config: ConfigDict, given: ConfigDict) -> None:
    solo(config, given, solo_symmetric_weak)
    config.optimizer.groups = CONSTANT_PREDICTOR
    config.hyper.learning_rate.value = 0.5
    config.hyper.weight_decay = 1e-5
    _no_margin(config)
    config.method = simsiam_group(3, "bn_no_affine")


def _paper(config: ConfigDict, given: ConfigDict) -> None:
    imagenet(config, given, moco_v2)
    _papers_own(config)


def _papers_own(config: ConfigDict) -> None:
    config.encoder.zero_init_residual = True
    config.optimizer.scaling = "linear"
    config.optimizer.groups = CONSTANT_PREDICTOR
    config.hyper.learning_rate.value = 0.05
    config.hyper.learning_rate.granularity = "epoch"
    config.hyper.weight_decay = 1e-4
    _no_margin(config)
    config.method = simsiam_group(3, "bn_no_affine")


def _margin(config: ConfigDict, given: ConfigDict) -> None:
    config.encoder.name = "resnet50"
    config.views = view_group(moco_v2(given.size))
    normalized(config, SOLO[given.dataset])
    _papers_own(config)
    config.hyper.distance_margin = 1.0


PRESETS = {
    "jaxssl": Preset(_jaxssl, ("cifar10",), {}, held_out=0.1),
    "lightly": Preset(_lightly, ("cifar10",), {"batch": 128}),
    "solo": Preset(_solo, ("cifar10", "cifar100"), {"batch": 256, "epochs": 1000.0}),
    "paper": Preset(_paper, ("imagenet2012",), {"epochs": 100.0, "size": 224}),
    "margin": Preset(_margin, ("cifar10", "cifar100"), {"epochs": 400.0}),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return from_preset(arg, PRESETS)
