"""MAE (arXiv:2111.06377): most patches of an image are hidden and their pixels predicted."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.errors import UserError
from jaxssl.losses import masked_reconstruction
from jaxssl.methods.method import Hyper, Keys, Method, Metrics, Spec
from jaxssl.models import Encoder, PatchEncoder
from jaxssl.models.decoders import PatchDecoder
from jaxssl.models.vit import patches_of
from jaxssl.ranges import AT_LEAST_ONE, POSITIVE, Range, Ranges, check_ranges


class MAE(Method):
    """The encoder sees the patches that are left, and a decoder all: one view, its own target.

    Which are left is drawn for each image by its own key. ``config.mask_ratio`` is the share that
    is hidden, rounded up to patches; the encoder's work falls with it.
    """

    SETTINGS: ClassVar[Ranges] = {"mask_ratio": Range(0.0, 1.0, low_included=False)}
    VIEWS: ClassVar[int | None] = 1
    encoder: PatchEncoder

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        super().__init__(config, encoder, spec, rngs)
        if not isinstance(encoder, PatchEncoder):
            raise UserError(
                f"method mae hides patches from the encoder, and a {type(encoder).__name__} has no "
                "patches: choose --config.encoder.name=vit."
            )
        self.mask_ratio = config.mask_ratio
        self.normalize_target = config.normalize_target
        values = encoder.patch**2 * spec.channels
        if self.normalize_target and values < 2:
            raise UserError(
                "patches of one value have no variance: set --config.method.normalize_target=false "
                "or raise --config.encoder.patch."
            )
        self.decoder = _decoder(config.decoder, encoder, values, rngs)

    def embed(self, views: Views, keys: Keys) -> dict[str, Array]:
        """``prediction`` of all patches [B, P, patch * patch * C].

        ``hidden`` [B, P] says which were not seen; ``tokens`` [B, M, D] are the encoder's, of those
        that it saw.

        Raises:
          UserError: if no patch would be hidden, or all.
        """
        (images,) = views.images
        rows, columns = self.encoder.grid_of(images)
        patches = rows * columns
        kept = int(patches * (1 - self.mask_ratio))
        if not 0 < kept < patches:
            raise UserError(
                f"--config.method.mask_ratio={self.mask_ratio} leaves {kept} of {patches} patches: "
                "choose one that hides some and leaves some, or smaller patches."
            )
        order = random_order(keys.sample, patches)
        restore = jnp.argsort(order, axis=1)
        tokens = self.encoder.tokens(images, order[:, :kept], train=True)
        return {
            "prediction": self.decoder(tokens, restore, (rows, columns)),
            "hidden": restore >= kept,
            "tokens": tokens[:, self.encoder.prefix :],
        }

    def objective(
        self, embeddings: dict[str, Array], views: Views, key: Key[Array, ""], hyper: Hyper
    ) -> tuple[Float[Array, ""], Metrics]:
        """Mean squared error over the hidden patches, each normalised if the config says so."""
        patches = patches_of(views.images[0], self.encoder.patch)
        loss = masked_reconstruction(
            embeddings["prediction"],
            patches.reshape(*patches.shape[:2], -1),
            embeddings["hidden"],
            normalize_target=self.normalize_target,
        )
        return loss, {}

    def watched(self, embeddings: dict[str, Array]) -> tuple[Float[Array, "b m d"], ...]:
        """The encoder's tokens."""
        return (embeddings["tokens"],)


def random_order(keys: Key[Array, " b"], patches: int) -> Int[Array, "b p"]:
    """A permutation of the patches of each image, by the image's key."""
    return jax.vmap(lambda key: jnp.argsort(jax.random.uniform(key, (patches,))))(keys)


def _decoder(
    config: ConfigDict, encoder: PatchEncoder, out_dim: int, rngs: nnx.Rngs
) -> PatchDecoder:
    numbers = dict.fromkeys(("width", "depth", "heads"), AT_LEAST_ONE) | {"mlp_ratio": POSITIVE}
    check_ranges("method.decoder", config, numbers)
    return PatchDecoder(
        encoder.feature_dim,
        out_dim,
        encoder.prefix,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        kernel_init=config.kernel_init,
        dtype=encoder.dtype,
        rngs=rngs,
    )
