"""jaxssl: find out what a self-supervised method relies on."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxssl.embed import FrozenEncoder

__version__ = "0.1.0"


def load(
    run: str | os.PathLike[str], step: int | None = None, layer: str = "pooled"
) -> "FrozenEncoder":
    """A trained layer as a function of images: ``load("runs/x").features(images)``.

    See `jaxssl.embed.load_encoder`.
    """
    # Here, so that importing the package imports no JAX.
    from jaxssl.embed import load_encoder

    return load_encoder(run, step, layer)
