"""MoCo-v2 (arXiv:2003.04297).

    python -m jaxssl.pretrain --config configs/pretrain/moco_v2.py --workdir runs/moco_v2
    python -m jaxssl.pretrain --config configs/pretrain/moco_v2.py:preset=moco_demo --workdir RUN

Presets (preset=NAME; all but the first train on the whole split and watch the test split):

jaxssl (CIFAR-10, ResNet-18, batch 512, 200 epochs, 5,000 images held out for choices): the demo
  below.
moco_demo (CIFAR-10, ResNet-18, batch 512, 200 epochs): the authors' notebook
  moco_cifar10_demo.ipynb, as it runs: SGD .06, momentum .9, decay 5e-4 on everything, cosine by
  epoch counted from one, no warm-up; one linear layer to 128; queue 4096, teacher decay .99,
  temperature .1; crops from .08, no blur; BatchNorm in 8 groups, the teacher's batch shuffled.
  Likely the recipe behind the ResNet-18 numbers of "Is Self-Supervised Learning More Robust Than
  Supervised Learning?" (82.44 +- .18 %).
  Published: kNN (k=200, T=.1, on the 128-d output) 82.6 / 86.3 / 88.7 % after 200 / 400 / 800
  epochs; symmetric (symmetric=true) 85.3 / 88.5 / 89.7 %.
  Differs: batches straddle epochs, so that the demo's 19,400 steps, of 97 an epoch and 336 images
  left out of each, are 198.656 epochs here; the rate falls every 97.66 steps. The demo sums the two
  directions of its symmetric loss, here they are averaged. The rounding of its 8-bit images between
  operations is not done.
lightly (CIFAR-10, ResNet-18, batch 128, 200 epochs): MocoModel of its benchmark,
  python docs/source/getting_started/benchmarks/cifar10_benchmark.py
  Symmetric, head 512-512-128.
  Published: kNN (k=200, T=.1) .838; at batch=512,epochs=800,queue=8192 .899; best epoch on the test
  split.
  Differs: batches straddle epochs (78,125 steps, there 78,000); there the second direction sees the
  first one's keys in the queue.
solo (CIFAR-10 and -100, ResNet-18, batch 256, 1000 epochs): solo-learn's MoCo-v2+,
  python3 main_pretrain.py --config-path scripts/pretrain/cifar --config-name mocov2plus.yaml
  Symmetric, head 2048-256, queue 32768, teacher decay .99 rising to .999.
  Published: 92.94 % and 69.89 %, of a linear classifier that is trained online.
  Differs: batches straddle epochs (195,312 steps, there 195,000), float32, our probe, one queue for
  both views, there one each.
paper (ImageNet, ResNet-50, batch 256, 200 epochs): facebookresearch/moco,
  python main_moco.py -a resnet50 --lr 0.03 --batch-size 256 --mlp --moco-t 0.2 --aug-plus --cos
  Published: 67.5 % linear.
  Differs: crops are drawn from pictures of at most 448 pixels.

Cost: not yet measured on an accelerator.
Expected here: not yet measured at full width; see "What to expect" in the README for width 16.

Arguments: preset, dataset, batch, epochs, width, size (views, pixels), policy (of the views),
queue, symmetric.
"""

from ml_collections import ConfigDict

from configs.common import Preset, from_preset, head_group, schedule, view_group
from configs.protocols import MOCO_CIFAR, imagenet, lightly, normalized, solo
from jaxssl.augment.augmentation import moco_cifar, moco_v2, solo_symmetric_weak

CIFAR_IMAGES = 50_000


def moco_group(given: ConfigDict, head: ConfigDict, *, shuffle: bool) -> ConfigDict:
    """A head, a queue, and whether the teacher's batch is permuted."""
    method = ConfigDict()
    method.name = "moco_v2"
    method.queue_size = given.queue  # keys kept, a multiple of the keys a step
    method.symmetric = given.symmetric  # both views query and both enter the queue
    method.shuffle = shuffle  # permute the teacher's batch over the BatchNorm groups
    method.head = head
    return method


def plain_head(hidden_dim: int, out_dim: int, num_layers: int = 2) -> ConfigDict:
    """Dense layers with biases and ReLU between them, no BatchNorm."""
    return head_group(
        out_dim,
        num_layers=num_layers,
        hidden_dim=hidden_dim,
        hidden_norm=False,
        hidden_bias=True,
        output_bias=True,
    )


def _jaxssl(config: ConfigDict, given: ConfigDict) -> None:
    config.views = view_group(moco_cifar(given.size))
    normalized(config, MOCO_CIFAR)
    config.encoder.bn_groups = 8
    config.hyper.learning_rate.value = 0.06
    config.hyper.learning_rate.granularity = "epoch_from_one"
    config.hyper.weight_decay = 5e-4
    config.hyper.temperature = 0.1  # of the cosine similarities
    config.hyper.ema = 0.99  # share of itself that the teacher keeps a step
    config.evals.knn.layer = "projection"
    config.method = moco_group(given, plain_head(0, 128, num_layers=1), shuffle=True)


def _moco_demo(config: ConfigDict, given: ConfigDict) -> None:
    _jaxssl(config, given)
    # The demo drops what is left of an epoch after its last whole batch.
    steps = int(given.epochs * (CIFAR_IMAGES // given.batch))
    config.epochs = steps * given.batch / CIFAR_IMAGES


def _lightly(config: ConfigDict, given: ConfigDict) -> None:
    lightly(config, given)
    config.encoder.bn_groups = 8
    config.hyper.temperature = 0.1
    config.hyper.ema = 0.99
    config.method = moco_group(given, plain_head(512, 128), shuffle=True)


def _solo(config: ConfigDict, given: ConfigDict) -> None:
    solo(config, given, solo_symmetric_weak)
    config.hyper.learning_rate.value = 0.3
    config.hyper.weight_decay = 1e-4
    config.hyper.temperature = 0.2
    config.hyper.ema = schedule(0.99, end=0.999)
    config.method = moco_group(given, plain_head(2048, 256), shuffle=False)


def _paper(config: ConfigDict, given: ConfigDict) -> None:
    imagenet(config, given, moco_v2)
    config.encoder.bn_groups = 8
    config.hyper.learning_rate.value = 0.03
    config.hyper.learning_rate.granularity = "epoch"
    config.hyper.weight_decay = 1e-4
    config.hyper.temperature = 0.2
    config.hyper.ema = 0.999
    config.method = moco_group(given, plain_head(2048, 128), shuffle=True)


SYMMETRIC = {"batch": 128, "symmetric": True}
PLUS = {"batch": 256, "epochs": 1000.0, "queue": 32768, "symmetric": True}
LARGE = {"batch": 256, "epochs": 200.0, "size": 224, "queue": 65536}
PRESETS = {
    "jaxssl": Preset(_jaxssl, ("cifar10",), {}, held_out=0.1),
    "moco_demo": Preset(_moco_demo, ("cifar10",), {}),
    "lightly": Preset(_lightly, ("cifar10",), SYMMETRIC),
    "solo": Preset(_solo, ("cifar10", "cifar100"), PLUS),
    "paper": Preset(_paper, ("imagenet2012",), LARGE),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return from_preset(arg, PRESETS, queue=4096, symmetric=False)
