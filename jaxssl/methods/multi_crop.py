"""Views of several sizes through one network (SwAV, arXiv:2006.09882, section 3.3)."""

import itertools

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxssl.errors import UserError
from jaxssl.methods.method import Projections
from jaxssl.models import Encoder, ProjectionHead
from jaxssl.ranges import AT_LEAST_TWO, check_ranges

KEPT = 2  # global views whose past projections SwAV's queue and DeepCluster-v2's bank hold

Images = tuple[Float[Array, "b _h _w c"], ...]


def global_views(images: Images) -> Images:
    """The views of the first one's size, which lead: those that see most of the image."""
    return tuple(itertools.takewhile(lambda view: view.shape == images[0].shape, images))


def check_pair(images: Images) -> None:
    """Refuses a single view, which has no other one to predict.

    Raises:
      UserError: naming the number of global views.
    """
    check_ranges("views.global_crops", {"count": len(images)}, {"count": AT_LEAST_TWO})


def check_kept(images: Images) -> None:
    """Refuses another number of global views than past projections are kept of.

    Raises:
      UserError: naming it.
    """
    count = len(global_views(images))
    if count != KEPT:
        raise UserError(
            f"--config.views.global_crops.count={count} must be {KEPT}: past projections are kept "
            "of so many views."
        )


def project_views(encoder: Encoder, head: ProjectionHead, images: Images) -> Projections:
    """The projections of every view, in training mode.

    Neighbouring views of one size are stacked and go through the encoder together, then all views
    through the head: its BatchNorm sees them jointly, the encoder's those of one size.

    Args:
      encoder: takes images of each of the sizes.
      head: what follows its pooled features.
      images: one [B, H, W, C] a view.

    Returns:
      One [B, D] a view.
    """
    pooled = []
    for _, same_size in itertools.groupby(images, key=jnp.shape):
        views = list(same_size)
        # Concatenating keeps the rows of each device on it; stacking views inside would not.
        pooled.append(encoder(jnp.concatenate(views), train=True, views=len(views)).pooled)
    projections = head(jnp.concatenate(pooled), train=True, views=len(images))
    return tuple(jnp.split(projections, len(images)))
