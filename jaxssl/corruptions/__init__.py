"""Interventions on a data set: pure functions by kind, named in `ops`; `apply` draws and places."""

from jaxssl.corruptions.draws import draw_permutation, draw_uniforms
from jaxssl.corruptions.imagenet_c import (
    CIFAR_C,
    CONSTANTS,
    IMAGENET_C,
    Severities,
    defocus_blur,
    defocus_kernel,
    jpeg,
    shot_noise,
)
from jaxssl.corruptions.ops import CORRUPTIONS, Corruption
from jaxssl.corruptions.shuffles import global_shuffle, inverse, local_shuffle
from jaxssl.corruptions.tones import gamma, grayscale

__all__ = [
    "CIFAR_C",
    "CONSTANTS",
    "CORRUPTIONS",
    "IMAGENET_C",
    "Corruption",
    "Severities",
    "defocus_blur",
    "defocus_kernel",
    "draw_permutation",
    "draw_uniforms",
    "gamma",
    "global_shuffle",
    "grayscale",
    "inverse",
    "jpeg",
    "local_shuffle",
    "shot_noise",
]
