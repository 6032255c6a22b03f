"""SimCLR (arXiv:2002.05709) and SimCLR-v2 (arXiv:2006.10029).

    python -m jaxssl.pretrain --config configs/pretrain/simclr.py --workdir runs/simclr
    python -m jaxssl.pretrain --config configs/pretrain/simclr.py:preset=lightly --workdir RUN

Presets (preset=NAME; all but the first train on the whole split and watch the test split):

jaxssl (CIFAR-10, ResNet-18, batch 512, 200 epochs, 5,000 images held out for choices): SGD .06
  B/128, momentum .9, decay 5e-4 on everything, cosine, no warm-up, temperature .5, head
  512-512-128, colour strength .5, no blur: lightly's numbers with SimCLR's own views.
lightly (CIFAR-10, ResNet-18, batch 128, 200 epochs): SimCLRModel of its benchmark,
  python docs/source/getting_started/benchmarks/cifar10_benchmark.py
  Published: kNN (k=200, T=.1) .847; at batch=512,epochs=800 .879; best epoch on the test split.
  Differs: batches straddle epochs (78,125 steps, there 78,000); BatchNorm sees both views at once,
  there one at a time.
solo (CIFAR-10 and -100, ResNet-18, batch 256, 1000 epochs): solo-learn,
  python3 main_pretrain.py --config-path scripts/pretrain/cifar --config-name simclr.yaml
  Published: 90.74 % and 65.78 %, of a linear classifier that is trained online.
  Differs: batches straddle epochs (195,312 steps, there 195,000), float32, our probe, BatchNorm
  sees both views at once.
paper (CIFAR-10, ResNet-18, batch 512, 1000 epochs): google-research/simclr,
  python run.py --train_mode=pretrain --train_batch_size=512 --train_epochs=1000
  --learning_rate=1.0 --weight_decay=1e-4 --temperature=0.5 --dataset=cifar10 --image_size=32
  --eval_split=test --resnet_depth=18 --use_blur=False --color_jitter_strength=0.5
  Published: about 91 % linear. LARS, head of three layers.
  Differs: torchvision's crop boxes and jitter. The authors' loss is twice this one: half the decay
  and twice the rate of biases and BatchNorm make the same steps.
v2 (ImageNet, ResNet-50, batch 4096, 100 epochs): the same code,
  python run.py --train_mode=pretrain --train_batch_size=4096 --train_epochs=100
  --learning_rate=0.075 --learning_rate_scaling=sqrt --weight_decay=1e-4 --temperature=0.1
  --dataset=imagenet2012 --image_size=224 --eval_split=validation --resnet_depth=50
  Watched on the head's first hidden layer, as SimCLR-v2 does: --probe.layer=head1. head_layers=4 is
  the paper's other head.
  Published: 64.5 % linear, on the encoder's output.
  Differs: as paper, and crops are drawn from pictures of at most 448 pixels.

Cost: not yet measured on an accelerator.
Expected here: not yet measured at full width; see "What to expect" in the README for width 16.

Arguments: preset, dataset, batch, epochs, width, size (views, pixels), policy (of the views),
head_layers.
"""

from ml_collections import ConfigDict

from configs.common import Preset, from_preset, head_group, lars_group, simclr_group, view_group
from configs.protocols import house, imagenet, lightly, solo, solo_lars, warm_up
from jaxssl.augment.augmentation import simclr_cifar, simclr_imagenet, solo_symmetric
from jaxssl.training.optim import ParameterGroup


def _lightlys_own(config: ConfigDict, given: ConfigDict) -> None:
    config.hyper.temperature = 0.5  # of the cosine similarities
    config.method = simclr_group(out_dim=128)
    config.method.head.output_norm = "bn"
    config.method.head.num_layers = given.head_layers


def _jaxssl(config: ConfigDict, given: ConfigDict) -> None:
    house(config, given)
    _lightlys_own(config, given)


def _lightly(config: ConfigDict, given: ConfigDict) -> None:
    lightly(config, given)
    _lightlys_own(config, given)


def _solo(config: ConfigDict, given: ConfigDict) -> None:
    solo(config, given, solo_symmetric)
    config.optimizer = solo_lars()
    config.hyper.learning_rate.value = 0.4
    config.hyper.weight_decay = 1e-4
    config.hyper.temperature = 0.2
    config.method = simclr_group(out_dim=256)
    config.method.head = head_group(
        256,
        num_layers=given.head_layers,
        hidden_dim=2048,
        hidden_norm=False,
        hidden_bias=True,
        output_bias=True,
    )


def _paper(config: ConfigDict, given: ConfigDict) -> None:
    config.views = view_group(simclr_cifar(given.size))
    _authors_code(config, given)
    config.hyper.learning_rate.value = 1.0
    config.hyper.temperature = 0.5


def _v2(config: ConfigDict, given: ConfigDict) -> None:
    imagenet(config, given, simclr_imagenet)
    config.normalize.mean = config.normalize.std = ()
    _authors_code(config, given)
    config.optimizer.scaling = "sqrt"
    config.hyper.learning_rate.value = 0.075
    config.hyper.temperature = 0.1
    config.evals.knn.layer = "head1"


def _authors_code(config: ConfigDict, given: ConfigDict) -> None:
    """ResNet, head and LARS of google-research/simclr."""
    config.encoder.shortcut = "projection_always"
    config.encoder.zero_init_residual = True
    config.encoder.kernel_init = "fan_in_truncated_normal"
    config.method = simclr_group(out_dim=128)
    config.method.head.update(
        num_layers=given.head_layers, output_norm="bn_no_center", init="normal_0.01"
    )
    config.optimizer = lars_group()
    twice, rest = (
        ParameterGroup(".*/(bias|scale)", 0.0, False, 2.0, True),
        config.optimizer.groups[1],
    )
    config.optimizer.groups = (twice, rest)
    config.hyper.weight_decay = 1e-4 / 2
    warm_up(config, given)


LONG = {"batch": 512, "epochs": 1000.0, "head_layers": 3}
LARGE = {"batch": 4096, "epochs": 100.0, "size": 224, "head_layers": 3}
PRESETS = {
    "jaxssl": Preset(_jaxssl, ("cifar10",), {}, held_out=0.1),
    "lightly": Preset(_lightly, ("cifar10",), {"batch": 128}),
    "solo": Preset(_solo, ("cifar10", "cifar100"), {"batch": 256, "epochs": 1000.0}),
    "paper": Preset(_paper, ("cifar10",), LONG),
    "v2": Preset(_v2, ("imagenet2012",), LARGE),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return from_preset(arg, PRESETS, head_layers=2)
