"""One small case of every loss: arrays, scalars, and what may be differentiated."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from jaxssl import losses


@dataclass(frozen=True, eq=False)
class Case:
    """``loss(*arrays, **scalars, **fixed)``: what has a gradient, and what has exactly none.

    ``live`` arrays have one and other arrays none; scalars have one but for the ``constants``.
    """

    loss: Callable
    shapes: dict[str, tuple[int, ...]]
    scalars: dict[str, float] = field(default_factory=dict)
    live: tuple[str, ...] = ("z1", "z2")
    constants: tuple[str, ...] = ()
    fixed: dict = field(default_factory=dict)
    integers: dict = field(default_factory=dict)

    def arrays(self, dtype, seed: int = 0) -> dict:
        """NumPy's, so that making them compiles nothing."""
        rng = np.random.default_rng(seed)
        drawn = {name: rng.normal(size=shape) for name, shape in self.shapes.items()}
        return {name: value.astype(jnp.dtype(dtype)) for name, value in drawn.items()}

    def __call__(self, arrays: dict, scalars: dict):
        integers = {name: jnp.asarray(value) for name, value in self.integers.items()}
        return self.loss(**arrays, **scalars, **self.fixed, **integers)


PAIR = {"z1": (5, 3), "z2": (5, 3)}
MAPS = {"h1": (3, 4, 5), "h2": (3, 4, 5)}
CELLS = ("h1", "h2")


class Keyed:
    """A loss with a key made inside the call: keys do not outlive a switch of precision."""

    def __init__(self, loss):
        self.loss = loss

    def __call__(self, *args, **kwargs):
        return self.loss(*args, key=jax.random.key(5), **kwargs)


def assignments(**arguments):
    """Sinkhorn's assignments as a scalar, weighted unevenly so that every entry counts."""
    q = losses.sinkhorn_knopp(**arguments)
    return jnp.sum(q * jnp.arange(q.size).reshape(q.shape))


def three_views(z1, z2, z3, **arguments):
    return losses.generalized_contrastive(z1, z2, z3, **arguments)


def centre(**arguments):
    moved = losses.dino_center(**arguments)
    return jnp.sum(moved * jnp.arange(moved.size))


DENSE = {"temperature": 0.4}
GENERALIZED = {"weight": 0.3, "temperature": 0.6, "scale": 4.0}

CASES = {
    "nt_xent": Case(losses.nt_xent, PAIR, {"temperature": 0.3}),
    "nt_xent_tiles": Case(losses.nt_xent, PAIR, {"temperature": 0.3}, fixed={"block_size": 4}),
    "nt_xent_cold_tiles": Case(
        losses.nt_xent, PAIR, {"temperature": 0.01}, fixed={"block_size": 4}
    ),
    "decoupled": Case(losses.decoupled_nt_xent, PAIR, {"temperature": 0.3, "weight": 0.7}),
    "decoupled_tiles": Case(
        losses.decoupled_nt_xent,
        PAIR,
        {"temperature": 0.3, "weight": 0.7},
        fixed={"block_size": 4},
    ),
    "cross_view": Case(losses.cross_view_nt_xent, PAIR, {"temperature": 0.3}),
    "cross_view_tiles": Case(
        losses.cross_view_nt_xent, PAIR, {"temperature": 0.3}, fixed={"block_size": 2}
    ),
    "in_batch_info_nce": Case(
        losses.in_batch_info_nce,
        {"q": (5, 3), "k": (5, 3)},
        {"temperature": 0.3},
        live=("q", "k"),
    ),
    "info_nce": Case(
        losses.info_nce,
        {"q": (4, 3), "k": (4, 3), "negatives": (6, 3)},
        {"temperature": 0.3},
        live=("q", "k", "negatives"),
    ),
    "info_nce_tiles": Case(
        losses.info_nce,
        {"q": (4, 3), "k": (4, 3), "negatives": (7, 3)},
        {"temperature": 0.3},
        live=("q", "k", "negatives"),
        fixed={"block_size": 3},
    ),
    **{
        f"supcon_{form}{'_tiles' if size else ''}": Case(
            losses.supcon,
            PAIR,
            {"temperature": 0.3},
            fixed={"positives": form, "block_size": size},
            integers={"labels": np.int32([7, 7, -1, 2, -1])},
        )
        for form in ("outside", "inside")
        for size in (None, 4)
    },
    **{
        f"generalized_{name}": Case(
            Keyed(losses.generalized_contrastive),
            PAIR,
            GENERALIZED if name == "logsumexp" else {"weight": 0.3, "scale": 4.0},
            fixed={"distribution": name, "normalize": name != "normal"},
        )
        for name in ("logsumexp", "normal")
    },
    "generalized_eq4": Case(
        Keyed(losses.generalized_contrastive),
        PAIR,
        GENERALIZED,
        fixed={
            "distribution": "logsumexp",
            "normalize": False,
            "halve_alignment": False,
            "divide_by_dimension": False,
            "self_term": False,
            "block_size": 4,
        },
    ),
    "generalized_views": Case(
        Keyed(three_views),
        {**PAIR, "z3": (5, 3)},
        {"weight": 0.3, "scale": 4.0},
        live=("z1", "z2", "z3"),
        fixed={"distribution": "characteristic", "normalize": False, "views_together": False},
    ),
    "sliced_characteristic": Case(
        Keyed(losses.sliced_characteristic),
        {"h": (7, 4)},
        live=("h",),
        fixed={"num_projections": 9, "num_knots": 5},
    ),
    "sliced_wasserstein": Case(
        Keyed(losses.sliced_wasserstein),
        {"h": (7, 4)},
        live=("h",),
        fixed={"prior": "normal", "num_projections": 3},
    ),
    "alignment": Case(losses.alignment, PAIR, {"alpha": 1.5}),
    "uniformity": Case(losses.uniformity, {"z": (6, 3)}, {"t": 1.7}, live=("z",)),
    "uniformity_tiles": Case(
        losses.uniformity, {"z": (7, 3)}, {"t": 1.7}, live=("z",), fixed={"block_size": 3}
    ),
    "alignment_and_uniformity": Case(
        losses.alignment_and_uniformity,
        PAIR,
        {"alignment_weight": 0.7, "uniformity_weight": 1.3, "alpha": 2.5, "t": 1.7},
    ),
    "queue_uniformity": Case(
        losses.queue_uniformity, {"q": (4, 3), "queue": (6, 3)}, {"t": 1.7}, live=("q",)
    ),
    "queue_alignment_and_uniformity": Case(
        losses.queue_alignment_and_uniformity,
        {"q": (4, 3), "k": (4, 3), "queue": (6, 3)},
        {"alignment_weight": 0.7, "uniformity_weight": 1.3, "t": 1.7},
        live=("q",),
        fixed={"block_size": 3},
    ),
    "negative_cosine": Case(losses.negative_cosine, {"p": (5, 3), "z": (5, 3)}, live=("p",)),
    "negative_cosine_margin": Case(
        losses.negative_cosine, {"p": (5, 3), "z": (5, 3)}, {"margin": 0.6}, live=("p",)
    ),
    "byol_regression": Case(losses.byol_regression, {"p": (5, 3), "z": (5, 3)}, live=("p",)),
    "barlow_twins": Case(losses.barlow_twins, PAIR, {"off_diagonal_weight": 0.3, "epsilon": 0.1}),
    "vicreg": Case(
        losses.vicreg,
        PAIR,
        {
            "invariance_weight": 0.7,
            "variance_weight": 1.3,
            "covariance_weight": 0.4,
            "epsilon": 0.1,
        },
    ),
    "sinkhorn_knopp": Case(
        assignments,
        {"scores": (5, 3)},
        {"epsilon": 0.4},
        live=(),
        constants=("epsilon",),
        fixed={"iterations": 3},
    ),
    "cross_view_entropy": Case(
        losses.cross_view_entropy,
        {"scores": (4, 3, 5), "targets": (2, 3, 5)},
        {"temperature": 0.4},
        live=("scores",),
    ),
    "swapped_prediction": Case(
        losses.swapped_prediction,
        dict.fromkeys(("scores1", "scores2", "assignments1", "assignments2"), (4, 3)),
        {"temperature": 0.4},
        live=("scores1", "scores2"),
    ),
    "prototype_cross_entropy": Case(
        losses.prototype_cross_entropy,
        {"scores": (4, 3)},
        {"temperature": 0.4},
        live=("scores",),
        integers={"assignments": np.int32([2, -1, 0, 2])},
    ),
    "dino": Case(
        losses.dino,
        {"student": (4, 3, 5), "teacher": (2, 3, 5), "center": (5,)},
        {"student_temperature": 0.3, "teacher_temperature": 0.2},
        live=("student",),
        constants=("teacher_temperature",),
    ),
    "dino_center": Case(
        centre,
        {"center": (5,), "teacher": (2, 3, 5)},
        {"momentum": 0.7},
        live=(),
        constants=("momentum",),
    ),
    "dense_index": Case(losses.dense_info_nce, MAPS, DENSE, live=CELLS),
    "dense_index_tiles": Case(
        losses.dense_info_nce, MAPS, DENSE, live=CELLS, fixed={"block_size": 5}
    ),
    "dense_cosine": Case(
        losses.dense_info_nce,
        {**MAPS, "match1": (3, 4, 2), "match2": (3, 4, 2)},
        DENSE,
        live=CELLS,
        fixed={"matching": "cosine", "negatives": "other_view", "block_size": 5},
    ),
    "dense_set": Case(
        losses.dense_info_nce,
        {**MAPS, "match1": (3, 4, 2), "match2": (3, 4, 2)},
        {**DENSE, "plan_epsilon": 0.05},
        live=CELLS,
        constants=("plan_epsilon",),
        fixed={"matching": "set", "positive_in_denominator": False},
    ),
    "dense_exact": Case(
        losses.dense_info_nce,
        {**MAPS, "match1": (3, 4, 2), "match2": (3, 4, 2)},
        DENSE,
        live=CELLS,
        fixed={"matching": "set", "plan": "exact"},
    ),
    "dense_alignment": Case(losses.dense_alignment, MAPS, live=CELLS),
    "dense_uniformity": Case(losses.dense_uniformity, MAPS, {"t": 1.7}, live=CELLS),
    "dense_uniformity_all": Case(
        losses.dense_uniformity,
        MAPS,
        {"t": 1.7},
        live=CELLS,
        fixed={"pairs": "all_cells", "block_size": 5},
    ),
    "masked_reconstruction": Case(
        losses.masked_reconstruction,
        {"prediction": (2, 3, 4), "target": (2, 3, 4)},
        live=("prediction",),
        fixed={"normalize_target": True},
        integers={"mask": np.array([[True, False, True], [False, False, True]])},
    ),
    "bernoulli_nll": Case(
        losses.bernoulli_nll,
        {"logits": (2, 3, 3, 2), "target": (2, 3, 3, 2)},
        live=("logits",),
    ),
    "gaussian_kl": Case(
        losses.gaussian_kl,
        {"mean": (4, 3), "log_variance": (4, 3)},
        live=("mean", "log_variance"),
    ),
}
