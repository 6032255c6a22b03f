"""The losses: arrays in, a scalar out; pure functions for any transformation and any mesh."""

from jaxssl.losses.contrastive import info_nce, nt_xent, supcon
from jaxssl.losses.non_contrastive import byol_regression, negative_cosine

__all__ = ["byol_regression", "info_nce", "negative_cosine", "nt_xent", "supcon"]
