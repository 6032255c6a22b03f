"""Methods of maps, priors and pixels, on given features or small nets, against PyTorch.

The numbers are those that `maps_and_pixels.py` wrote; see there.
"""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from on_features import keys_of, method_of, small_head, views_of
from test_methods_parity import BATCH, LABELS, as_ours, close

from configs.common import convn_group, vit_group
from configs.pretrain.dense_contrastive import OBJECTIVES
from configs.pretrain.generalized_contrastive import generalized_group
from configs.pretrain.mae import mae_group
from configs.pretrain.vae import vae_group
from jaxssl.augment.views import Views
from jaxssl.methods import METHODS, Spec, build_method, mae, vae
from jaxssl.models import Features, weights
from jaxssl.models.weights import CONVOLUTION, DENSE, Row, with_weights

SLICED = importlib.import_module("jaxssl.losses.sliced_wasserstein")  # not its function
STORED = np.load(pathlib.Path(__file__).parent / "maps_and_pixels.npz")
IN, OUT, CELLS = 6, 4, 4
TOLERANCE = 1e-11
PLAIN = {"hidden_norm": False, "hidden_bias": True, "output_bias": True}
HEADS = {name: small_head(OUT, **PLAIN) for name in ("head", "dense_head")}


def stored(case):
    start = f"{case}/"
    return {n.removeprefix(start): STORED[n] for n in STORED.files if n.startswith(start)}


class GivenMaps(nnx.Module):
    """An encoder that hands its images [B, h, w, D] on as its only map."""

    def __init__(self):
        self.feature_dim, self.stage_dims, self.dtype = IN, (IN,), "float64"

    def __call__(self, x, train, views=1):
        return Features((x,), x.mean((1, 2)))


def loss_and_slopes(method, images, hyper):
    """The loss, its gradient to the parameters and to the images, in one compilation."""
    graph, params, rest = nnx.split(method, nnx.Param, ...)
    keys = keys_of(BATCH)
    numbers = {name: jnp.float64(value) for name, value in hyper.items()}

    def loss_of(params, images):
        made = nnx.merge(graph, params, rest, copy=True)
        whole = views_of([image.reshape(BATCH, -1) for image in images], LABELS)
        views = Views(**{**vars(whole), "images": images})
        embeddings = made.embed(views, keys)
        return made.objective(embeddings, views, keys.step, numbers)[0]

    return jax.jit(jax.value_and_grad(loss_of, (0, 1)))(params, tuple(map(jnp.asarray, images)))


def put(method, given):
    """Assigns arrays by path."""
    flat = dict(nnx.to_flat_state(nnx.state(method)))
    for path, array in given.items():
        assert flat[path][...].shape == array.shape, path
        flat[path][...] = jnp.asarray(array)
    nnx.update(method, nnx.from_flat_state(flat))


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def info_nce(**changes):
    group = OBJECTIVES["info_nce"](ConfigDict())
    group.update(changes)
    return {**group.to_dict(), **HEADS}, {"temperature": 0.3, "dense_weight": 0.25}


def generalized(distribution, normalize):
    return generalized_group(distribution, normalize, small_head(OUT, output_norm="bn")).to_dict()


# case -> the method's config and its numbers.
ON_MAPS = {
    "dense_contrastive_index": info_nce(),
    "dense_contrastive_cosine": info_nce(matching="cosine"),
    "dense_align_uniform": (
        {**OBJECTIVES["align_uniform"](ConfigDict()).to_dict(), **HEADS},
        {"alignment_weight": 0.7, "uniformity_weight": 1.3, "t": 1.5, "dense_weight": 0.25},
    ),
    "densecl": (
        {"name": "densecl", "queue_size": 16, "shuffle": False, **HEADS},
        {"temperature": 0.3, "dense_weight": 0.25},
    ),
}
ON_FEATURES = {
    "generalized_logsumexp": (
        generalized("logsumexp", True),
        {"weight": 0.1, "temperature": 0.8, "scale": 1000.0},
    ),
    "generalized_normal": (
        generalized("normal", False),
        {"weight": 5.0, "temperature": 1.0, "scale": 1.0},
    ),
    "supervised": ({"name": "supervised"}, {}),
}
NETWORKS = ("head", "dense_head", "teacher_head", "teacher_dense_head")


def compared(ours, theirs):
    """Every gradient of one side against the other's."""
    ours = dict(nnx.to_flat_state(ours))
    assert set(ours) == set(theirs)
    for path, slope in ours.items():
        close(slope[...], theirs[path], TOLERANCE)


def in_our_names(arrays):
    """Weights or gradients of heads and classifier, by our paths."""
    found = {}
    for network in NETWORKS:
        found |= as_ours(arrays, network)
    if "classifier/weight" in arrays:
        found["classifier", "kernel"] = arrays["classifier/weight"].T
        found["classifier", "bias"] = arrays["classifier/bias"]
    return found


@pytest.mark.parametrize("case", [*ON_MAPS, *ON_FEATURES])
def test_loss_and_gradient_of_heads(case, monkeypatch):
    arrays = stored(case)
    config, hyper = (ON_MAPS | ON_FEATURES)[case]
    shape = (BATCH, 2, 2, IN) if case in ON_MAPS else (BATCH, 1, 1, IN)
    with jax.enable_x64(True):
        if case == "generalized_normal":
            drawn = {"orthonormal_directions": "basis", "draw_prior": "sample"}
            for function, name in drawn.items():
                constant = jnp.asarray(arrays[name])
                monkeypatch.setattr(SLICED, function, lambda *_, c=constant: c)
        if case in ON_MAPS:
            spec = Spec(64, 4, IN, (2, 2), 10, 8)
            kind = METHODS[config["name"]]
            method = kind(ConfigDict(config), GivenMaps(), spec, nnx.Rngs(0))
        else:
            method = method_of(config, IN, "float64")
        given = in_our_names(arrays)
        for queue in ("queue", "dense_queue"):
            if queue in arrays:
                given[queue, "rows"] = unit(arrays[queue])
        put(method, given)
        images = [arrays[f"x{number}"].reshape(shape) for number in (1, 2)]
        loss, (slopes, inputs) = loss_and_slopes(method, images, hyper)
    np.testing.assert_allclose(loss, arrays["loss"], rtol=TOLERANCE)
    theirs = {
        name.removeprefix("gradient/"): array
        for name, array in arrays.items()
        if name.startswith("gradient/")
    }
    for number, slope in enumerate(inputs, 1):
        close(slope, theirs[f"x{number}"].reshape(shape), TOLERANCE)
    compared(slopes, in_our_names(theirs))


# --- whole networks -------------------------------------------------------------------------------


def under(prefix, rows):
    """The rows that have a place, of the names and paths below a prefix."""
    return [
        Row(f"{prefix}/{row.pattern}", f"{prefix}/{row.path}", row.transpose)
        for row in rows
        if row.path is not None
    ]


def dense(name, path):
    return [Row(rf"{name}\.weight", f"{path}/kernel", DENSE), Row(rf"{name}\.bias", f"{path}/bias")]


def norm(name, path):
    return [Row(rf"{name}\.weight", f"{path}/scale"), Row(rf"{name}\.bias", f"{path}/bias")]


BLOCK = r"decoder_blocks\.(\d+)"
MAE_ROWS = [
    *under("encoder", weights.TABLES["vit"]),
    *under(
        "decoder",
        [
            Row("mask_token", "mask_token"),
            *dense("decoder_embed", "embedding"),
            *dense("decoder_pred", "output"),
            *norm("decoder_norm", "norm"),
            *norm(rf"{BLOCK}\.norm1", r"blocks/\1/norm1"),
            *norm(rf"{BLOCK}\.norm2", r"blocks/\1/norm2"),
            *dense(rf"{BLOCK}\.attn\.qkv", r"blocks/\1/attention/qkv"),
            *dense(rf"{BLOCK}\.attn\.proj", r"blocks/\1/attention/output"),
            *dense(rf"{BLOCK}\.mlp\.fc1", r"blocks/\1/hidden"),
            *dense(rf"{BLOCK}\.mlp\.fc2", r"blocks/\1/output"),
        ],
    ),
]
VAE_ROWS = [
    Row(r"encoder/convs\.(\d)\.weight", r"encoder/convs/\1/conv/kernel", CONVOLUTION),
    *norm(r"encoder/norms\.(\d)", r"encoder/convs/\1/norm"),
    *under("encoder", [*dense("dense", "dense"), *norm("norm", "norm")]),
    *(
        Row(f"{name}/{theirs}", f"{name}/{ours}", turns)
        for name in ("mean", "log_variance")
        for theirs, ours, turns in (("weight", "kernel", DENSE), ("bias", "bias", None))
    ),
    *under("decoder", [*dense("dense", "dense"), *norm(r"norms\.(\d)", r"norms/\1")]),
    # A transposed convolution's are [in, out, h, w].
    Row(r"decoder/convs\.(\d)\.weight", r"decoder/convs/\1/kernel", (2, 3, 0, 1)),
    Row(r"decoder/convs\.(\d)\.bias", r"decoder/convs/\1/bias"),
]
DRAWN = ("images", "noise", "order", "loss")


def mirrored(arrays):
    """Ours correlate where PyTorch's transposed convolutions convolve."""
    return {
        name: array[:, :, ::-1, ::-1] if "decoder/convs" in name and array.ndim == 4 else array
        for name, array in arrays.items()
    }


def vae_config():
    encoder = convn_group(16, 2)
    encoder.dtype = "float64"
    method = vae_group(16)
    method.latent_dim = 3
    return method, encoder, {"beta": 0.7}


def mae_config():
    encoder = vit_group("nano", 12, 4)
    encoder.update(width=8, depth=2, heads=2, stages=(2,), dtype="float64")
    method = mae_group(width=8, depth=1, heads=2)
    method.mask_ratio = 0.5
    return method, encoder, {}


@pytest.mark.parametrize(
    ("case", "groups", "rows"), [("mae", mae_config, MAE_ROWS), ("vae", vae_config, VAE_ROWS)]
)
def test_loss_and_gradient_of_networks_of_pixels(case, groups, rows, monkeypatch):
    arrays = mirrored(stored(case))
    monkeypatch.setitem(weights.TABLES, "rows", tuple(rows))
    method, encoder, hyper = groups()
    with jax.enable_x64(True):
        if case == "mae":
            order = jnp.asarray(arrays["order"])
            monkeypatch.setattr(mae, "random_order", lambda *_: order)
        else:
            noise = jnp.asarray(arrays["noise"])
            monkeypatch.setattr(vae, "standard_noise", lambda *_: noise)
        images = arrays["images"].transpose(0, 2, 3, 1)
        spec = Spec(64, 4, 2, images.shape[1:3], 10, 8)
        made = nnx.eval_shape(lambda: build_method(method, encoder, spec, 0))
        graph, params, rest = nnx.split(made, nnx.Param, ...)
        rest = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), rest)  # running statistics
        given = {
            name: array
            for name, array in arrays.items()
            if name not in DRAWN and not name.startswith("gradient/")
        }
        made = nnx.merge(graph, with_weights(params, "rows", given), rest)
        loss, (slopes, _) = loss_and_slopes(made, [images], hyper)
        theirs = {name: arrays[f"gradient/{name}"] for name in given}
        expected = dict(nnx.to_flat_state(with_weights(params, "rows", theirs)))
    np.testing.assert_allclose(loss, arrays["loss"], rtol=TOLERANCE)
    compared(slopes, {path: leaf[...] for path, leaf in expected.items()})
