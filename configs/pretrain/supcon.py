"""Supervised contrastive learning (arXiv:2004.11362).

    python -m jaxssl.pretrain --config configs/pretrain/supcon.py --workdir runs/supcon
    python -m jaxssl.pretrain --config configs/pretrain/supcon.py:preset=paper --workdir RUN

Presets (preset=NAME; all but the first train on the whole split and watch the test split):

jaxssl (CIFAR-10, ResNet-18, batch 512, 200 epochs, 5,000 images held out for choices): simclr.py's
  views, optimizer and schedule; the paper's temperature and head.
solo (CIFAR-10 and -100, ResNet-18, batch 256, 1000 epochs): solo-learn,
  python3 main_pretrain.py --config-path scripts/pretrain/cifar --config-name supcon.yaml
  The mean over positives inside the logarithm.
  Published: 93.82 % and 70.38 %, of a linear classifier that is trained online.
  Differs: batches straddle epochs (195,312 steps, there 195,000), float32, our probe, BatchNorm
  sees both views at once.
paper (CIFAR-10 and -100, ResNet-50, batch 1024, 1000 epochs): HobbitLong/SupContrast,
  python main_supcon.py --batch_size 1024 --learning_rate 0.5 --temp 0.1 --cosine
  Published: 96.0 % and 76.5 % linear.
  Differs: batches straddle epochs (48,828 steps, there 49,000); the cosine begins after the
  warm-up, there it runs beneath it; BatchNorm is global, there a device's. The authors' loss is
  temperature / .07 times this one: so much more rate and less decay make the same steps.

Cost: not yet measured on an accelerator.
Expected here: not yet measured.

Arguments: preset, dataset, batch, epochs, width, size (views, pixels), policy (of the views).
"""

from ml_collections import ConfigDict

from configs.common import Preset, from_preset, head_group, view_group
from configs.protocols import house, solo, supcontrast
from jaxssl.augment.augmentation import solo_symmetric, supcon


def supcon_group(out_dim: int, hidden_dim: int, positives: str) -> ConfigDict:
    """A head of two layers without BatchNorm; hidden_dim 0: as wide as its input."""
    method = ConfigDict()
    method.name = "supcon"
    method.positives = positives  # the mean over them "outside" the logarithm or "inside"
    method.head = head_group(
        out_dim, hidden_dim=hidden_dim, hidden_norm=False, hidden_bias=True, output_bias=True
    )
    return method


def _jaxssl(config: ConfigDict, given: ConfigDict) -> None:
    house(config, given)
    config.hyper.temperature = 0.1  # of the cosine similarities
    config.method = supcon_group(128, 0, "outside")


def _solo(config: ConfigDict, given: ConfigDict) -> None:
    solo(config, given, solo_symmetric)
    config.hyper.learning_rate.value = 0.4
    config.hyper.weight_decay = 1e-5
    config.hyper.temperature = 0.2
    config.method = supcon_group(256, 2048, "inside")


def _paper(config: ConfigDict, given: ConfigDict) -> None:
    factor = 0.1 / 0.07  # of the authors' loss
    supcontrast(config, given, rate=0.5 * factor)
    config.views = view_group(supcon(given.size))
    config.hyper.learning_rate.warmup_from = 0.01 * factor
    config.hyper.weight_decay /= factor
    config.hyper.temperature = 0.1
    config.method = supcon_group(128, 0, "outside")


PRESETS = {
    "jaxssl": Preset(_jaxssl, ("cifar10",), {}, held_out=0.1),
    "solo": Preset(_solo, ("cifar10", "cifar100"), {"batch": 256, "epochs": 1000.0}),
    "paper": Preset(_paper, ("cifar10", "cifar100"), {"batch": 1024, "epochs": 1000.0}),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return from_preset(arg, PRESETS)
