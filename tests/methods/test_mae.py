"""MAE: who is hidden, what the networks see of it, what is predicted, and what it costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from quick_compilation import quick_jit
from tiny import BATCH, Run, config_for

from configs.common import convn_group
from jaxssl.distributed import data_mesh
from jaxssl.errors import UserError
from jaxssl.methods import build_method
from jaxssl.methods.mae import random_order
from jaxssl.models.decoders import PatchDecoder
from jaxssl.models.vit import sincos_positions
from jaxssl.training.state import merge
from jaxssl.training.step import embedding_keys

KEY = jax.random.key(0)
PATCHES, KEPT = 16, 4


@pytest.fixture(scope="module")
def mae():
    """A run, its method, and what it embeds of views, with another epoch's draws if asked."""
    run = Run(config_for("mae"))
    state = run.blueprint.create(0, data_mesh(1))

    @quick_jit
    def embed(views):
        method = merge(run.blueprint.graph, state.params, state.rest)
        return method.embed(views, embedding_keys(views, 0, run.scalars()))

    return run, merge(run.blueprint.graph, state.params, state.rest), embed


def patches_of(images):
    """[B, P, 4] of images [B, 8, 8, 1]."""
    return images.reshape(-1, 4, 2, 4, 2).swapaxes(2, 3).reshape(-1, PATCHES, 4)


def test_a_mask_belongs_to_the_image_and_its_epoch(mae):
    run, _, embed = mae
    views = run.views(0)
    hidden = np.asarray(embed(views)["hidden"])
    assert (hidden.sum(1) == PATCHES - KEPT).all()
    assert len({row.tobytes() for row in hidden}) > 0.9 * BATCH
    assert abs(hidden.mean(0) - 0.75).max() < 0.25  # no patch is favoured
    order = np.random.default_rng(0).permutation(BATCH)
    for rows in (order, np.arange(BATCH) % 7):
        of_others = embed(jax.tree.map(lambda x, rows=rows: x[rows], views))
        assert (np.asarray(of_others["hidden"]) == hidden[rows]).all()
    later = embed(dataclasses.replace(views, epoch=views.epoch + 1))
    assert (np.asarray(later["hidden"]) != hidden).any(1).mean() > 0.9


def test_the_encoder_sees_nothing_of_what_is_hidden(mae):
    run, _, embed = mae
    views = run.views(0)
    before = embed(views)
    hidden = np.asarray(before["hidden"])
    noise = np.random.default_rng(0).normal(size=(BATCH, PATCHES, 4))
    for where, moves in ((hidden, False), (~hidden, True)):
        patches = patches_of(np.asarray(views.images[0])) + noise * where[..., None]
        image = patches.reshape(-1, 4, 4, 2, 2).swapaxes(2, 3).reshape(-1, 8, 8, 1)
        after = embed(dataclasses.replace(views, images=(jnp.float32(image),)))
        assert (np.asarray(after["hidden"]) == hidden).all()
        for name in ("tokens", "prediction"):
            difference = np.abs(np.asarray(after[name] - before[name])).max()
            assert (difference > 1e-3) if moves else (difference == 0), name


@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_is_over_hidden_patches_each_normalised(mae, normalize):
    run, method, _ = mae
    draw = np.random.default_rng(0)
    views = run.views(0)
    image = jnp.float32(draw.normal(2.0, 3.0, (BATCH, 8, 8, 1)))
    views = dataclasses.replace(views, images=(image,))
    prediction = draw.normal(size=(BATCH, PATCHES, 4))
    hidden = draw.random((BATCH, PATCHES)) < 0.75
    method.normalize_target = normalize
    target = np.float64(patches_of(np.asarray(image)))
    if normalize:
        spread = np.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)
        target = (target - target.mean(-1, keepdims=True)) / spread

    def loss_of(prediction):
        embeddings = {"prediction": prediction, "hidden": jnp.asarray(hidden)}
        return method.objective(embeddings, views, KEY, run.scalars())[0]

    loss, slope = quick_jit(jax.value_and_grad(loss_of))(jnp.float32(prediction))
    assert float(loss) == pytest.approx(((prediction - target) ** 2)[hidden].mean(), rel=1e-5)
    expected = 2 * (prediction - target) * hidden[..., None] / (4 * hidden.sum())
    np.testing.assert_allclose(slope, expected, atol=1e-7)


def test_the_decoder_puts_tokens_where_they_were_and_the_mask_token_elsewhere():
    decoder = PatchDecoder(
        3,
        5,
        1,
        width=8,
        depth=1,
        heads=2,
        mlp_ratio=2.0,
        kernel_init="xavier_uniform",
        dtype="float32",
        rngs=nnx.Rngs(0),
    )
    decoder.blocks = nnx.List([])  # what is left acts on each token alone
    draw = np.random.default_rng(0)
    order = draw.permuted(np.tile(np.arange(6), (2, 1)), axis=1)
    tokens = draw.normal(size=(2, 1 + 2, 3))  # a class token, and two patches
    decoded = decoder(jnp.float32(tokens), jnp.argsort(order, axis=1), (2, 3))
    assert decoded.shape == (2, 6, 5)
    kernel, bias = (np.float64(x[...]) for x in (decoder.embedding.kernel, decoder.embedding.bias))
    positions = sincos_positions((2, 3), 8)
    for image in range(2):
        whole = np.tile(np.float64(decoder.mask_token[...])[0], (6, 1))
        for place, patch in enumerate(order[image, :2]):
            whole[patch] = tokens[image, 1 + place] @ kernel + bias
        x = whole + positions
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        expected = x @ np.float64(decoder.output.kernel[...]) + np.float64(decoder.output.bias[...])
        np.testing.assert_allclose(decoded[image], expected, atol=1e-5)


def built(run, **changes):
    """The method with other settings, as shapes."""
    method = run.config.method.copy_and_resolve_references()
    with method.unlocked():
        method.update(changes)
    groups = method, run.config.encoder, run.blueprint.spec
    return nnx.split(nnx.eval_shape(lambda: build_method(*groups, 0)))


def test_the_encoders_work_falls_with_the_mask_ratio():
    """As the number of tokens does; attention's falls faster."""
    run = Run(config_for("mae"))
    images, flops = jax.ShapeDtypeStruct((BATCH, 8, 8, 1), jnp.float32), {}
    for ratio, kept in ((0.25, 12), (0.75, 4)):
        graph, state = built(run, mask_ratio=ratio)

        def encode(state, images, keep, graph=graph):
            return nnx.merge(graph, state).encoder.tokens(images, keep, train=True)

        def embed(state, views, keys, graph=graph):
            return nnx.merge(graph, state).embed(views, keys)

        keep = jax.ShapeDtypeStruct((BATCH, kept), jnp.int32)
        flops[ratio] = jax.jit(encode).lower(state, images, keep).cost_analysis()["flops"]
        embeddings = jax.eval_shape(embed, state, run.views(0), run.keys(0))
        assert embeddings["tokens"].shape == (BATCH, kept, 8)
        assert embeddings["prediction"].shape == (BATCH, PATCHES, 4)
    # 12 patches and a class token against 4 and one.
    assert flops[0.75] < 5 / 13 * 1.05 * flops[0.25]


def test_the_decoder_is_told_where_each_patch_was(mae, monkeypatch):
    run, method, _ = mae
    told = []

    def decode(self, tokens, restore, grid):
        told.append(np.asarray(restore))
        return jnp.zeros((*restore.shape, 4))

    monkeypatch.setattr(PatchDecoder, "__call__", decode)
    keys = embedding_keys(run.views(0), 0, run.scalars())
    method.embed(run.views(0), keys)
    order = np.asarray(random_order(keys.sample, PATCHES))
    assert (np.take_along_axis(order, told[0], axis=1) == np.arange(PATCHES)).all()


@pytest.mark.slow
def test_it_learns_what_the_seen_patches_tell_of_the_hidden():
    """Images whose rows of patches have one value each, of variance 1.

    A hidden patch of a row of which another is seen can be predicted, and no other: with 4 of 16
    seen, all but C(12, 4) / C(15, 4) = .36 of them. What knows the place alone has a loss of 1.
    """
    config = config_for("mae").unlock()
    config.encoder.update(width=16, positions="sincos", kernel_init="xavier_uniform")
    config.method.decoder.width = 16
    config.method.normalize_target = False
    run = Run(config)
    values = np.random.default_rng(0).normal(size=(BATCH, 4))
    values = (values - values.mean(0)) / values.std(0)
    images = jnp.float32(np.tile(np.repeat(values, 2, axis=1)[:, :, None, None], (1, 1, 8, 1)))
    views = dataclasses.replace(run.views(0), images=(images,))
    method = build_method(run.config.method, run.config.encoder, run.blueprint.spec, 0)
    graph, params, rest = nnx.split(method, nnx.Param, ...)
    adam = optax.adam(1e-2)

    def loss_of(params, epoch):
        drawn = dataclasses.replace(views, epoch=jnp.full_like(views.epoch, epoch))
        method = nnx.merge(graph, params, rest)
        embeddings = method.embed(drawn, embedding_keys(drawn, 0, run.scalars()))
        return method.objective(embeddings, drawn, KEY, run.scalars())[0]

    def step(carried, epoch):
        params, moments = carried
        loss, slope = jax.value_and_grad(loss_of)(params, epoch)
        change, moments = adam.update(slope, moments)
        return (optax.apply_updates(params, change), moments), loss

    train = quick_jit(lambda carried: jax.lax.scan(step, carried, jnp.arange(300)))
    _, losses = train((params, adam.init(params)))
    assert losses[-50:].mean() < 0.7


def test_what_cannot_be_masked_is_refused():
    run = Run(config_for("mae"))
    with pytest.raises(UserError, match=r"a ConvNet has no patches: choose --config.encoder.name"):
        build_method(run.config.method, convn_group(8, 4), run.blueprint.spec, 0)
    graph, state = built(run, mask_ratio=0.99)
    with pytest.raises(UserError, match=r"mask_ratio=0.99 leaves 0 of 16 patches: choose one"):
        jax.eval_shape(
            lambda state, views, keys: nnx.merge(graph, state).embed(views, keys),
            state,
            run.views(0),
            run.keys(0),
        )
    with pytest.raises(UserError, match=r"--config.method.mask_ratio=0.0 must be above 0"):
        built(run, mask_ratio=0.0)
