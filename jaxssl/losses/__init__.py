"""The losses: arrays in, a scalar out; pure functions for any transformation and any mesh."""

from jaxssl.losses.characteristic import sliced_characteristic
from jaxssl.losses.clustering import (
    cross_view_entropy,
    dino,
    dino_center,
    prototype_cross_entropy,
    sinkhorn_knopp,
    swapped_prediction,
)
from jaxssl.losses.contrastive import (
    cross_view_nt_xent,
    decoupled_nt_xent,
    in_batch_info_nce,
    info_nce,
    nt_xent,
    supcon,
)
from jaxssl.losses.dense import cosine_match, dense_alignment, dense_info_nce, dense_uniformity
from jaxssl.losses.non_contrastive import barlow_twins, byol_regression, negative_cosine, vicreg
from jaxssl.losses.reconstruction import bernoulli_nll, gaussian_kl, masked_reconstruction
from jaxssl.losses.sliced_wasserstein import generalized_contrastive, sliced_wasserstein
from jaxssl.losses.transport import entropic_plan, exact_assignment
from jaxssl.losses.uniformity import (
    alignment,
    alignment_and_uniformity,
    queue_alignment_and_uniformity,
    queue_uniformity,
    uniformity,
)

__all__ = [
    "alignment",
    "alignment_and_uniformity",
    "barlow_twins",
    "bernoulli_nll",
    "byol_regression",
    "cosine_match",
    "cross_view_entropy",
    "cross_view_nt_xent",
    "decoupled_nt_xent",
    "dense_alignment",
    "dense_info_nce",
    "dense_uniformity",
    "dino",
    "dino_center",
    "entropic_plan",
    "exact_assignment",
    "gaussian_kl",
    "generalized_contrastive",
    "in_batch_info_nce",
    "info_nce",
    "masked_reconstruction",
    "negative_cosine",
    "nt_xent",
    "prototype_cross_entropy",
    "queue_alignment_and_uniformity",
    "queue_uniformity",
    "sinkhorn_knopp",
    "sliced_characteristic",
    "sliced_wasserstein",
    "supcon",
    "swapped_prediction",
    "uniformity",
    "vicreg",
]
