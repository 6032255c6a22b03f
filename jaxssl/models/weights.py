"""Weights of torchvision's and timm's networks as those of our encoders: names, axes, shapes.

A table has one row a kind of array, and every array of either side must have its place in it: what
is left over, on one side or the other, is an error, for a network that was loaded in part runs and
gives wrong features. Reading files is the caller's: arrays come by the names they have there.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Shaped

from jaxssl.errors import UserError, choose
from jaxssl.words import counted

DENSE = (1, 0)  # [out, in] to [in, out]
CONVOLUTION = (2, 3, 1, 0)  # [out, in, h, w] to [h, w, in, out]


class Row(NamedTuple):
    r"""Where arrays of some names belong.

    Attributes:
      pattern: regular expression that must match a whole foreign name.
      path: ours, with the pattern's groups as ``\1``, ``\2`` ...; None: it is left out.
      transpose: order of the foreign axes in ours; None: as they are.
    """

    pattern: str
    path: str | None
    transpose: tuple[int, ...] | None = None


def _batch_norm(theirs: str, ours: str) -> list[Row]:
    return [
        Row(rf"{theirs}\.weight", f"{ours}/scale"),
        Row(rf"{theirs}\.bias", f"{ours}/bias"),
        Row(rf"{theirs}\.running_mean", f"{ours}/mean"),
        Row(rf"{theirs}\.running_var", f"{ours}/var"),
        Row(rf"{theirs}\.num_batches_tracked", None),
    ]


def _layer_norm(theirs: str, ours: str) -> list[Row]:
    return [Row(rf"{theirs}\.weight", f"{ours}/scale"), Row(rf"{theirs}\.bias", f"{ours}/bias")]


def _dense(theirs: str, ours: str) -> list[Row]:
    return [
        Row(rf"{theirs}\.weight", f"{ours}/kernel", DENSE),
        Row(rf"{theirs}\.bias", f"{ours}/bias"),
    ]


def _resnet() -> list[Row]:
    """Of `jaxssl.models.ResNet`; timm's names are torchvision's."""
    rows = [
        Row(r"conv1\.weight", "stem/conv/kernel", CONVOLUTION),
        *_batch_norm("bn1", "stem/norm"),
    ]
    for stage in range(4):
        block, here = rf"layer{stage + 1}\.(\d+)", rf"stages/{stage}/\1"
        for place in range(3):  # two in a basic block, three in a bottleneck
            layer = f"{here}/branch/{place}"
            theirs = rf"{block}\.conv{place + 1}\.weight"
            rows.append(Row(theirs, f"{layer}/conv/kernel", CONVOLUTION))
            rows += _batch_norm(rf"{block}\.bn{place + 1}", f"{layer}/norm")
        shortcut = f"{here}/shortcut"
        rows.append(Row(rf"{block}\.downsample\.0\.weight", f"{shortcut}/conv/kernel", CONVOLUTION))
        rows += _batch_norm(rf"{block}\.downsample\.1", f"{shortcut}/norm")
    return [*rows, Row(r"fc\.(weight|bias)", None)]


def _vit() -> list[Row]:
    """Of `jaxssl.models.ViT`: timm's names, then torchvision's."""
    theirs, ours = r"blocks\.(\d+)", r"blocks/\1"
    timm = [
        Row("cls_token", "class_token"),
        Row("pos_embed", "positions"),
        Row(r"patch_embed\.proj\.weight", "embedding/kernel", CONVOLUTION),
        Row(r"patch_embed\.proj\.bias", "embedding/bias"),
        *_layer_norm(rf"{theirs}\.norm1", f"{ours}/norm1"),
        *_dense(rf"{theirs}\.attn\.qkv", f"{ours}/attention/qkv"),
        *_dense(rf"{theirs}\.attn\.proj", f"{ours}/attention/output"),
        *_layer_norm(rf"{theirs}\.norm2", f"{ours}/norm2"),
        *_dense(rf"{theirs}\.mlp\.fc1", f"{ours}/hidden"),
        *_dense(rf"{theirs}\.mlp\.fc2", f"{ours}/output"),
        *_layer_norm("norm", "norm"),
        Row(r"head\.(weight|bias)", None),
    ]
    theirs = r"encoder\.layers\.encoder_layer_(\d+)"
    return [
        *timm,
        Row("class_token", "class_token"),
        Row(r"encoder\.pos_embedding", "positions"),
        Row(r"conv_proj\.weight", "embedding/kernel", CONVOLUTION),
        Row(r"conv_proj\.bias", "embedding/bias"),
        *_layer_norm(rf"{theirs}\.ln_1", f"{ours}/norm1"),
        Row(rf"{theirs}\.self_attention\.in_proj_weight", f"{ours}/attention/qkv/kernel", DENSE),
        Row(rf"{theirs}\.self_attention\.in_proj_bias", f"{ours}/attention/qkv/bias"),
        *_dense(rf"{theirs}\.self_attention\.out_proj", f"{ours}/attention/output"),
        *_layer_norm(rf"{theirs}\.ln_2", f"{ours}/norm2"),
        *_dense(rf"{theirs}\.mlp\.(?:0|linear_1)", f"{ours}/hidden"),
        *_dense(rf"{theirs}\.mlp\.(?:3|linear_2)", f"{ours}/output"),
        *_layer_norm(r"encoder\.ln", "norm"),
        Row(r"heads\.head\.(weight|bias)", None),
    ]


# Rows by backbone, in order: the first that matches a name governs it.
TABLES: dict[str, tuple[Row, ...]] = {"resnet": tuple(_resnet()), "vit": tuple(_vit())}


def with_weights(
    state: nnx.State, backbone: str, weights: Mapping[str, Shaped[np.ndarray, "..."]]
) -> nnx.State:
    """The state of an encoder with every array replaced by a foreign one.

    BatchNorm's running variances are taken as they are: PyTorch's are the unbiased ones, and a
    frozen network is evaluated with those it has. Classifiers are left out.

    Args:
      state: of the encoder, parameters and statistics, ``nnx.state(encoder)``, or its shapes.
      backbone: a key of `TABLES`.
      weights: by their names in torchvision's or timm's ``state_dict()``.

    Returns:
      A state of the same structure, shapes and dtypes; the one given is left as it is.

    Raises:
      UserError: for an unknown backbone, a name without a row, a place that is missing here, filled
        twice or of another shape, or an array here that no weight is for.
    """
    placed = _placed(choose("encoder.name", backbone, TABLES), weights)
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    shapes = {_path(path): leaf.shape for path, leaf in leaves}
    for path, (name, array) in placed.items():
        if path not in shapes:
            raise UserError(
                f"the weights' {name} belongs at {path}, which this encoder does not have: build "
                "the encoder with the settings of the weights."
            )
        if array.shape != shapes[path]:
            raise UserError(
                f"the weights' {name} makes {array.shape} of {path}, which is {shapes[path]} in "
                "this encoder: build the encoder with the settings of the weights."
            )
    missing = [path for path in shapes if path not in placed]
    if missing:
        raise UserError(
            f"no weight is for {counted(len(missing), 'array')} of this encoder, first of all "
            f"{missing[0]}: build the encoder with the settings of the weights, or give them all."
        )

    def replaced(path: tuple, leaf: Array | jax.ShapeDtypeStruct) -> Array:
        return jnp.asarray(placed[_path(path)][1], leaf.dtype)

    return jax.tree_util.tree_map_with_path(replaced, state)


def _placed(
    rows: Sequence[Row], weights: Mapping[str, np.ndarray]
) -> dict[str, tuple[str, np.ndarray]]:
    """By our path: the foreign name, and the array with its axes in our order."""
    placed: dict[str, tuple[str, np.ndarray]] = {}
    for name, array in weights.items():
        found = next(((row, m) for row in rows if (m := re.fullmatch(row.pattern, name))), None)
        if found is None:
            raise UserError(
                f"the weights' {name} has no row in the table of this backbone "
                "(jaxssl/models/weights.py): take it out of the weights, or add a row."
            )
        row, match = found
        if row.path is None:
            continue
        path = match.expand(row.path)
        if path in placed:
            raise UserError(
                f"the weights' {placed[path][0]} and {name} are both for {path}: leave one out."
            )
        turns = row.transpose is not None and array.ndim == len(row.transpose)
        placed[path] = name, array.transpose(row.transpose) if turns else array
    return placed


def _path(path: tuple) -> str:
    # Inside an `nnx.State` the array is the attribute `value` of its variable.
    if path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")
