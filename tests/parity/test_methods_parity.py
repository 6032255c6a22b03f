"""Each method, on features instead of an encoder, against lightly's loss on lightly's heads.

The numbers are those that `methods.py` wrote; see there.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from on_features import keys_of, method_of, small_head, views_of

from configs.pretrain.generalized_contrastive import generalized_group, lejepa_numbers
from jaxssl.losses import characteristic

STORED = np.load(pathlib.Path(__file__).parent / "methods.npz")
BATCH, IN, OUT = 8, 6, 4
LABELS = (0, 1, 0, 2, 1, 0, 3, 2)


def head(**settings):
    return small_head(OUT, **settings)


PLAIN = {"hidden_norm": False, "hidden_bias": True, "output_bias": True}
LAST_BIAS = {"output_bias": True}
THREE = {"num_layers": 3, **LAST_BIAS}


def lejepa():
    """Its own loss as a setting of the generalised one; see `jaxssl.losses`."""
    group = generalized_group("characteristic", False, head(output_norm="bn"))
    group.views_together = False
    weight, scale = lejepa_numbers(0.02, views=4)
    return group.to_dict(), {"weight": weight, "scale": scale, "temperature": 1.0}


# name -> the method's config, and its numbers.
CASES = {
    "simclr": ({"head": head(output_norm="bn")}, {"temperature": 0.2}),
    "moco_v2": (
        {"head": head(**PLAIN), "queue_size": 16, "symmetric": False, "shuffle": False},
        {"temperature": 0.1},
    ),
    "supcon": ({"head": head(**PLAIN), "positives": "outside"}, {"temperature": 0.1}),
    "align_uniform": (
        {"head": head(output_norm="bn")},
        {"alignment_weight": 1.0, "uniformity_weight": 1.0, "alpha": 2.0, "t": 2.0},
    ),
    "lejepa": lejepa(),
    "moco_v3": (
        {"head": head(num_layers=3, output_norm="bn"), "predictor": head(**LAST_BIAS)},
        {"temperature": 0.2},
    ),
    "byol": ({"head": head(**LAST_BIAS), "predictor": head(**LAST_BIAS)}, {}),
    "simsiam": (
        {"head": head(num_layers=3, output_norm="bn_no_affine"), "predictor": head(**LAST_BIAS)},
        {"margin": 0.0, "distance_margin": 0.0},
    ),
    "barlow_twins": ({"head": head(**THREE)}, {"off_diagonal_weight": 0.0051, "scale": 1.0}),
    "vicreg": (
        {"head": head(**THREE)},
        {"invariance_weight": 25.0, "variance_weight": 25.0, "covariance_weight": 1.0},
    ),
}


def stored(case):
    return {
        name.removeprefix(f"{case}/"): STORED[name]
        for name in STORED.files
        if name.startswith(f"{case}/")
    }


def as_ours(arrays, network):
    """lightly's layers of a network by our paths: ("head", "hidden", 0, "kernel") and so on."""
    prefix = f"{network}/layers."
    layers = {}
    for name, array in arrays.items():
        if name.startswith(prefix):
            number, kind = name.removeprefix(prefix).split(".")
            layers.setdefault(int(number), {})[kind] = array
    found = {}
    dense = [number for number, layer in sorted(layers.items()) if layer["weight"].ndim == 2]
    for place, number in enumerate(dense):
        last = number == dense[-1]
        linear = ("output",) if last else ("hidden", place)
        norm = ("output_norm",) if last else ("hidden_norms", place)
        found[network, *linear, "kernel"] = layers[number]["weight"].T
        if "bias" in layers[number]:
            found[network, *linear, "bias"] = layers[number]["bias"]
        follower = layers.get(number + 1, {})
        if follower and follower["weight"].ndim == 1:
            found[network, *norm, "scale"] = follower["weight"]
            found[network, *norm, "bias"] = follower["bias"]
    return found


def made(case, arrays):
    """The method with lightly's weights, in float64, and its numbers."""
    settings, hyper = CASES[case]
    method = method_of({"name": case, **settings}, IN, "float64")
    given = {}
    for network in ("head", "predictor", "teacher_head"):
        given |= as_ours(arrays, network)
    if "queue" in arrays:
        queue = arrays["queue"]
        given["queue", "rows"] = queue / np.linalg.norm(queue, axis=1, keepdims=True)
    _, state = nnx.split(method)
    flat = dict(nnx.to_flat_state(state))
    for path, array in given.items():
        assert flat[path][...].shape == array.shape, path
        flat[path][...] = jnp.asarray(array)
        assert flat[path][...].dtype == np.float64
    nnx.update(method, nnx.from_flat_state(flat))
    return method, hyper


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_the_other_library(case, monkeypatch):
    arrays = stored(case)
    # lightly keeps its knots and weights in float32.
    tolerance = 1e-6 if case == "lejepa" else 1e-11
    with jax.enable_x64(True):
        if case == "lejepa":
            directions = arrays["directions"] / np.linalg.norm(arrays["directions"], axis=0)
            monkeypatch.setattr(characteristic, "unit_directions", lambda *_: directions)
        method, hyper = made(case, arrays)
        graph, params, rest = nnx.split(method, nnx.Param, ...)
        features = [jnp.asarray(arrays[f"x{n}"]) for n in range(1, 5) if f"x{n}" in arrays]
        keys = keys_of(BATCH)

        def loss_of(params, features):
            method = nnx.merge(graph, params, rest, copy=True)
            views = views_of(features, LABELS)
            embeddings = method.embed(views, keys)
            numbers = {name: jnp.float64(value) for name, value in hyper.items()}
            return method.objective(embeddings, views, keys.step, numbers)[0]

        loss, (slopes, inputs) = jax.jit(jax.value_and_grad(loss_of, (0, 1)))(params, features)
    np.testing.assert_allclose(loss, arrays["loss"], rtol=tolerance)
    for number, slope in enumerate(inputs, 1):
        close(slope, arrays[f"gradient/x{number}"], tolerance)
    gradients = {
        name.removeprefix("gradient/"): array
        for name, array in arrays.items()
        if name.startswith("gradient/")
    }
    theirs = as_ours(gradients, "head") | as_ours(gradients, "predictor")
    ours = dict(nnx.to_flat_state(slopes))
    assert set(ours) == set(theirs)
    for path, slope in ours.items():
        close(slope[...], theirs[path], tolerance)


def close(ours, theirs, tolerance):
    """To the rounding of the largest entry: some are zero but for rounding."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(1, np.abs(theirs).max()))
