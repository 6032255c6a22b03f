"""Dense contrastive learning (Moon, Kim and Choi, BMVC 2022, no arXiv number), ResNet-18.

    python -m jaxssl.pretrain --config configs/pretrain/dense_contrastive.py --workdir runs/dense
    python -m jaxssl.pretrain --config configs/pretrain/dense_contrastive.py:preset=paper \
        --workdir runs/dense_stl10

The paper trains 320 models over temperatures and weights that it does not print. A dense model has
--config.hyper.dense_weight=1, an instance model 0. objective=align_uniform is w_a L_a + w_u L_u.
Heads are DenseCL's (arXiv:2011.09157), 512-512-128; the paper does not say.

Presets (preset=NAME; all but the first train on the whole split and watch the test split):

jaxssl (CIFAR-10, batch 512, 200 epochs, 5,000 images held out for choices): simclr.py's views,
  optimizer and schedule; maps of 4x4 cells.
paper (STL-10, train and unlabelled images, batch 768, 200 epochs, views of 64 pixels): no code is
  public. align_uniform.py's preset of arXiv:2005.10242, whose settings the paper says it takes; the
  stem of ImageNet, maps of 2x2 cells.
  Published: linear accuracy of up to 76.16 % (instance) and 75.45 % (dense), of a random network
  28.04 %.
  Differs: batches straddle epochs (27,343 steps, there 27,400 if it keeps small ones); the paper
  says 103 thousand images, the split has 105.
paper_coco (COCO, batch 256, 200 epochs, views of 224 pixels): no code is public. DenseCL's, SGD .3
  B/256, momentum .9, decay 1e-4, cosine by epoch, MoCo-v2's views.
  Published: linear accuracy on STL-10 of up to 67.99 % (instance) and 60.19 % (dense).
  Differs: crops are drawn from pictures of at most 448 pixels.

Cost: not yet measured on an accelerator.
Expected here: not yet measured.

Arguments: preset, dataset, batch, epochs, width, size (views, pixels), policy (of the views),
objective (info_nce, align_uniform).
"""

from ml_collections import ConfigDict

from configs.common import Preset, from_preset, head_group, view_group
from configs.protocols import IMAGENET, house, normalized, wang_isola
from jaxssl.augment.augmentation import moco_v2
from jaxssl.errors import UserError


def plain_heads(method: ConfigDict) -> None:
    """An instance and a dense head: two layers with biases, no BatchNorm, to 128."""
    for name in ("head", "dense_head"):
        method[name] = head_group(128, hidden_norm=False, hidden_bias=True, output_bias=True)


def _info_nce(hyper: ConfigDict) -> ConfigDict:
    hyper.temperature = 0.2  # of the cosine similarities
    method = ConfigDict({"name": "dense_contrastive"})
    method.matching = "index"  # of cells: or "cosine", "set"
    method.plan = "entropic"  # of "set": transport by Sinkhorn, or "exact"
    method.plan_epsilon = 0.05  # regularisation of the entropic plan, in cosines
    method.plan_iterations = 50  # rounds of Sinkhorn
    method.negatives = "both_views"  # cells of other images in both views, or "other_view"
    method.positive_in_denominator = True
    return method


def _align_uniform(hyper: ConfigDict) -> ConfigDict:
    hyper.alignment_weight = 1.0  # of L_a, minus the mean cosine of matching cells
    hyper.uniformity_weight = 1.0  # of L_u
    hyper.t = 2.0  # inverse width of the Gaussian potential; the paper prints 1
    method = ConfigDict({"name": "dense_align_uniform"})
    method.pairs = "same_index"  # cells of other images that repel one, or "all_cells"
    return method


OBJECTIVES = {"info_nce": _info_nce, "align_uniform": _align_uniform}


def _method(config: ConfigDict, given: ConfigDict) -> None:
    if given.objective not in OBJECTIVES:
        raise UserError(
            f"config argument objective={given.objective!r} is unknown: choose one of "
            f"{', '.join(OBJECTIVES)}."
        )
    config.method = OBJECTIVES[given.objective](config.hyper)
    config.hyper.dense_weight = 1.0  # share of the dense loss; the rest is the instance loss's
    plain_heads(config.method)


def _jaxssl(config: ConfigDict, given: ConfigDict) -> None:
    house(config, given)
    _method(config, given)


def _paper(config: ConfigDict, given: ConfigDict) -> None:
    wang_isola(config, given)
    config.encoder.stem = "imagenet"
    _method(config, given)


def _paper_coco(config: ConfigDict, given: ConfigDict) -> None:
    config.views = view_group(moco_v2(given.size))
    normalized(config, IMAGENET)
    config.encoder.stem = "imagenet"
    config.optimizer.scaling = "linear"
    config.hyper.learning_rate.update(value=0.3, granularity="epoch")  # at 256
    config.hyper.weight_decay = 1e-4
    config.evals.knn.every = 0.0  # there is no label
    _method(config, given)


PRESETS = {
    "jaxssl": Preset(_jaxssl, ("cifar10",), {}, held_out=0.1),
    "paper": Preset(_paper, ("stl10",), {"batch": 768, "size": 64}),
    "paper_coco": Preset(_paper_coco, ("coco/2017",), {"batch": 256, "size": 224}),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return from_preset(arg, PRESETS, objective="info_nce")
