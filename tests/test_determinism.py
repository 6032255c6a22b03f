"""Everything random about a sample depends on the sample, not on what computes it beside what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Run, config_for

from configs.common import view_group
from jaxssl.augment.augmentation import simclr_cifar
from jaxssl.data.pipeline import train_batches
from jaxssl.distributed import data_mesh, global_batch, replicated, sharded
from jaxssl.plan import policy_of
from jaxssl.randomness import Purpose, Split, host_bits, permutation, sample_keys, step_key

# Without optimisation the same operations round otherwise for another shape.
pytestmark = [pytest.mark.shipped, pytest.mark.usefixtures("thorough")]
GOLDEN_PERMUTATION = [0, 2, 5, 4, 6, 7, 3, 1]
GOLDEN_KEY = [1459401769, 146763530]


def views_of(run, batches, num_devices):
    """Views of a sequence of batches, computed on a mesh, concatenated."""
    mesh = data_mesh(num_devices)
    policy = jax.jit(
        run.policy, in_shardings=(sharded(mesh), replicated(mesh)), out_shardings=replicated(mesh)
    )
    made = [policy(global_batch(mesh, batch), {"data_seed": jnp.uint32(3)}) for batch in batches]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *jax.device_get(made))


def batches_of(run, batch_size, processes):
    """The first 256 images of the run's order, read by so many processes."""
    parts = [
        train_batches(
            run.source,
            data_seed=3,
            batch_size=batch_size,
            start_step=0,
            num_steps=256 // batch_size,
            process_index=process,
            process_count=processes,
        )
        for process in range(processes)
    ]
    for together in zip(*parts, strict=True):
        yield jax.tree.map(lambda *rows: np.concatenate(rows), *together)


@pytest.fixture(scope="module")
def run():
    """Every operation on, over digits in colour: each channel has a brightness of its own."""
    made = Run(config_for("simclr"))
    tints = np.random.default_rng(0).integers(100, 256, (len(made.source), 1, 1, 3))
    colour = (made.source.images * tints // 255).astype(np.uint8)
    source = made.source
    object.__setattr__(source, "images", colour)
    object.__setattr__(source, "image_shape", (8, 8, 3))
    views = view_group(simclr_cifar(12))
    with made.config.unlocked():
        made.config.views = views
        views.global_crops.update(blur_p=0.5, blur_kernel_size=3, solarize_p=0.2)
    made.policy = policy_of(made.config)
    return made


@pytest.fixture(scope="module")
def reference(run):
    return views_of(run, batches_of(run, 64, 1), 1)


@pytest.mark.parametrize(
    ("batch_size", "processes", "devices"),
    [
        pytest.param(64, 2, 2, marks=pytest.mark.slow),
        (128, 2, 8),
        pytest.param(64, 1, 8, marks=pytest.mark.slow),
        pytest.param(128, 1, 1, marks=pytest.mark.slow),
    ],
)
def test_views_do_not_depend_on_devices_processes_or_batch_size(
    run, reference, batch_size, processes, devices
):
    views = views_of(run, batches_of(run, batch_size, processes), devices)
    assert (views.index == reference.index).all()
    assert (views.epoch == reference.epoch).all()
    for number in range(2):
        assert views.boxes[number].tobytes() == reference.boxes[number].tobytes()
        assert (views.flipped[number] == reference.flipped[number]).all()
        # Draws are the same to the bit; XLA compiles the image operations anew for another shape
        # and may round otherwise.
        np.testing.assert_allclose(views.images[number], reference.images[number], atol=1e-6)


def test_views_differ_between_epochs_samples_and_views(run):
    batch = next(batches_of(run, 64, 1))
    same_image = {**batch, "image": np.broadcast_to(batch["image"][:1], batch["image"].shape)}
    first = views_of(run, [same_image], 1)
    later = views_of(run, [{**same_image, "epoch": batch["epoch"] + 1}], 1)

    def boxes_differ(a, b):
        return (np.abs(a - b).max(axis=-1) > 1e-3).mean()

    assert boxes_differ(first.boxes[0], later.boxes[0]) > 0.9
    assert boxes_differ(first.boxes[0], first.boxes[1]) > 0.9
    assert boxes_differ(first.boxes[0][:-1], first.boxes[0][1:]) > 0.9


def test_keys_are_a_function_of_each_of_their_words():
    def key(seed=0, purpose=Purpose.VIEW, split=Split.TRAIN, epoch=0, index=0, view=0):
        ones = jnp.ones(1, jnp.int32)
        return jax.random.key_data(
            sample_keys(seed, purpose, split * ones, epoch * ones, index * ones, view)
        ).tobytes()

    changes = [
        {},
        {"seed": 1},
        {"purpose": Purpose.BITS},
        {"split": Split.TEST},
        {"epoch": 1},
        {"index": 1},
        {"view": 1},
    ]
    assert len({key(**change) for change in changes}) == len(changes)
    steps = [step_key(0, Purpose.OBJECTIVE, step) for step in (0, 1)]
    steps += [step_key(0, Purpose.EPOCH, 1), step_key(1, Purpose.OBJECTIVE, 1)]
    assert len({jax.random.key_data(k).tobytes() for k in steps}) == 4


def test_host_streams_never_change():
    """Published orders depend on these very numbers; a change here breaks every paired run."""
    bits = host_bits(5, Purpose.ORDER, Split.TRAIN, 2, 0)
    assert permutation(bits, 8).tolist() == GOLDEN_PERMUTATION
    keys = sample_keys(
        5, Purpose.VIEW, *(jnp.full(1, n, jnp.int32) for n in (Split.TRAIN, 2, 7)), 1
    )
    assert jax.random.key_data(keys)[0].tolist() == GOLDEN_KEY
