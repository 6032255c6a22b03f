"""MoCo-v3 (arXiv:2104.02057).

    python -m jaxssl.pretrain --config configs/pretrain/moco_v3.py --workdir runs/moco_v3
    python -m jaxssl.pretrain --config configs/pretrain/moco_v3.py:preset=solo --workdir RUN

Presets (preset=NAME; all but the first train on the whole split and watch the test split):

jaxssl (CIFAR-10, ResNet-18, batch 512, 200 epochs, 5,000 images held out for choices): simclr.py's
  views, optimizer and schedule; solo-learn's heads, temperature and teacher.
solo (CIFAR-10 and -100, ResNet-18, batch 256, 1000 epochs): solo-learn,
  python3 main_pretrain.py --config-path scripts/pretrain/cifar --config-name mocov3.yaml
  Heads 4096-256, temperature .2, teacher decay .99 rising to 1.
  Published: 93.10 % and 68.83 %, of a linear classifier that is trained online.
  Differs: batches straddle epochs (195,312 steps, there 195,000), float32, our probe.
paper (ImageNet, ResNet-50, batch 4096, 100 epochs; also 300 and 1000): facebookresearch/moco-v3,
  python main_moco.py --moco-m-cos --crop-min=.2
  300 epochs: --lr=.3; 1000: --lr=.3 --wd=1.5e-6 --moco-m=0.996. Temperature 1.
  Published: 68.9, 72.8 and 74.6 % linear.
  Differs: crops are drawn from pictures of at most 448 pixels.
paper_vit (ImageNet, ViT-S/16, batch 4096, 300 epochs): the same code,
  python main_moco.py -a vit_small --optimizer=adamw --lr=1.5e-4 --weight-decay=.1 --epochs=300
  --warmup-epochs=40 --stop-grad-conv1 --moco-m-cos --moco-t=.2
  A ViT-S of 12 heads with fixed positions, the embedding of patches kept as it was drawn; heads of
  three and two layers over 4096, BatchNorm without parameters after each; AdamW on everything,
  crops from .08. ViT-B: width=768. Their smaller run: batch=1024.
  Published: 73.2 % linear, ViT-B 76.7 %.
  Differs: crops are drawn from pictures of at most 448 pixels; float32.

Cost: not yet measured on an accelerator.
Expected here: not yet measured.

Arguments: preset, dataset, batch, epochs, width (of a ViT: of a token), size (views, pixels),
policy (of the views), patch (of a ViT, pixels).
"""

import dataclasses
import functools
from typing import Any

from ml_collections import ConfigDict

from configs.common import Preset, adamw_group, from_preset, head_group, schedule, vit_group
from configs.protocols import byol_lars, house, imagenet, solo, solo_lars, warm_up
from jaxssl.augment.augmentation import Augmentation, byol, solo_asymmetric
from jaxssl.training.optim import DECAY_ALL


def moco_v3_group(num_layers: int = 2, predictor_norm: str = "none") -> ConfigDict:
    """Head and predictor over 4096 to 256, without biases."""
    method = ConfigDict()
    method.name = "moco_v3"
    method.head = head_group(
        256, num_layers=num_layers, hidden_dim=4096, output_norm="bn_no_affine"
    )
    method.predictor = head_group(256, hidden_dim=4096, output_norm=predictor_norm)
    return method


def _jaxssl(config: ConfigDict, given: ConfigDict) -> None:
    house(config, given)
    _solos_own(config)


def _solos_own(config: ConfigDict) -> None:
    config.hyper.temperature = 0.2  # of the cosine similarities
    config.hyper.ema = schedule(0.99, end=1.0)  # share of itself that the teacher keeps a step
    config.method = moco_v3_group()


def _solo(config: ConfigDict, given: ConfigDict) -> None:
    solo(config, given, solo_asymmetric)
    config.optimizer = solo_lars()
    config.hyper.learning_rate.value = 0.3
    config.hyper.weight_decay = 1e-6
    _solos_own(config)


def _authors_views(size: int, smallest: float) -> tuple[Augmentation, ...]:
    crops: dict[str, Any] = {"crop_scale": (smallest, 1.0), "crop_filter": "bilinear"}
    return tuple(dataclasses.replace(view, **crops) for view in byol(size))


def _paper(config: ConfigDict, given: ConfigDict) -> None:
    imagenet(config, given, functools.partial(_authors_views, smallest=0.2))
    config.encoder.zero_init_residual = True
    config.optimizer = byol_lars()
    warm_up(config, given)
    long = given.epochs >= 1000
    config.hyper.learning_rate.value = 0.3 if given.epochs > 100 else 0.6
    config.hyper.weight_decay = 1.5e-6 if long else 1e-6
    config.hyper.temperature = 1.0
    config.hyper.ema = schedule(0.996 if long else 0.99, end=1.0)
    config.method = moco_v3_group()


def _paper_vit(config: ConfigDict, given: ConfigDict) -> None:
    imagenet(config, given, functools.partial(_authors_views, smallest=0.08))
    encoder = config.encoder = vit_group("small", given.size, given.patch)
    encoder.width, encoder.heads = given.width, 12
    encoder.update(positions="sincos", frozen_patches=True, kernel_init="xavier_uniform")
    config.optimizer = adamw_group()
    config.optimizer.scaling = "linear"
    config.optimizer.groups = DECAY_ALL
    config.hyper.learning_rate.value = 1.5e-4
    config.hyper.learning_rate.warmup_epochs = min(40.0, given.epochs * 40 / 300)
    config.hyper.weight_decay = 0.1
    config.hyper.temperature = 0.2
    config.hyper.ema = schedule(0.99, end=1.0)
    config.method = moco_v3_group(num_layers=3, predictor_norm="bn_no_affine")


VIT_S16 = {"batch": 4096, "epochs": 300.0, "size": 224, "width": 384, "patch": 16}
PRESETS = {
    "jaxssl": Preset(_jaxssl, ("cifar10",), {}, held_out=0.1),
    "solo": Preset(_solo, ("cifar10", "cifar100"), {"batch": 256, "epochs": 1000.0}),
    "paper": Preset(_paper, ("imagenet2012",), {"batch": 4096, "epochs": 100.0, "size": 224}),
    "paper_vit": Preset(_paper_vit, ("imagenet2012",), VIT_S16),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return from_preset(arg, PRESETS, patch=16)
