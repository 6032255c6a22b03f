"""Methods by name, and how one is built from a config. A new method is a file and a line here."""

from flax import nnx
from jaxtyping import Array, UInt
from ml_collections import ConfigDict

from jaxssl.extensions import look_up
from jaxssl.methods.align_uniform import AlignUniform
from jaxssl.methods.barlow_twins import BarlowTwins
from jaxssl.methods.byol import BYOL
from jaxssl.methods.deepcluster import DeepClusterV2
from jaxssl.methods.dense_contrastive import DenseAlignUniform, DenseContrastive
from jaxssl.methods.densecl import DenseCL
from jaxssl.methods.dino import DINO
from jaxssl.methods.generalized_contrastive import GeneralizedContrastive
from jaxssl.methods.mae import MAE
from jaxssl.methods.method import Keys, Method, Spec
from jaxssl.methods.moco import MoCo
from jaxssl.methods.moco_v3 import MoCoV3
from jaxssl.methods.simclr import SimCLR
from jaxssl.methods.simsiam import SimSiam
from jaxssl.methods.supcon import SupCon
from jaxssl.methods.supervised import Supervised
from jaxssl.methods.swav import SwAV
from jaxssl.methods.vae import VAE
from jaxssl.methods.vicreg import VICReg
from jaxssl.models import build_encoder
from jaxssl.randomness import Purpose, step_key
from jaxssl.ranges import check_ranges

METHODS: dict[str, type[Method]] = {
    "align_uniform": AlignUniform,
    "barlow_twins": BarlowTwins,
    "byol": BYOL,
    "deepcluster_v2": DeepClusterV2,
    "dense_align_uniform": DenseAlignUniform,
    "dense_contrastive": DenseContrastive,
    "densecl": DenseCL,
    "dino": DINO,
    "generalized_contrastive": GeneralizedContrastive,
    "mae": MAE,
    "moco_v2": MoCo,
    "moco_v3": MoCoV3,
    "simclr": SimCLR,
    "simsiam": SimSiam,
    "supcon": SupCon,
    "supervised": Supervised,
    "swav": SwAV,
    "vae": VAE,
    "vicreg": VICReg,
}


def method_class(name: str) -> type[Method]:
    """The method of a name: a key of `METHODS`, or ``package.module:Name``.

    Raises:
      UserError: if there is none.
    """
    return look_up(
        "method.name",
        name,
        METHODS,
        fits=lambda found: isinstance(found, type) and issubclass(found, Method),
        form="a subclass of jaxssl.methods.Method",
    )


def build_method(
    method: ConfigDict, encoder: ConfigDict, spec: Spec, init_seed: UInt[Array, ""] | int
) -> Method:
    """A method, freshly initialised; trace it under ``jax.jit``, it is slow eagerly.

    Args:
      method: the ``method`` group of a config.
      encoder: its ``encoder`` group.
      spec: what the data and the run are like.
      init_seed: seed of the initial weights; may be traced.

    Raises:
      UserError: if the method or the encoder is unknown or its settings do not fit.
    """
    rngs = nnx.Rngs(step_key(init_seed, Purpose.INIT, 0))
    kind = method_class(method.name)
    check_ranges("method", method, kind.SETTINGS)
    return kind(method, build_encoder(encoder, spec.channels, rngs), spec, rngs)


__all__ = ["METHODS", "Keys", "Method", "Spec", "build_method", "method_class"]
