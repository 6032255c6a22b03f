"""Every batch-coupled loss on one device and on shards: the cases and the ways to run them."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from quick_compilation import quick

from jaxssl import losses

# XLA's CPU devices may come to a collective inside a loop and to another that does not depend on it
# in different orders, and then wait for one another for good: no program holds both.
ALONE = ("sinkhorn",)

BATCH, FEATURES, CELLS, CLASSES = 16, 6, 3, 4


def make_batch(dtype):
    """Inputs and labels whose shards differ in scale and mean."""
    rng = np.random.default_rng(0)
    level = np.linspace(-1.5, 1.5, BATCH)[:, None]
    views = [rng.normal(size=(BATCH, FEATURES)) * (1 + level**2) + level for _ in range(2)]
    return {
        "x1": jnp.asarray(views[0], dtype),
        "x2": jnp.asarray(0.5 * views[0] + views[1], dtype),
        "labels": jnp.asarray(rng.integers(0, 5, BATCH)),
        "mask": jnp.asarray(rng.random((BATCH, CELLS)) < np.linspace(0.1, 0.9, BATCH)[:, None]),
    }


def make_parameters(dtype):
    rng = np.random.default_rng(1)
    return {
        "w": jnp.asarray(rng.normal(size=(FEATURES, CELLS * CLASSES)), dtype),
        "b": jnp.asarray(rng.normal(size=CELLS * CLASSES), dtype),
        "queue": jnp.asarray(rng.normal(size=(7, CELLS * CLASSES)), dtype),
    }


def _maps(z):
    return z.reshape(-1, CELLS, CLASSES)


def _sinkhorn(z1, z2, axis_name):
    # The assignments carry no gradient, so they weigh something that does.
    assign = partial(losses.sinkhorn_knopp, epsilon=0.3, iterations=4, axis_name=axis_name)
    first = assign(0.1 * z1)
    second = assign(0.1 * z2 + 0 * jnp.sum(first))  # after the first: see ALONE
    loss = losses.swapped_prediction(z1, z2, first, second, temperature=0.7)
    return loss if axis_name is None else jax.lax.pmean(loss, axis_name)


def cases(block_size: int | None) -> dict[str, Callable]:
    """name -> loss(parameters, z1, z2, batch, axis_name), blockwise where a size is given."""
    key = jax.random.key(3)
    tiles = {"block_size": block_size}
    pairs = {
        "nt_xent": partial(losses.nt_xent, temperature=0.2, **tiles),
        "decoupled": partial(losses.decoupled_nt_xent, temperature=0.5, weight=0.3, **tiles),
        "cross_view": partial(losses.cross_view_nt_xent, temperature=0.2, **tiles),
        "generalized": partial(
            losses.generalized_contrastive,
            key=key,
            distribution="logsumexp",
            weight=0.3,
            temperature=0.5,
            scale=3.0,
            **tiles,
        ),
        "align_uniform": partial(
            losses.alignment_and_uniformity, alignment_weight=0.5, uniformity_weight=2.0, **tiles
        ),
    }
    chosen = {name: _on_pair(loss) for name, loss in pairs.items()}
    for form in ("outside", "inside"):
        supcon = partial(losses.supcon, temperature=0.3, positives=form, **tiles)
        chosen[f"supcon_{form}"] = _with_labels(supcon)
    for options in (
        {},
        {"matching": "cosine", "negatives": "other_view"},
        {"matching": "set", "positive_in_denominator": False},
        {"matching": "set", "plan": "exact"},
    ):
        dense = partial(losses.dense_info_nce, temperature=0.4, **options, **tiles)
        name = "_".join(str(option) for option in options.values())
        chosen[f"dense_{name or 'index'}"] = _on_maps(dense)
    for choice in ("same_index", "all_cells"):
        dense = partial(losses.dense_uniformity, pairs=choice, **tiles)
        chosen[f"dense_uniformity_{choice}"] = _on_maps(dense)
    chosen["queue"] = partial(_queue, **tiles)
    if block_size is None:
        chosen |= _without_tiles(key)
    return chosen


def _without_tiles(key) -> dict[str, Callable]:
    swd = {
        f"swd_{prior}": partial(losses.generalized_contrastive, key=key, distribution=prior)
        for prior in ("normal", "hypersphere")
    }
    chosen = {name: _on_pair(partial(loss, weight=2.0)) for name, loss in swd.items()}
    chosen["swd_few"] = _few_projections
    chosen["lejepa"] = _lejepa
    chosen["barlow"] = _on_pair(partial(losses.barlow_twins, off_diagonal_weight=0.1))
    weights = {"invariance_weight": 0.5, "variance_weight": 2.0, "covariance_weight": 0.3}
    chosen["vicreg"] = _on_pair(partial(losses.vicreg, **weights))
    chosen["sinkhorn"] = lambda parameters, z1, z2, batch, axis_name: _sinkhorn(z1, z2, axis_name)
    chosen["multi_crop"] = _multi_crop
    chosen["prototypes"] = _prototypes
    chosen["reconstruction"] = _reconstruction
    return chosen


def _on_pair(loss):
    return lambda parameters, z1, z2, batch, axis_name: loss(z1, z2, axis_name=axis_name)


def _on_maps(loss):
    return lambda parameters, z1, z2, batch, axis_name: loss(
        _maps(z1), _maps(z2), axis_name=axis_name
    )


def _with_labels(loss):
    return lambda parameters, z1, z2, batch, axis_name: loss(
        z1, z2, batch["labels"], axis_name=axis_name
    )


def _queue(parameters, z1, z2, batch, axis_name, block_size):
    return losses.queue_alignment_and_uniformity(
        z1,
        z2,
        parameters["queue"],
        alignment_weight=3.0,
        uniformity_weight=1.0,
        t=3.0,
        axis_name=axis_name,
        block_size=block_size,
    )


def _lejepa(parameters, z1, z2, batch, axis_name):
    return losses.generalized_contrastive(
        z1,
        z2,
        z1 * z2,
        key=jax.random.key(4),
        distribution="characteristic",
        weight=0.2,
        normalize=False,
        views_together=False,
        axis_name=axis_name,
    )


def _few_projections(parameters, z1, z2, batch, axis_name):
    return losses.sliced_wasserstein(
        z1, key=jax.random.key(4), prior="normal", num_projections=5, axis_name=axis_name
    )


def _multi_crop(parameters, z1, z2, batch, axis_name):
    scores, targets = jnp.stack([z1, z2, z1 * z2]), jax.nn.softmax(jnp.stack([z2 - z1, z1]))
    return losses.cross_view_entropy(scores, targets, temperature=0.5, axis_name=axis_name)


def _prototypes(parameters, z1, z2, batch, axis_name):
    assignments = batch["labels"] - 2  # some have none
    return losses.prototype_cross_entropy(z1, assignments, temperature=0.5, axis_name=axis_name)


def _reconstruction(parameters, z1, z2, batch, axis_name):
    maps = _maps(z1), _maps(z2)
    return losses.masked_reconstruction(
        *maps, batch["mask"], normalize_target=True, axis_name=axis_name
    )


def objective(loss, axis_name):
    def of(parameters, batch):
        def embed(x):
            return jnp.tanh(x @ parameters["w"] + parameters["b"])

        return loss(parameters, embed(batch["x1"]), embed(batch["x2"]), batch, axis_name)

    return of


def value_and_gradients(chosen, axis_name):
    """Every loss with its gradient to the shared parameters, in one function to compile."""

    def run(parameters, batch):
        out = {}
        for name, loss in chosen.items():
            out[name] = jax.value_and_grad(objective(loss, axis_name))(parameters, batch)
        return out

    return run


def averaged(out):
    """Gradients averaged over devices; the values are the same on each."""
    return {name: (value, jax.lax.pmean(slope, "data")) for name, (value, slope) in out.items()}


def _mesh(count):
    return jax.make_mesh((count,), ("data",), (AxisType.Auto,), devices=jax.devices()[:count])


def under_jit(chosen, count):
    mesh = _mesh(count)
    rows, same = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    run = value_and_gradients(chosen, None)
    return jax.jit(run, in_shardings=(same, rows), out_shardings=same)


def under_shard_map(chosen, count):
    """Gradient inside the mapped function, averaged over devices."""

    def local(parameters, batch):
        return averaged(value_and_gradients(chosen, "data")(parameters, batch))

    specs = {"mesh": _mesh(count), "in_specs": (P(), P("data")), "out_specs": P()}
    return jax.jit(jax.shard_map(local, check_vma=True, **specs))


def outside_shard_map(chosen, count):
    """Gradient of the mapped function."""

    def run(parameters, batch):
        out = {}
        for name, loss in chosen.items():
            specs = {"mesh": _mesh(count), "in_specs": (P(), P("data")), "out_specs": P()}
            mapped = jax.shard_map(objective(loss, "data"), **specs)
            out[name] = jax.value_and_grad(mapped)(parameters, batch)
        return out

    return jax.jit(run)


def under_pmap(chosen, count):
    def local(parameters, batch):
        return averaged(value_and_gradients(chosen, "data")(parameters, batch))

    return jax.pmap(local, "data", in_axes=(None, 0), devices=jax.devices()[:count])


FORMS = {
    "jit": under_jit,
    "pmap": under_pmap,
    "shard_map": under_shard_map,
    "outside_shard_map": outside_shard_map,
}


def inputs(form, count, dtype):
    """Parameters and batch, the latter as that form takes it."""
    batch = make_batch(dtype)
    if form == "pmap":
        batch = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
    return make_parameters(dtype), batch


def compiled(form, count, chosen, dtype="float32"):
    """The losses of ``chosen`` with their gradients, in one program; on one device without form."""
    if form is None:
        program = jax.jit(value_and_gradients(chosen, None))
    else:
        program = FORMS[form](chosen, count)
    return program.lower(*inputs(form, count, dtype)).compile(compiler_options=quick())


def run(form, count, chosen, dtype):
    """name -> (value, gradient); what is said to be the same on each device is."""
    out = {}
    for apart in (False, True):
        program = {name: loss for name, loss in chosen.items() if (name in ALONE) == apart}
        if program:
            out |= results(compiled(form, count, program, dtype), form, count, dtype)
    return out


def results(program, form, count, dtype):
    """What a compiled program gives, on the host."""
    # To the host before anything else: an operation on a result that is not ready may take the
    # thread that one of the devices needs to come to its collective.
    out = jax.tree.map(np.asarray, program(*inputs(form, count, dtype)))
    if form != "pmap":
        return out
    for value, _ in out.values():
        np.testing.assert_array_equal(value, np.broadcast_to(value[0], value.shape))
    return jax.tree.map(lambda x: x[0], out)
