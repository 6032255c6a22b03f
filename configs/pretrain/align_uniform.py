"""Alignment and uniformity (arXiv:2005.10242) as the loss itself.

    python -m jaxssl.pretrain --config configs/pretrain/align_uniform.py --workdir runs/align

Presets (preset=NAME; all but the first train on the whole split and watch the test split):

jaxssl (CIFAR-10, ResNet-18, batch 512, 200 epochs, 5,000 images held out for choices): simclr.py's
  views, optimizer, schedule and head; the paper's weights 1 and 1, alpha 2, t 2.

Cost: not yet measured on an accelerator.
Expected here: not yet measured.

Arguments: preset, dataset, batch, epochs, width, size (views, pixels), policy (of the views).
"""

from ml_collections import ConfigDict

from configs.common import Preset, from_preset, head_group
from configs.protocols import house


def _loss(config: ConfigDict) -> None:
    config.hyper.alignment_weight = 1.0
    config.hyper.uniformity_weight = 1.0
    config.hyper.alpha = 2.0  # exponent of the distance of a pair
    config.hyper.t = 2.0  # inverse width of the Gaussian potential


def _method(config: ConfigDict, head: ConfigDict) -> None:
    method = config.method = ConfigDict()
    method.name = "align_uniform"
    method.head = head


def _jaxssl(config: ConfigDict, given: ConfigDict) -> None:
    house(config, given)
    _loss(config)
    _method(config, head_group(128, output_norm="bn"))


PRESETS = {
    "jaxssl": Preset(_jaxssl, ("cifar10",), {}, held_out=0.1),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return from_preset(arg, PRESETS)
