"""A variational autoencoder (arXiv:1312.6114) on RandBit MNIST, beside SimCLR's randbit recipe.

    python -m jaxssl.pretrain --config configs/pretrain/vae.py:bits=10 --workdir runs/vae
    python -m jaxssl.linear_probe --run runs/vae --probe.layer=mu

Recipe: the generative baseline of arXiv:2011.02803, figure 7, of which the paper says no more than
that "other settings such as model size are held the same". So encoder, crops, bits, optimizer and
schedule are those of configs/pretrain/randbit.py; 64 latents, the decoder mirrors the encoder,
Bernoulli likelihood of all pixels and bits, beta 1. One view, which is its own target.
Cost: not yet measured.
Published: curves alone (figure 7); no values. With more bits the digits' accuracy stays.
Expected here: not yet measured.

Arguments: bits, dataset (mnist, or digits to try it), image_size, size (views, pixels), batch,
epochs, width.
"""

from ml_collections import ConfigDict

from configs.common import (
    adamw_group,
    arguments,
    base_config,
    check_sourced,
    convn_group,
    view_group,
)
from jaxssl.augment.augmentation import Augmentation


def get_config(arg: str | None = None) -> ConfigDict:
    given = arguments(
        arg,
        bits=10,
        dataset="mnist",
        image_size=28,
        size=28,
        batch=1000,
        epochs=10.0,
        width=32,
    )
    config = base_config()
    config.batch_size = given.batch
    config.data.name = check_sourced(given.dataset, ("mnist", "digits"))
    config.data.image_size = given.image_size
    config.epochs = given.epochs
    config.hyper.learning_rate.shape = "linear"
    config.randbit.num_bits = given.bits
    view = Augmentation(size=given.size, crop_scale=(0.5, 1.0), crop_filter="bilinear", flip_p=0.0)
    config.views = view_group((view,))
    encoder = config.encoder = convn_group(given.size, given.width)
    encoder.padding = "valid" if given.size >= 28 else "same"  # the paper's, for 28 pixels: valid
    encoder.bn_momentum = 0.99
    encoder.bn_epsilon = 1e-3
    config.optimizer = adamw_group()
    config.hyper.learning_rate.value = 1e-3
    config.hyper.weight_decay = 0.0
    config.hyper.beta = 1.0  # weight of the divergence
    config.evals.knn.every = 2.0
    config.method = vae_group(given.size)
    return config.lock()


def vae_group(size: int) -> ConfigDict:
    """A VAE of views of ``size`` pixels."""
    method = ConfigDict()
    method.name = "vae"
    method.latent_dim = 64
    method.image_size = size  # side of the views that are decoded, pixels
    decoder = method.decoder = ConfigDict()
    decoder.kernel_init = "fan_in_truncated_normal"  # or "fan_out_normal"
    decoder.bn_momentum = 0.99  # share of the old running statistics kept a step
    decoder.bn_epsilon = 1e-3  # added to the variance
    decoder.bn_groups = 1  # contiguous groups of the images with statistics of their own
    return method
