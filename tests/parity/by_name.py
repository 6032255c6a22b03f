"""Weights and images drawn from names and numbers alone, and outputs in a few numbers.

So neither weights nor outputs are kept: torch draws the same ones as the suite, and keeps digests.
"""

import zlib

import numpy as np

TOKENS = ("cls_token", "pos_embed", "class_token", "encoder.pos_embedding")


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """An array for each name, away from the values that networks start with."""
    return {name: _draw(name, shape) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        return rng.uniform(0.5, 1.5, shape)
    if len(shape) == 1:
        return 0.2 * rng.normal(size=shape)
    # Rows of kernels have length one on average: activations neither grow nor fade.
    return rng.normal(size=shape) / (1 if name in TOKENS else np.sqrt(np.prod(shape[1:])))


def images(size: int) -> np.ndarray:
    """Two of them, [2, size, size, 3]."""
    return np.random.default_rng(size).normal(size=(2, size, size, 3))


def digest(x: np.ndarray) -> np.ndarray:
    """Four weighted sums of all that an image gives, [B, ...] to [B, 4]; no value is left out."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    sums = np.random.default_rng(flat.shape[1]).normal(size=(flat.shape[1], 4))
    return flat @ sums / np.linalg.norm(sums, axis=0)


def as_text(shapes: dict[str, tuple[int, ...]]) -> np.ndarray:
    """Names and shapes as an array of strings, which `from_text` reads."""
    return np.array([f"{name} {','.join(map(str, shape))}" for name, shape in shapes.items()])


def from_text(lines: np.ndarray) -> dict[str, tuple[int, ...]]:
    """The inverse of `as_text`."""
    pairs = (str(line).split(" ") for line in lines)
    return {name: tuple(map(int, filter(None, shape.split(",")))) for name, shape in pairs}
