"""DINO, SwAV and DeepCluster-v2 on given features, of views of two sizes."""

import jax
import jax.numpy as jnp
import numpy as np
from any_size import Mean
from flax import nnx
from ml_collections import ConfigDict

from configs.common import head_group
from jaxssl.augment.views import Views
from jaxssl.methods import METHODS, Keys, Method, Spec

DIM, BATCH = 6, 8
VIEWS, GLOBAL = 4, 2
EXAMPLES = 20
KEY = jax.random.key(0)


def method_of(name: str, dtype: str = "float64", *, head: dict | None = None, **settings) -> Method:
    """A method whose encoder is `Mean`, with a head 6-8-5."""
    config = ConfigDict({"name": name, "head": head_group(5, hidden_dim=8), **settings})
    config.head.update(head or {})
    spec = Spec(EXAMPLES, None, DIM, (2, 2), 10, 8)
    return METHODS[name](config, Mean(DIM, dtype), spec, nnx.Rngs(0))


def features_of(seed: int = 0, views: int = VIEWS) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(views, BATCH, DIM))


def views_of(features: np.ndarray, index: np.ndarray | None = None) -> Views:
    """Views whose pooled features are given: the first two of 2x2 pixels, the others of 1x1."""
    images = tuple(
        jnp.tile(jnp.asarray(view)[:, None, None], (1, side, side, 1))
        for view, side in zip(features, (2,) * GLOBAL + (1,) * VIEWS, strict=False)
    )
    zeros = jnp.zeros(BATCH, jnp.int32)
    return Views(
        images=images,
        boxes=(jnp.zeros((BATCH, 4), jnp.float32),) * len(images),
        flipped=(jnp.zeros(BATCH, bool),) * len(images),
        targets={},
        index=jnp.asarray(np.arange(BATCH) if index is None else index, jnp.int32),
        epoch=zeros,
        split=zeros,
    )


def keys_of() -> Keys:
    return Keys(jax.random.split(KEY, BATCH), KEY)


def embedded(method: Method, views: Views):
    """What a copy of a method embeds, in one program."""
    graph, state = nnx.split(method)
    embed = jax.jit(lambda state, views: nnx.merge(graph, state).embed(views, keys_of()))
    return embed(state, views)


def step(method: Method, features: np.ndarray, hyper: dict, index: np.ndarray | None = None):
    """Loss, gradient to the parameters, and the variables after it: one compilation a method."""
    graph, params, rest = nnx.split(method, nnx.Param, ...)
    views = views_of(features, index)

    def loss_of(params, rest, views, hyper):
        made = nnx.merge(graph, params, rest, copy=True)
        embeddings = made.embed(views, keys_of())
        loss, _ = made.objective(embeddings, views, KEY, hyper)
        return loss, (embeddings, nnx.split(made, nnx.Param, ...)[2])

    run = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    (loss, (embeddings, rest)), gradient = run(params, rest, views, hyper)
    nnx.update(method, rest)
    return float(loss), gradient, jax.tree.map(np.asarray, embeddings)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numbers(**values: float) -> dict:
    """Leaves of ``hyper`` at a step."""
    return {name: jnp.float32(value) for name, value in values.items()}


def entropy(scores: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    """Of each pair of a target and another view, one at a time."""
    pairs = [(g, v) for g in range(len(targets)) for v in range(len(scores)) if v != g]
    log_p = np.log(softmax(scores / temperature))
    return np.mean([-np.sum(targets[g] * log_p[v], axis=1) for g, v in pairs])


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
