"""The generalised contrastive loss (arXiv:2011.02803): alignment and a prior to fill.

    python -m jaxssl.pretrain --workdir runs/hypersphere \
        --config configs/pretrain/generalized_contrastive.py:distribution=hypersphere

The rows of Table 1 are the argument ``distribution``:

logsumexp       normalised features, decoupled NT-Xent at temperature 1, lambda .1, times 1000
hypersphere     normalised features, sliced Wasserstein distance, lambda 5, times 1000
normal          features as they are, sliced Wasserstein distance, lambda 5
hypercube       features as they are, sliced Wasserstein distance, lambda 5
characteristic  features as they are, LeJEPA's sliced test (arXiv:2511.08544); its lambda .02 is
                2 * .02 / .98 here; not in the paper

Presets (preset=NAME; all but the first train on the whole split and watch the test split):

jaxssl (CIFAR-10, ResNet-18, batch 512, 200 epochs, 5,000 images held out for choices): the paper's
  optimizer and head with this library's views.
paper (CIFAR-10, ResNet-50, batch 128, 200 epochs): appendix A.1, LARS .2 sqrt(B), a head of two
  layers to 64, colour strength .5, no blur; decay 1e-4 and ten epochs of warm-up, which it does not
  say, are SimCLR's.
  No code is public for CIFAR-10; the loss is that of the authors' notebook
  generalized_contrastive_loss.ipynb.
  Published: curves alone; no values.
  Differs: torchvision's crop boxes and jitter.
lejepa (Imagenette, ViT-S/8, batch 256, 800 epochs, four views of 128 pixels): LeJEPA's own loss,
  .02 SIGReg and .98 invariance, of the authors' MINIMAL.md,
  python mnist.py +lamb=0.02 +V=4 +proj_dim=16 +lr=2e-3 +bs=256 +epochs=800
  AdamW 2e-3 to 1e-3 after an epoch from 2e-5, decay .05 on everything; head 2048-2048-16. Their
  lambda is hyper.weight and hyper.scale together, which follow the number of views.
  Published: 90.7 %, of a linear classifier that is trained online.
  Differs: batches straddle epochs (29,590 steps, there 28,800); no layer of 512 between encoder and
  head, no stochastic depth (there .1), float32 (there bfloat16); pictures are read at 256 pixels.

Cost: not yet measured on an accelerator.
Expected here: not yet measured.

Arguments: preset, dataset, batch, epochs, width (of a ViT: of a token), size (views, pixels),
policy (of the views), distribution, patch (of a ViT, pixels).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import (
    Preset,
    adamw_group,
    from_preset,
    head_group,
    lars_group,
    schedule,
    view_group,
    vit_group,
)
from configs.protocols import IMAGENET, normalized, warm_up
from jaxssl.augment.augmentation import lejepa, simclr_cifar
from jaxssl.errors import UserError, choose
from jaxssl.training.optim import DECAY_ALL

# Whether features are normalised, lambda, the factor of the whole.
ROWS = {
    "logsumexp": (True, 0.1, 1000.0),
    "hypersphere": (True, 5.0, 1000.0),
    "normal": (False, 5.0, 1.0),
    "hypercube": (False, 5.0, 1.0),
    "characteristic": (False, 2 * 0.02 / 0.98, 1.0),
}


def lejepa_numbers(share: float, views: Any) -> tuple[Any, Any]:
    """Weight and scale that make ``share`` SIGReg + (1 - share) invariance, LeJEPA's own loss.

    Of a number of views, or of a reference to one in a config.
    """
    scale = (1 - share) * (views - 1) / views
    return share / scale, scale


def generalized_group(distribution: str, normalize: bool, head: ConfigDict) -> ConfigDict:
    """The loss in the form of the authors' code; see `jaxssl.losses.generalized_contrastive`."""
    method = ConfigDict()
    method.name = "generalized_contrastive"
    method.distribution = distribution  # a key of ROWS
    method.normalize = normalize  # features onto the unit sphere
    method.halve_alignment = True  # squared differences divided by 2
    method.divide_by_dimension = True  # averaged over dimensions, not summed
    method.self_term = True  # j = i in the sum of "logsumexp"
    method.views_together = True  # all views' features fill the prior; else each view's do
    method.head = head
    return method


def _jaxssl(config: ConfigDict, given: ConfigDict) -> None:
    normalize, weight, scale = choose("method.distribution", given.distribution, ROWS)
    config.views = view_group(simclr_cifar(given.size))
    config.optimizer = lars_group()
    config.optimizer.scaling = "sqrt"
    warm_up(config, given)
    config.hyper.learning_rate.value = 0.2
    config.hyper.weight_decay = 1e-4
    config.hyper.weight = weight  # the paper's lambda
    config.hyper.temperature = 1.0  # of "logsumexp"
    config.hyper.scale = scale  # factor of the whole loss
    config.method = generalized_group(given.distribution, normalize, head_group(64))


def _paper(config: ConfigDict, given: ConfigDict) -> None:
    _jaxssl(config, given)
    config.encoder.name = "resnet50"
    config.encoder.shortcut = "projection_always"
    config.encoder.zero_init_residual = True
    config.encoder.kernel_init = "fan_in_truncated_normal"
    config.method.head.update(output_norm="bn_no_center", init="normal_0.01")


def _lejepa(config: ConfigDict, given: ConfigDict) -> None:
    if given.distribution != "characteristic":
        raise UserError(
            f"config argument distribution={given.distribution!r} is not LeJEPA's: leave it out, "
            "or choose another preset."
        )
    config.views = view_group(lejepa(given.size))
    # A reference, so that both numbers follow when the count is changed afterwards.
    count = config.views.global_crops.get_oneway_ref("count").to_float()
    normalized(config, IMAGENET)
    config.encoder = vit_group("small", given.size, given.patch)
    config.encoder.width = given.width
    config.optimizer = adamw_group()
    config.optimizer.groups = DECAY_ALL
    config.hyper.learning_rate = schedule(
        2e-3, end=1e-3, warmup_from=2e-5, warmup_epochs=min(1.0, given.epochs / 10)
    )
    config.hyper.weight_decay = 0.05
    config.hyper.weight, config.hyper.scale = lejepa_numbers(0.02, count)
    config.hyper.temperature = 1.0
    head = head_group(16, num_layers=3, hidden_dim=2048, hidden_bias=True, output_bias=True)
    config.method = generalized_group(given.distribution, False, head)
    config.method.views_together = False


LEJEPA = {"batch": 256, "epochs": 800.0, "size": 128, "width": 384, "patch": 8}
PRESETS = {
    "jaxssl": Preset(_jaxssl, ("cifar10",), {}, held_out=0.1),
    "paper": Preset(_paper, ("cifar10",), {"batch": 128}),
    "lejepa": Preset(
        _lejepa, ("imagenette/160px-v2",), {**LEJEPA, "distribution": "characteristic"}
    ),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return from_preset(arg, PRESETS, distribution="logsumexp", patch=8)
