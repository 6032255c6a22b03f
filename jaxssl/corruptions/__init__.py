"""Interventions on a data set: pure functions in `ops`; `apply` draws for them and places them."""

from jaxssl.corruptions.ops import (
    CIFAR_C,
    CONSTANTS,
    CORRUPTIONS,
    IMAGENET_C,
    Corruption,
    Severities,
    defocus_blur,
    defocus_kernel,
    draw_permutation,
    draw_uniforms,
    gamma,
    global_shuffle,
    inverse,
    jpeg,
    local_shuffle,
    shot_noise,
)

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
    "inverse",
    "jpeg",
    "local_shuffle",
    "shot_noise",
]
