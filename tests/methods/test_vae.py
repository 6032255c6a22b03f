"""The VAE: its bound against NumPy, noise by the sample, the decoder's shapes and mathematics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quick_compilation import quick_jit
from tiny import BATCH, Run, config_for

from jaxssl.distributed import data_mesh
from jaxssl.errors import UserError
from jaxssl.models import LayerSettings, build_encoder
from jaxssl.models.decoders import MirroredDecoder, stage_shapes
from jaxssl.plan import resolve
from jaxssl.training.state import merge
from jaxssl.training.step import embedding_keys

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def vae():
    run = Run(config_for("vae"))
    return run, run.blueprint.create(0, data_mesh(1))


def embedded(run, state, views, keys):
    def embed(params, rest, views, keys):
        return merge(run.blueprint.graph, params, rest).embed(views, keys)

    return quick_jit(embed)(state.params, state.rest, views, keys)


def test_objective_is_the_bound_in_nats(vae):
    run, state = vae
    method = merge(run.blueprint.graph, state.params, state.rest)
    views = run.views(0)
    x = np.float64(views.images[0])
    draw = np.random.default_rng(0)
    logits, mean = 2 * draw.normal(size=x.shape), draw.normal(size=(BATCH, 8))
    log_variance = draw.normal(size=(BATCH, 8))
    p = 1 / (1 + np.exp(-logits))
    nats = -(x * np.log(p) + (1 - x) * np.log(1 - p)).reshape(BATCH, -1).sum(1).mean()
    kl = (0.5 * (np.exp(log_variance) + mean**2 - 1 - log_variance)).sum(1).mean()
    embeddings = {"logits": logits, "mean": mean, "log_variance": log_variance}
    hyper = run.scalars() | {"beta": jnp.float32(0.7)}
    loss, metrics = method.objective(jax.tree.map(jnp.float32, embeddings), views, KEY, hyper)
    assert float(loss) == pytest.approx(nats + 0.7 * kl, rel=1e-5)
    assert float(metrics["reconstruction_nats"]) == pytest.approx(nats, rel=1e-5)
    assert float(metrics["divergence_nats"]) == pytest.approx(kl, rel=1e-5)


def test_noise_belongs_to_the_image_and_has_the_posteriors_spread(vae):
    """z = mean + noise * deviation; with the identity for a decoder the logits show z."""
    run, state = vae
    views = run.views(0)
    method = merge(run.blueprint.graph, state.params, state.rest)
    method.decoder = lambda z, train: z[:, None, None, :]
    method.log_variance = lambda pooled: jnp.full((len(pooled), 8), 2 * jnp.log(3.0))

    def embed(views):
        return method.embed(views, embedding_keys(views, 0, run.scalars()))

    # BatchNorm is switched to its running statistics: noise alone shall differ.
    encoder = method.encoder
    method.encoder = lambda images, train: encoder(images, train=False)
    embed = quick_jit(embed)

    def noise(views):
        embeddings = embed(views)
        return np.asarray(embeddings["logits"][:, 0, 0] - embeddings["mean"]) / 3

    drawn = noise(views)
    assert abs(drawn.mean()) < 0.1
    assert abs(drawn.std() - 1) < 0.1
    order = np.random.default_rng(0).permutation(BATCH)
    np.testing.assert_allclose(
        noise(jax.tree.map(lambda x: x[order], views)), drawn[order], atol=1e-5
    )
    beside_others = np.arange(BATCH) % (BATCH // 2)
    again = noise(jax.tree.map(lambda x: x[beside_others], views))
    np.testing.assert_allclose(again, drawn[beside_others], atol=1e-5)
    another = noise(dataclasses.replace(views, epoch=views.epoch + 1))
    assert np.abs(another - drawn).max() > 0.1


def test_mu_is_the_posteriors_mean(vae):
    run, state = vae
    method = merge(run.blueprint.graph, state.params, state.rest)
    images = run.views(0).images[0]
    layers = method.represent(images)
    kernel, bias = (np.float64(x[...]) for x in (method.mean.kernel, method.mean.bias))
    expected = np.float64(layers["pooled"]) @ kernel + bias
    np.testing.assert_allclose(layers["mu"], expected, atol=1e-5)
    assert np.abs(expected).max() > 0.01


def test_views_of_another_size_are_refused(vae):
    run, state = vae
    views = dataclasses.replace(run.views(0), images=(jnp.zeros((BATCH, 12, 12, 1)),))
    with pytest.raises(UserError, match=r"--config.method.image_size to --config.views.global"):
        embedded(run, state, views, run.keys(0))


def test_normalised_images_are_refused():
    """Outside [0, 1] the likelihood has no upper bound."""
    config = config_for("vae")
    resolve(config)
    config.normalize.std = (0.2,)
    said = r"and --config\.normalize\.std=\(0\.2,\) moves.* --config\.normalize\.mean='\(\)' and"
    with pytest.raises(UserError, match=said):
        resolve(config)


def settings(groups=1):
    return LayerSettings(bn_momentum=0.9, bn_epsilon=1e-5, bn_groups=groups, dtype="float32")


def decoder_of(encoder, image):
    return MirroredDecoder(
        5,
        stage_shapes(encoder, image),
        image,
        kernel_init="fan_in_truncated_normal",
        settings=settings(),
        rngs=nnx.Rngs(0),
    )


@pytest.mark.parametrize(
    ("name", "size", "changes", "maps"),
    [
        ("convn", 28, {"image_size": 28, "padding": "valid", "width": 32}, (13, 6, 2)),
        ("convn", 16, {"image_size": 16, "padding": "same", "width": 2}, (8, 4, 2)),
        ("resnet18", 32, {"stem": "cifar"}, (32, 16, 8, 4)),
        ("resnet18", 64, {"stem": "imagenet"}, (16, 8, 4, 2)),
    ],
)
def test_the_decoder_mirrors_the_encoders_maps(name, size, changes, maps):
    config = config_for("vae").encoder.copy_and_resolve_references()
    with config.unlocked():
        config.update(stem_padding="same", shortcut="projection_on_change", width=2)
        config.update({"zero_init_residual": False, "name": name, **changes})
    image = (size, size, 3)

    def shapes():
        encoder = build_encoder(config, 3, nnx.Rngs(0))
        found = stage_shapes(encoder, image)
        decoder = decoder_of(encoder, image)
        upwards = []
        x = jnp.zeros((2, *decoder.first_map))
        for norm, conv in zip(decoder.norms, decoder.convs, strict=True):
            upwards.append(x.shape[1:])
            x = conv(norm(x, train=False))
        assert encoder.stage_dims == tuple(shape[-1] for shape in found)
        assert tuple(shape[0] for shape in found) == maps
        assert upwards == [*reversed(found)]
        assert x.shape[1:] == image
        return decoder(jnp.zeros((2, 5)), train=True)

    assert nnx.eval_shape(shapes).shape == (2, *image)


def test_a_transposed_convolution_is_the_transpose_of_one():
    """<conv(x), y> = <x, transposed(y)> for the convolution of ConvN, 3x3 with stride 2."""
    image = (16, 16, 3)
    config = config_for("vae").encoder.copy_and_resolve_references()
    with config.unlocked():
        config.update(image_size=16, width=2)
    decoder = decoder_of(build_encoder(config, 3, nnx.Rngs(0)), image)
    last = decoder.convs[-1]
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(1, *image)), draw.normal(size=(1, 8, 8, 2))
    last.bias[...] = jnp.zeros(3)
    upwards = np.float64(last(jnp.float32(y)))
    # Mirrored in space, input and output exchanged.
    kernel = np.float64(last.kernel[...])[::-1, ::-1].swapaxes(2, 3)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    down = np.zeros((1, 8, 8, 2))
    for row in range(8):
        for column in range(8):
            window = padded[0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            down[0, row, column] = np.einsum("hwc,hwcd->d", window, kernel)
    assert np.sum(down * y) == pytest.approx(np.sum(x * upwards), rel=1e-5)
