"""DINO, SwAV and DeepCluster-v2 against lightly and PyTorch; see `clustering.py`."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crops import method_of, step
from flax import nnx
from support import tree_distance

from jaxssl.losses import sinkhorn_knopp

STORED = np.load(pathlib.Path(__file__).parent / "clustering.npz")


def stored(prefix: str) -> dict[str, np.ndarray]:
    start = f"{prefix}/"
    return {name.removeprefix(start): STORED[name] for name in STORED if name.startswith(start)}


def head_of(prefix: str, norm: bool) -> dict:
    """lightly's head in our names: dense layers at 0, 3, 6 of its Sequential, or 0, 2, 4."""
    found = stored(prefix)
    dense = sorted({int(n.split(".")[1]) for n in found if found[n].ndim == 2 and "layers" in n})
    norms = sorted({int(n.split(".")[1]) for n in found if "layers" in n} - set(dense))
    assert bool(norms) == norm

    def layer(number: int) -> dict:
        names = {"kernel": f"layers.{number}.weight", "bias": f"layers.{number}.bias"}
        return {ours: found[name].T for ours, name in names.items() if name in found}

    tree = {"hidden": dict(enumerate(map(layer, dense[:-1]))), "output": layer(dense[-1])}
    if norm:
        tree["hidden_norms"] = {
            number: {"scale": found[f"layers.{n}.weight"], "bias": found[f"layers.{n}.bias"]}
            for number, n in enumerate(norms)
        }
    return tree


def put(module, tree: dict) -> None:
    """Assigns a tree of arrays to the variables of a module, by name."""
    for name, value in tree.items():
        child = module[name] if isinstance(name, int) else getattr(module, name)
        if isinstance(value, dict):
            put(child, value)
        else:
            assert child.shape == value.shape
            child[...] = jnp.asarray(value)


def gradients(tree) -> dict:
    return jax.tree.map(np.asarray, nnx.to_pure_dict(tree))


@pytest.mark.parametrize("kind", ["plain", "bn"])
def test_dino_is_lightlys_for_two_steps_of_one_centre(kind):
    given, norm = stored(f"dino_{kind}"), kind == "bn"
    # Without BatchNorm every layer of lightly's head has a bias, with it the last one alone.
    head = {"num_layers": 3, "hidden_norm": norm, "hidden_bias": not norm, "output_bias": True}
    with jax.enable_x64(True):
        method = method_of("dino", head=head, num_prototypes=7)
        for whose, prefix in (("student", ""), ("teacher", "teacher_")):
            weights = stored(f"dino_{kind}/{whose}")
            put(getattr(method, f"{prefix}head"), head_of(f"dino_{kind}/{whose}", norm))
            put(
                getattr(method, f"{prefix}last_layer"), {"kernel": weights["last_layer.weight_v"].T}
            )
        hyper = {"student_temperature": 0.1, "teacher_temperature": 0.05, "center_momentum": 0.75}
        for number in range(2):
            loss, gradient, _ = step(method, given[f"features{number}"], hyper)
            assert loss == pytest.approx(float(given[f"loss{number}"]), rel=1e-9)
            np.testing.assert_allclose(
                method.center[...], given[f"center{number}"], rtol=1e-9, atol=1e-12
            )
            theirs = {
                "head": head_of(f"dino_{kind}/gradient{number}", norm),
                "last_layer": {
                    "kernel": given[f"gradient{number}/last_layer.weight_v"].T,
                },
            }
            assert tree_distance(gradients(gradient), theirs) < 1e-8


@pytest.mark.parametrize("kind", ["plain", "queue"])
def test_swav_is_lightlys_with_and_without_a_queue(kind):
    given = stored(f"swav_{kind}")
    size = given["queue"].shape[1] if kind == "queue" else 0
    with jax.enable_x64(True):
        method = method_of(
            "swav",
            head={"output_bias": True},
            num_prototypes=7,
            sinkhorn_iterations=3,
            queue_size=size,
        )
        put(method.head, head_of(f"swav_{kind}/head", norm=True))
        method.prototypes.kernel[...] = jnp.asarray(given["prototypes/weight"].T)
        for queue, rows in zip(method.queues, given["queue"], strict=False):
            queue.rows[...] = jnp.asarray(rows)
        hyper = {"temperature": 0.1, "epsilon": 0.05, "queue": 1.0}
        loss, gradient, embeddings = step(method, given["features"], hyper)
        assert loss == pytest.approx(float(given["loss"]), rel=1e-9)
        scores = jnp.asarray(embeddings["scores"][0])
        assignments = sinkhorn_knopp(scores, epsilon=0.05, iterations=3)
        np.testing.assert_allclose(assignments, given["assignments"], rtol=1e-9, atol=1e-15)
    theirs = {
        "head": head_of(f"swav_{kind}/gradient_head", norm=True),
        "prototypes": {"kernel": given["gradient_prototypes/weight"].T},
    }
    assert tree_distance(gradients(gradient), theirs) < 1e-8


def test_deepcluster_is_pytorchs_cross_entropy():
    given = stored("deepcluster")
    with jax.enable_x64(True):
        method = method_of(
            "deepcluster_v2",
            head={"output_bias": True},
            num_prototypes=7,
            num_clusterings=3,
            kmeans_iterations=1,
        )
        put(method.head, head_of("deepcluster/head", norm=True))
        method.centroids[...] = jnp.asarray(given["centroids"])
        labels = np.full(method.assignments.shape, -1, np.int32)
        index = np.arange(labels.shape[1])[::-1][: given["labels"].shape[1]]
        labels[:, index] = given["labels"]
        method.assignments[...] = jnp.asarray(labels)
        hyper = {"temperature": 0.1}
        loss, gradient, _ = step(method, given["features"], hyper, index)
    assert loss == pytest.approx(float(given["loss"]), rel=1e-9)
    theirs = {"head": head_of("deepcluster/gradient_head", norm=True)}
    assert tree_distance(gradients(gradient), theirs) < 1e-8
