"""Dense contrastive learning (Moon, Kim and Choi, BMVC 2022): the cells of two views' maps attract.

Two heads, one on the pooled features and one on every cell of the last map. The two objectives of
the paper are two methods: InfoNCE, and weighted alignment and uniformity.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.errors import choose
from jaxssl.losses import dense_alignment, dense_info_nce, dense_uniformity, nt_xent
from jaxssl.losses.dense import MATCHINGS, NEGATIVES, PAIRS, PLANS
from jaxssl.methods.method import (
    Hyper,
    Keys,
    Layers,
    Method,
    Metrics,
    Spec,
    encoder_layers,
    head_layers,
)
from jaxssl.models import Encoder, cells
from jaxssl.models.heads import build_head
from jaxssl.ranges import AT_LEAST_ONE, NON_NEGATIVE, POSITIVE, SHARE, TEMPERATURE, Ranges


class DenseMethod(Method):
    """Encoder, instance head and dense head; views are embedded jointly, as SimCLR does.

    ``hyper["dense_weight"]`` is the dense loss's share of the whole: the paper's instance models
    have 0, its dense models 1.
    """

    VIEWS: ClassVar[int | None] = 2

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        super().__init__(config, encoder, spec, rngs)
        self.head = build_head(config.head, encoder.feature_dim, encoder.dtype, rngs)
        self.dense_head = build_head(
            config.dense_head, encoder.stage_dims[-1], encoder.dtype, rngs, "method.dense_head"
        )

    def embed(self, views: Views, keys: Keys) -> dict[str, Array]:
        """Projections ``z1``, ``z2`` [B, D] and ``h1``, ``h2`` [B, P, D], P cells an image.

        ``map1``, ``map2`` [B, P, E] are the backbone's maps, from which ``h1`` and ``h2`` are
        projected; they get no gradient.
        """
        stages, pooled = self.encoder(jnp.concatenate(views.images), train=True, views=2)
        maps = cells(stages[-1])
        embeddings = {
            "z": self.head(pooled, train=True, views=2),
            "h": self.dense_head(maps, train=True, views=2),
            "map": jax.lax.stop_gradient(maps),
        }
        return {
            f"{name}{view}": half
            for name, both in embeddings.items()
            for view, half in enumerate(jnp.split(both, 2), 1)
        }

    def objective(
        self, embeddings: dict[str, Array], views: Views, key: Key[Array, ""], hyper: Hyper
    ) -> tuple[Float[Array, ""], Metrics]:
        """Instance and dense loss, weighted; both are logged."""
        instance = self.instance_loss(embeddings, hyper)
        dense = self.dense_loss(embeddings, hyper)
        share = hyper["dense_weight"]
        loss = (1 - share) * instance + share * dense
        return loss, {"instance_loss": instance, "dense_loss": dense}

    def instance_loss(self, embeddings: dict[str, Array], hyper: Hyper) -> Float[Array, ""]:
        """Of ``z1`` and ``z2``."""
        raise NotImplementedError

    def dense_loss(self, embeddings: dict[str, Array], hyper: Hyper) -> Float[Array, ""]:
        """Of ``h1`` and ``h2``."""
        raise NotImplementedError

    def watched(self, embeddings: dict[str, Array]) -> tuple[Float[Array, "b *p d"], ...]:
        """The projections of both heads."""
        return tuple(embeddings[name] for name in ("z1", "z2", "h1", "h2"))

    def represent(self, images: Float[Array, "b h w c"]) -> Layers:
        """Encoder and instance head; ``dense_projection``, the dense head's map [B, h, w, D]."""
        layers = encoder_layers(self.encoder, images)
        last = layers[f"stage{len(self.encoder.stage_dims)}"]
        return {
            **layers,
            **head_layers(self.head, layers["pooled"]),
            "dense_projection": self.dense_head(last, train=False),
        }


class DenseContrastive(DenseMethod):
    """NT-Xent of instances (Eq. 1) and InfoNCE of cells (Eq. 2), whose matches are a choice.

    ``config.matching``: cells match by "index" as in the paper, or on the backbone's maps by
    "cosine" (DenseCL, arXiv:2011.09157) or as a "set", by transport; see
    `jaxssl.losses.dense_info_nce` for the other settings.

    Reads ``hyper["temperature"]`` and ``hyper["dense_weight"]``.
    """

    HYPER: ClassVar[Ranges] = {"temperature": TEMPERATURE, "dense_weight": SHARE}
    SETTINGS: ClassVar[Ranges] = {"plan_epsilon": POSITIVE, "plan_iterations": AT_LEAST_ONE}

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        super().__init__(config, encoder, spec, rngs)
        self.matching = _one_of("matching", config.matching, MATCHINGS)
        self.negatives = _one_of("negatives", config.negatives, NEGATIVES)
        self.plan = _one_of("plan", config.plan, PLANS)
        self.plan_epsilon = config.plan_epsilon
        self.plan_iterations = config.plan_iterations
        self.positive_in_denominator = config.positive_in_denominator

    def instance_loss(self, embeddings: dict[str, Array], hyper: Hyper) -> Float[Array, ""]:
        """NT-Xent, mean over the 2B anchors."""
        return nt_xent(embeddings["z1"], embeddings["z2"], temperature=hyper["temperature"])

    def dense_loss(self, embeddings: dict[str, Array], hyper: Hyper) -> Float[Array, ""]:
        """InfoNCE, mean over images, cells and both directions."""
        return dense_info_nce(
            embeddings["h1"],
            embeddings["h2"],
            temperature=hyper["temperature"],
            matching=self.matching,
            match1=embeddings["map1"],
            match2=embeddings["map2"],
            positive_in_denominator=self.positive_in_denominator,
            negatives=self.negatives,
            plan=self.plan,
            plan_epsilon=self.plan_epsilon,
            plan_iterations=self.plan_iterations,
        )


class DenseAlignUniform(DenseMethod):
    """``w_a L_a + w_u L_u`` of cells (section 3.2), and of instances as maps of one cell.

    So both levels share a formula. Wang and Isola's own loss for instances has the squared distance
    2 - 2 cos where L_a has -cos: twice the pull at the same weight.

    Reads ``hyper["alignment_weight"]``, ``hyper["uniformity_weight"]``, ``hyper["t"]``
    and ``hyper["dense_weight"]``. ``config.pairs``: "same_index", as printed, or "all_cells".
    """

    HYPER: ClassVar[Ranges] = {
        "alignment_weight": NON_NEGATIVE,
        "uniformity_weight": NON_NEGATIVE,
        "t": POSITIVE,
        "dense_weight": SHARE,
    }

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        super().__init__(config, encoder, spec, rngs)
        self.pairs = _one_of("pairs", config.pairs, PAIRS)

    def instance_loss(self, embeddings: dict[str, Array], hyper: Hyper) -> Float[Array, ""]:
        """Of maps of one cell."""
        return self._loss(embeddings["z1"][:, None], embeddings["z2"][:, None], hyper)

    def dense_loss(self, embeddings: dict[str, Array], hyper: Hyper) -> Float[Array, ""]:
        """Of all cells."""
        return self._loss(embeddings["h1"], embeddings["h2"], hyper)

    def _loss(
        self, h1: Float[Array, "b p d"], h2: Float[Array, "b p d"], hyper: Hyper
    ) -> Float[Array, ""]:
        spread = dense_uniformity(h1, h2, t=hyper["t"], pairs=self.pairs)
        attraction = dense_alignment(h1, h2)
        return hyper["alignment_weight"] * attraction + hyper["uniformity_weight"] * spread


def _one_of(setting: str, given: str, choices: tuple[str, ...]) -> str:
    return choose(f"method.{setting}", given, {name: name for name in choices})
