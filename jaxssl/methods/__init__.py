"""Methods by name, and how one is built from a config. A new method is a file and a line here."""

from flax import nnx
from jaxtyping import Array, UInt
from ml_collections import ConfigDict

from jaxssl.errors import choose
from jaxssl.methods.method import Method, Spec
from jaxssl.methods.moco import MoCo
from jaxssl.methods.simclr import SimCLR
from jaxssl.methods.supervised import Supervised
from jaxssl.models import build_encoder
from jaxssl.randomness import Purpose, step_key

METHODS: dict[str, type[Method]] = {
    "moco_v2": MoCo,
    "simclr": SimCLR,
    "supervised": Supervised,
}


def build_method(config: ConfigDict, spec: Spec, init_seed: UInt[Array, ""] | int) -> Method:
    """The method of a config, freshly initialised; trace it under ``jax.jit``, it is slow eagerly.

    Args:
      config: the whole config; reads ``method`` and ``encoder``.
      spec: what the data and the run are like.
      init_seed: seed of the initial weights; may be traced.

    Raises:
      UserError: if the method or the encoder is unknown or its settings do not fit.
    """
    rngs = nnx.Rngs(step_key(init_seed, Purpose.INIT, 0))
    encoder = build_encoder(config.encoder, spec.channels, rngs)
    method = choose("method.name", config.method.name, METHODS)
    return method(config.method, encoder, spec, rngs)


__all__ = ["METHODS", "Method", "Spec", "build_method"]
