"""A variational autoencoder (arXiv:1312.6114): the yardstick that must keep all it is shown.

The trunk is the encoder of the other methods, so that a probe compares what each makes it keep
(arXiv:2011.02803, figure 7, which leaves the rest open).
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.errors import UserError
from jaxssl.losses import bernoulli_nll, gaussian_kl
from jaxssl.methods.method import Hyper, Keys, Layers, Method, Metrics, Spec, encoder_layers
from jaxssl.models import Encoder, LayerSettings
from jaxssl.models.decoders import MirroredDecoder, stage_shapes
from jaxssl.models.layers import param_dtype
from jaxssl.ranges import AT_LEAST_ONE, MOMENTUM, NON_NEGATIVE, POSITIVE, Ranges, check_ranges


class VAE(Method):
    """Encoder, mean and log-variance of the latent, mirrored decoder; one view, its own target.

    Images are to lie in [0, 1], so a config that normalises them is refused: the loss of others
    has no lower bound. Bit channels are decoded too.

    Reads ``hyper["beta"]``, the weight of the divergence (arXiv:1312.6114 has 1).
    """

    HYPER: ClassVar[Ranges] = {"beta": NON_NEGATIVE}
    SETTINGS: ClassVar[Ranges] = {"latent_dim": AT_LEAST_ONE, "image_size": AT_LEAST_ONE}
    VIEWS: ClassVar[int | None] = 1
    PLAIN_IMAGES: ClassVar[bool] = True

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        super().__init__(config, encoder, spec, rngs)
        self.latent_dim = config.latent_dim
        self.image = (config.image_size, config.image_size, spec.channels)

        def latent() -> nnx.Linear:
            wide = param_dtype(encoder.dtype)
            return nnx.Linear(encoder.feature_dim, self.latent_dim, param_dtype=wide, rngs=rngs)

        self.mean, self.log_variance = latent(), latent()
        self.decoder = _decoder(config.decoder, encoder, self.latent_dim, self.image, rngs)

    def embed(self, views: Views, keys: Keys) -> dict[str, Array]:
        """``logits`` [B, H, W, C] of the decoded image, ``mean`` and ``log_variance`` [B, D].

        Raises:
          UserError: if the view is not of the size that the decoder was built for.
        """
        (images,) = views.images
        if images.shape[1:] != self.image:
            raise UserError(
                f"the decoder makes images {self.image} and the views are {images.shape[1:]}: set "
                "--config.method.image_size to --config.views.global_crops.size."
            )
        pooled = self.encoder(images, train=True).pooled
        mean, log_variance = self.mean(pooled), self.log_variance(pooled)
        noise = standard_noise(keys.sample, self.latent_dim, mean.dtype)
        z = mean + jnp.exp(log_variance / 2) * noise
        return {
            "logits": self.decoder(z, train=True),
            "mean": mean,
            "log_variance": log_variance,
        }

    def objective(
        self, embeddings: dict[str, Array], views: Views, key: Key[Array, ""], hyper: Hyper
    ) -> tuple[Float[Array, ""], Metrics]:
        """The negative evidence lower bound (Eq. 3) in nats an image; logs its two terms."""
        reconstruction = bernoulli_nll(embeddings["logits"], views.images[0])
        divergence = gaussian_kl(embeddings["mean"], embeddings["log_variance"])
        loss = reconstruction + hyper["beta"] * divergence
        return loss, {"reconstruction_nats": reconstruction, "divergence_nats": divergence}

    def watched(self, embeddings: dict[str, Array]) -> tuple[Float[Array, "b d"], ...]:
        """The latent's mean."""
        return (embeddings["mean"],)

    def represent(self, images: Float[Array, "b h w c"]) -> Layers:
        """The encoder, and ``mu``, the latent's mean."""
        layers = encoder_layers(self.encoder, images)
        return {**layers, "mu": self.mean(layers["pooled"])}


def standard_noise(keys: Key[Array, " b"], dim: int, dtype: DTypeLike) -> Float[Array, "b d"]:
    """Standard normal numbers [B, dim] of each image, by the image's key."""
    return jax.vmap(lambda key: jax.random.normal(key, (dim,), dtype))(keys)


def _decoder(
    config: ConfigDict,
    encoder: Encoder,
    latent_dim: int,
    image: tuple[int, int, int],
    rngs: nnx.Rngs,
) -> MirroredDecoder:
    numbers = {"bn_momentum": MOMENTUM, "bn_epsilon": POSITIVE, "bn_groups": AT_LEAST_ONE}
    check_ranges("method.decoder", config, numbers)
    settings = LayerSettings(
        bn_momentum=config.bn_momentum,
        bn_epsilon=config.bn_epsilon,
        bn_groups=config.bn_groups,
        dtype=encoder.dtype,
    )
    return MirroredDecoder(
        latent_dim,
        stage_shapes(encoder, image),
        image,
        kernel_init=config.kernel_init,
        settings=settings,
        rngs=rngs,
    )
