"""Alignment and uniformity (arXiv:2005.10242) as the loss itself.

    python -m jaxssl.pretrain --config configs/pretrain/align_uniform.py --workdir runs/align
    python -m jaxssl.pretrain --config configs/pretrain/align_uniform.py:preset=paper \
        --workdir runs/align_stl10

Presets (preset=NAME; all but the first train on the whole split and watch the test split):

jaxssl (CIFAR-10, ResNet-18, batch 512, 200 epochs, 5,000 images held out for choices): simclr.py's
  views, optimizer, schedule and head; the paper's weights 1 and 1, alpha 2, t 2.
paper (STL-10, train and unlabelled images, batch 768, 200 epochs, views of 64 pixels): the authors'
  examples/stl10 of SsnL/align_uniform,
  python main.py
  Small AlexNet to fc7, its last layer as head, to 128; SGD .12 B/256, momentum .9, decay 1e-4,
  tenfold falls at epochs 155, 170 and 185; crops from .08, jitter always applied, no blur.
  Published: 83.19 % linear on fc7, which is the pooled layer here.
  Differs: batches straddle epochs (27,343 steps, there 27,400 with smaller last ones); our probe,
  there Adam on crops and flips.

Cost: not yet measured on an accelerator.
Expected here: not yet measured.

Arguments: preset, dataset, batch, epochs, width, size (views, pixels), policy (of the views).
"""

from ml_collections import ConfigDict

from configs.common import Preset, from_preset, head_group, small_alexnet_group
from configs.protocols import house, wang_isola


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


def _paper(config: ConfigDict, given: ConfigDict) -> None:
    wang_isola(config, given)
    config.encoder = small_alexnet_group(given.size)
    config.encoder.width = given.width
    _loss(config)
    _method(config, head_group(128, num_layers=1, output_bias=True, init="normal_0.02"))


PRESETS = {
    "jaxssl": Preset(_jaxssl, ("cifar10",), {}, held_out=0.1),
    "paper": Preset(_paper, ("stl10",), {"batch": 768, "size": 64, "width": 96}),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return from_preset(arg, PRESETS)
