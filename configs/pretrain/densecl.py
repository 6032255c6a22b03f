"""DenseCL (arXiv:2011.09157): ResNet-18 on CIFAR-10, ResNet-50 on ImageNet and COCO.

    python -m jaxssl.pretrain --config configs/pretrain/densecl.py --workdir runs/densecl
    python -m jaxssl.pretrain --config configs/pretrain/densecl.py:preset=paper --workdir RUN

Presets (preset=NAME; all but the first train on the whole split and watch the test split):

jaxssl (CIFAR-10, ResNet-18, batch 512, 200 epochs, 5,000 images held out for choices): moco_v2.py's
  views, optimizer, schedule, queue and teacher; maps of 4x4 cells.
paper (ImageNet, ResNet-50, batch 256, 200 epochs; also COCO with epochs=800): WXinlong/DenseCL,
  tools/dist_train.sh configs/selfsup/densecl/densecl_imagenet_200ep.py 8
  COCO: densecl_coco_800ep.py. SGD .03, for COCO .3, momentum .9, decay 1e-4, cosine by epoch,
  MoCo-v2's views, queues of 65,536, teacher decay .999, temperature .2, heads 2048-2048-128,
  ShuffleBN over 8 devices, dense loss of weight .5.
  Published: detection alone, AP 56.7 on VOC after COCO (MoCo-v2 54.7).
  Differs: crops are drawn from pictures of at most 448 pixels.

Cost: not yet measured on an accelerator.
Expected here: not yet measured.

Arguments: preset, dataset, batch, epochs, width, size (views, pixels), policy (of the views),
queue.
"""

from ml_collections import ConfigDict

from configs.common import Preset, from_preset, view_group
from configs.pretrain.dense_contrastive import plain_heads
from configs.protocols import MOCO_CIFAR, imagenet, normalized
from jaxssl.augment.augmentation import moco_cifar, moco_v2


def _densecl(config: ConfigDict, given: ConfigDict) -> None:
    config.encoder.bn_groups = 8
    config.hyper.dense_weight = 0.5  # share of the dense loss; the rest is MoCo's
    method = config.method = ConfigDict({"name": "densecl"})
    method.queue_size = given.queue  # keys kept in each queue, a multiple of the images a step
    method.shuffle = True  # permute the teacher's batch over the BatchNorm groups
    plain_heads(method)


def _jaxssl(config: ConfigDict, given: ConfigDict) -> None:
    config.views = view_group(moco_cifar(given.size))
    normalized(config, MOCO_CIFAR)
    config.hyper.learning_rate.granularity = "epoch_from_one"
    config.hyper.learning_rate.value = 0.06
    config.hyper.temperature = 0.1  # of the cosine similarities
    config.hyper.ema = 0.99  # share of itself that the teacher keeps a step
    _densecl(config, given)


def _paper(config: ConfigDict, given: ConfigDict) -> None:
    imagenet(config, given, moco_v2)
    if given.dataset.startswith("coco"):
        config.evals.knn.every = 0.0  # there is no label
    config.hyper.learning_rate.value = 0.3 if given.dataset.startswith("coco") else 0.03  # at 256
    config.hyper.learning_rate.granularity = "epoch"
    config.hyper.weight_decay = 1e-4
    config.hyper.temperature = 0.2
    config.hyper.ema = 0.999
    _densecl(config, given)


PRESETS = {
    "jaxssl": Preset(_jaxssl, ("cifar10",), {}, held_out=0.1),
    "paper": Preset(
        _paper,
        ("imagenet2012", "coco/2017"),
        {"batch": 256, "size": 224, "queue": 65536},
    ),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return from_preset(arg, PRESETS, queue=4096)
