"""The generalised contrastive loss (arXiv:2011.02803): views align, their features fill a prior.

Every row of the paper's Table 1 is a ``distribution``; ``"characteristic"`` meets it with a method
of 2025, LeJEPA (arXiv:2511.08544), whose own loss is a setting of it too.
"""

from typing import Any, ClassVar

from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.errors import UserError, choose
from jaxssl.losses import generalized_contrastive
from jaxssl.losses.sliced_wasserstein import DISTRIBUTIONS
from jaxssl.methods.method import (
    Hyper,
    Keys,
    Layers,
    Method,
    Metrics,
    Projections,
    Spec,
    projected_layers,
)
from jaxssl.methods.multi_crop import check_pair, project_views
from jaxssl.models import Encoder
from jaxssl.models.heads import build_head
from jaxssl.ranges import NON_NEGATIVE, POSITIVE, TEMPERATURE, Ranges

# What the loss takes from the config, under the same names.
SETTINGS = (
    "distribution",
    "normalize",
    "halve_alignment",
    "divide_by_dimension",
    "self_term",
    "views_together",
)


class GeneralizedContrastive(Method):
    """Encoder and head; two views or more, BatchNorm sees them jointly.

    Directions and prior samples are drawn anew each step. Reads ``hyper["weight"]``, the paper's
    lambda, ``hyper["temperature"]``, which "logsumexp" alone uses, and ``hyper["scale"]``, a factor
    of the whole.
    """

    HYPER: ClassVar[Ranges] = {
        "weight": NON_NEGATIVE,
        "temperature": TEMPERATURE,
        "scale": POSITIVE,
    }

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        choose("method.distribution", config.distribution, dict.fromkeys(DISTRIBUTIONS))
        if config.distribution == "characteristic" and config.normalize:
            raise UserError(
                "--config.method.normalize=True puts the features on a sphere, where "
                "--config.method.distribution=characteristic cannot be met: set it to False."
            )
        self.settings = tuple((name, config[name]) for name in SETTINGS)
        super().__init__(config, encoder, spec, rngs)
        self.head = build_head(config.head, encoder.feature_dim, encoder.dtype, rngs)

    def embed(self, views: Views, keys: Keys) -> Projections:
        """Projections [B, D] of the views.

        Raises:
          UserError: if there is one view alone.
        """
        check_pair(views.images)
        return project_views(self.encoder, self.head, views.images)

    def objective(
        self, embeddings: Projections, views: Views, key: Key[Array, ""], hyper: Hyper
    ) -> tuple[Float[Array, ""], Metrics]:
        """The scaled sum of alignment and weighted distance to the distribution."""
        first, second, *others = embeddings
        numbers: dict[str, Any] = {name: hyper[name] for name in self.HYPER}
        numbers |= dict(self.settings)
        return generalized_contrastive(first, second, *others, key=key, **numbers), {}

    def watched(self, embeddings: Projections) -> Projections:
        """The projections."""
        return embeddings

    def represent(self, images: Float[Array, "b h w c"]) -> Layers:
        """Encoder and head: ``head1`` ... and ``projection``."""
        return projected_layers(self.encoder, self.head, images)
