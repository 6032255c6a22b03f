"""The supervised yardstick: cross-entropy of one linear layer on the pooled features.

    python -m jaxssl.pretrain --config configs/pretrain/supervised.py --workdir runs/supervised

Presets (preset=NAME; all but the first train on the whole split and watch the test split):

jaxssl (CIFAR-10, ResNet-18, batch 512, 200 epochs, 5,000 images held out for choices): the views,
  order and schedule of simclr.py's, cross-entropy on both views.
  Published, with SSL augmentations (arXiv:2206.05259, table 1): 89.53 % linear, of an encoder
  trained on all 50,000 images (--config.data.validation_fraction=0 --config.evals.knn.split=test).
supcontrast (CIFAR-10 and -100, ResNet-50, batch 1024, 500 epochs): HobbitLong/SupContrast,
  python main_ce.py --batch_size 1024 --learning_rate 0.8 --cosine
  One view, crops and flips alone.
  Published: 95.0 % and 75.3 %.
  Differs: batches straddle epochs (24,414 steps, there 24,500); the cosine begins after the
  warm-up, there it runs beneath it.

Cost: not yet measured on an accelerator.
Expected here: not yet measured at full width; see "What to expect" in the README for width 16.

Arguments: preset, dataset, batch, epochs, width, size (views, pixels), policy (of the views).
"""

from ml_collections import ConfigDict

from configs.common import Preset, from_preset, view_group
from configs.protocols import house, supcontrast
from jaxssl.augment.augmentation import Augmentation


def _jaxssl(config: ConfigDict, given: ConfigDict) -> None:
    house(config, given)
    _method(config)


def _supcontrast(config: ConfigDict, given: ConfigDict) -> None:
    supcontrast(config, given, rate=0.8)
    view = Augmentation(size=given.size, crop_scale=(0.2, 1.0), crop_filter="bilinear")
    config.views = view_group((view,))
    _method(config)


def _method(config: ConfigDict) -> None:
    method = config.method = ConfigDict()
    method.name = "supervised"


PRESETS = {
    "jaxssl": Preset(_jaxssl, ("cifar10",), {}, held_out=0.1),
    "supcontrast": Preset(_supcontrast, ("cifar10", "cifar100"), {"batch": 1024, "epochs": 500.0}),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return from_preset(arg, PRESETS)
