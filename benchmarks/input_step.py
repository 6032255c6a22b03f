"""SimCLR's views against its training step on one device of whatever kind JAX sees."""

import argparse
import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from side_by_side import time_alternating

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from configs.common import view_group
from configs.pretrain import simclr
from jaxssl.augment.augmentation import simclr_imagenet
from jaxssl.data.pipeline import training_rows
from jaxssl.data.sources import array_source
from jaxssl.distributed import data_mesh, global_batch
from jaxssl.plan import make_spec, policy_of, resolve
from jaxssl.randomness import Split
from jaxssl.training.schedules import Schedules
from jaxssl.training.state import Blueprint, traced_scalars
from jaxssl.training.step import compile_step, make_step


def against_a_step(images: np.ndarray, arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of the views alone, of the step given them, and of both compiled as one.

    Args:
      images: uint8, a batch.
      arguments: batch, size of the views, encoder, width, dtype; rounds, and steps in each.
    """
    config = simclr.get_config(f"batch={arguments.batch},width={arguments.width}")
    with config.unlocked():
        config.views = view_group(simclr_imagenet(arguments.size))
    config.encoder.name, config.encoder.stem = arguments.encoder, "imagenet"
    config.encoder.dtype = arguments.dtype
    config = resolve(config)
    policy, hyper, mesh = policy_of(config), traced_scalars(config), data_mesh(1)
    source = array_source("photographs", Split.TRAIN, images, {})
    spec = make_spec(config, source, policy)
    blueprint = Blueprint.from_config(config.method, config.encoder, config.optimizer, spec)
    schedules = Schedules.from_config(config.hyper, config.epochs, spec.steps_per_epoch)
    rows = training_rows(0, config.batch_size, len(source), config.data_seed)
    batch = global_batch(mesh, source.gather(*rows))
    now = schedules.at(hyper, 0)
    augment = jax.jit(policy).lower(batch, now).compile()
    views = {"views": jax.block_until_ready(augment(batch, now))}

    def stepper(policy: Callable, batch: dict[str, Any]) -> Callable[[int], None]:
        state = blueprint.create(config.init_seed, mesh)
        step = make_step(
            blueprint,
            policy,
            schedules,
            batch_size=config.batch_size,
            learning_rate_scaling=config.optimizer.scaling,
        )
        step = compile_step(step, mesh).lower(state, batch, hyper).compile()
        held = [state]

        def run(steps: int) -> None:
            for _ in range(steps):
                held[0], _ = step(held[0], batch, hyper)
            jax.block_until_ready(held[0])

        run(1)
        return run

    def views_alone(steps: int) -> None:
        for _ in range(steps):
            made = augment(batch, now)
        jax.block_until_ready(made)

    times = time_alternating(
        {
            "views alone": views_alone,
            "step, views given": stepper(lambda batch, _: batch["views"], views),
            "step, views made": stepper(policy, batch),
        },
        arguments.rounds,
        arguments.steps,
    )
    found = {"encoder": arguments.encoder, "batch": arguments.batch, "dtype": arguments.dtype}
    found |= {name: round(statistics.median(values), 3) for name, values in times.items()}
    found["share_of_step"] = found["views alone"] / found["step, views given"]
    found["goal_of_a_tenth"] = "met" if found["share_of_step"] <= 0.1 else "missed"
    return found
