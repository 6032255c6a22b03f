"""DINO (arXiv:2104.14294): ResNet-18 or a ViT on CIFAR-10, ViT-S/16 on ImageNet.

    python -m jaxssl.pretrain --config configs/pretrain/dino.py --workdir runs/dino
    python -m jaxssl.pretrain --config configs/pretrain/dino.py:preset=solo --workdir runs/dino_solo

Presets (preset=NAME; all but the first two train on the whole split and watch the test split):

jaxssl (CIFAR-10, batch 512, 200 epochs, 5,000 images held out for choices): lightly's numbers with
  this library's schedule; the last layer is frozen in the first epoch, as in the paper.
vit (CIFAR-10, batch 256, 200 epochs, 5,000 images held out for choices): the paper's recipe for
  ViTs at 32 pixels. ViT-S, patch=8 (the likely one of arXiv:2206.05259) or 4, two views of 32 and
  eight of 16 pixels (whole patches, up to half the side), 4096 outputs; the teacher's temperature
  rises from .04 to .07. No table of ViTs on CIFAR-10 is known to us.
lightly (CIFAR-10, batch 128, 200 epochs): DINOModel of its benchmark,
  python docs/source/getting_started/benchmarks/cifar10_benchmark.py
  SGD .06 B/128, decay 5e-4 on everything; head 2048-256 with BatchNorm, 2048 outputs; temperatures
  .1 and .04, centre .9, teacher decay .99, all constant; two views of 32 pixels from .4, nothing
  frozen.
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
paper (ImageNet, ViT-S/16, batch 512, 100 epochs): the authors' code on eight GPUs,
  python -m torch.distributed.launch --nproc_per_node=8 main_dino.py --arch vit_small
  AdamW .0005 B/256 to 1e-6 after ten epochs, decay .04 rising to .4, clip 3; head 2048-2048-256,
  65,536 outputs, temperatures .1 and .04, teacher decay .996 rising to 1, last layer frozen in the
  first epoch; two views of 224 and eight of 96 pixels.
  Published: kNN 69.3 %, linear 73.8 %, of the teacher.
  Differs: crops are drawn from pictures of at most 448 pixels; no stochastic depth (there .1);
  float32; the norm of the whole gradient is clipped, there that of each weight; the class token and
  the positions do not decay.

Cost: not yet measured on an accelerator.
Expected here: not yet measured.

Arguments: preset, dataset, batch, epochs, width (of a ResNet), size (views, pixels), policy (of the
views), patch (of a ViT, pixels).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import (
    Preset,
    adamw_group,
    from_epoch,
    from_preset,
    head_group,
    schedule,
    view_group,
    vit_group,
)
from configs.protocols import IMAGENET, SOLO, house, lightly, normalized, solo, solo_lars, warm_up
from jaxssl.augment.augmentation import dino_multi_crop, lightly_dino, solo_asymmetric
from jaxssl.training.optim import ParameterGroup

DEEP = {"num_layers": 3, "hidden_norm": False, "hidden_bias": True, "init": "normal_0.02"}
LAST_LAYER = ParameterGroup("last_layer/kernel", 1.0, True, "last_layer_rate", True)


def dino_group(num_prototypes: int, **settings: Any) -> ConfigDict:
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
    config.method = dino_group(4096, **DEEP)
    freeze_last_layer(config, min(1.0, given.epochs / 10))


def _vit(config: ConfigDict, given: ConfigDict) -> None:
    normalized(config, SOLO[given.dataset])
    _authors(config, given, num_prototypes=4096)
    # The largest multiple of the patch up to half the global views.
    side = max(given.size // 2 // given.patch, 1) * given.patch
    taps = min(config.views.local_crops.blur_kernel_size, 2 * side - 1)
    config.views.local_crops.update(size=side, blur_kernel_size=taps)
    config.hyper.teacher_temperature = schedule(
        0.07, shape="constant", warmup_from=0.04, warmup_epochs=min(30.0, given.epochs / 10)
    )


def _paper(config: ConfigDict, given: ConfigDict) -> None:
    normalized(config, IMAGENET)
    _authors(config, given, num_prototypes=65536)
    config.hyper.teacher_temperature = 0.04


def _authors(config: ConfigDict, given: ConfigDict, num_prototypes: int) -> None:
    """The paper's for ViTs, but for the teacher's temperature."""
    config.views = view_group(dino_multi_crop(given.size))
    config.encoder = vit_group("small", given.size, given.patch)
    config.optimizer = adamw_group()
    config.optimizer.scaling = "linear"
    config.optimizer.clip_norm = 3.0
    warm_up(config, given)
    config.hyper.learning_rate.value = 5e-4
    config.hyper.learning_rate.end = 1e-6 * 256 / given.batch  # 1e-6 whatever the batch
    del config.hyper.weight_decay  # a number until now
    config.hyper.weight_decay = schedule(0.04, end=0.4)
    config.hyper.student_temperature = 0.1
    config.hyper.center_momentum = 0.9
    config.hyper.ema = schedule(0.996, end=1.0)
    config.evals.knn.layer = "teacher"
    config.evals.knn.protocol = "dino"  # the paper's 20 neighbours
    config.method = dino_group(num_prototypes, **DEEP)
    freeze_last_layer(config, min(1.0, given.epochs / 10))


PRESETS = {
    "jaxssl": Preset(_jaxssl, ("cifar10",), {}, held_out=0.1),
    "vit": Preset(_vit, ("cifar10",), {"batch": 256}, held_out=0.1),
    "lightly": Preset(_lightly, ("cifar10",), {"batch": 128}),
    "solo": Preset(_solo, ("cifar10", "cifar100"), {"batch": 256, "epochs": 1000.0}),
    "paper": Preset(_paper, ("imagenet2012",), {"epochs": 100.0, "size": 224, "patch": 16}),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return from_preset(arg, PRESETS, patch=8)
