"""The leaves of a state by the names under which a checkpoint holds them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxssl.errors import UserError
from jaxssl.storage import Path


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by the names under which they are saved, in the order of `jax.tree.leaves`."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in named:
            raise ValueError(f"Two leaves of the state are called {name}.")
        if isinstance(leaf, bool | int | float | np.generic):
            leaf = np.asarray(leaf, dtype=jnp.result_type(leaf))
        named[name] = leaf
    return named


def struct_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and place of a leaf; one without a place goes to the first local device."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def described(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Shapes and dtypes in words, ``float32[3,3,1,4]``, by name."""
    return {
        name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for name, leaf in leaves.items()
    }


def check_structure(
    folder: Path, wanted: Mapping[str, str], saved: Mapping[str, str], partial: bool
) -> None:
    """Raises UserError, with the first differences, unless a checkpoint holds what is wanted.

    Args:
      folder: of the checkpoint.
      wanted: what is to be read, as `described` has it.
      saved: what is there, likewise.
      partial: leaves that are there alone are no difference.
    """
    differences = [f"{name} is not in it" for name in wanted if name not in saved]
    if not partial:
        differences += [f"{name} is in it alone" for name in saved if name not in wanted]
    differences += [
        f"{name} is {saved[name]} in it and {form} here"
        for name, form in wanted.items()
        if name in saved and saved[name] != form
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"checkpoint {folder} holds another state than this config builds: "
            f"{'; '.join(differences[:3])}{more}; use the config it was saved with."
        )


@jax.jit
def _finite_flags(leaves: list[Array]) -> Bool[Array, " n"]:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


def not_finite(leaves: Mapping[str, Any]) -> str | None:
    """The name of the first leaf that holds a number which is not finite, or None if all are."""
    inexact = {
        name: leaf for name, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    if not inexact:
        return None
    finite = np.asarray(_finite_flags(list(inexact.values())))
    return None if finite.all() else list(inexact)[int(np.argmin(finite))]
