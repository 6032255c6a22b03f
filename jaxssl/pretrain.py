"""Pretrains an encoder: ``python -m jaxssl.pretrain --config FILE --workdir DIR``.

mesh -> data -> method -> state -> restore -> loop. The directory holds all that a later program
needs; the same command again resumes, or says that the run is finished.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxssl import cli, distributed
from jaxssl.augment.policies import Policy, check_policy, make_policy, policy_hyper
from jaxssl.checkpoint import Checkpoints
from jaxssl.data.examples import Source, abstract_batch, identity
from jaxssl.data.pipeline import train_batches
from jaxssl.data.splits import Splits
from jaxssl.errors import UserError, choose
from jaxssl.evaluation.monitor import make_monitor
from jaxssl.interruption import Interruption
from jaxssl.methods import METHODS, Method, Spec
from jaxssl.randomness import check_seed
from jaxssl.reporting import MetricWriter, Progress
from jaxssl.run_directory import claim, note_resumption, owned, place
from jaxssl.training.loop import Cadence, Reporter, train
from jaxssl.training.state import Blueprint, TrainState, traced_scalars
from jaxssl.training.step import compile_step, make_epoch_hook, make_step


def pretrain(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    sources: Mapping[str, Source] | None = None,
) -> TrainState:
    """Trains the method of ``config`` in ``workdir``, from its newest checkpoint if it has one.

    Args:
      config: the recipe.
      workdir: run directory, made or resumed: a local path or ``gs://bucket/...``.
      sources: data of your own (`jaxssl.data.sources.array_source`) in place of ``config.data``:
        ``"train"``, ``"validation"`` if the monitor is on, and ``"pretrain"`` if it differs.

    Raises:
      UserError: for whatever the user can mend.
      Interrupted: after SIGINT, SIGTERM or SIGHUP, or if nobody reads the output any more; the
        last step is saved.
    """
    config = resolve(config)
    workdir = place(workdir)
    distributed.check_launched(config.run.distributed)
    if config.run.distributed:
        distributed.initialize()
    mesh = distributed.data_mesh(config.run.num_devices)
    distributed.check_batch_size(config.batch_size, mesh)
    examples = Splits(config, sources)
    source = examples["pretrain"]
    check_policy(config, *source.image_shape[:2])
    with misfits_in_words(config):
        policy = make_policy(config)
        blueprint = Blueprint.from_config(config, make_spec(config, source, policy))
        cadence = Cadence.from_config(config, len(source), blueprint.spec.total_steps)
        monitor = make_monitor(blueprint, config, examples, mesh)
        step = compile_step(make_step(blueprint, policy), mesh)
        batch = abstract_batch(source, config.batch_size, distributed.sharded(mesh))
        jax.eval_shape(step, blueprint.abstract(mesh), batch, traced_scalars(config))
    data = identity(source) | {"from_python": sources is not None}

    lead = jax.process_index() == 0
    run = config.run
    with (
        # Last of all, so that bad input leaves no directory behind.
        owned(workdir),
        Interruption(active=jax.process_count() == 1) as interruption,
        Checkpoints(workdir / "checkpoints", run.keep_last, run.keep_every_steps) as checkpoints,
    ):
        claim(workdir, config, data)
        state, restored = restore_or_create(blueprint, checkpoints, mesh)
        start = int(state.step)
        if start >= cadence.stop:
            beyond = f"it has {start} steps and --config.run.stop_step asks for {cadence.stop}"
            at = f"step {start} of {cadence.stop}"
            say(f"{workdir} is finished: {beyond if start > cadence.stop else at}.")
            return state
        if restored:
            say(f"resuming {workdir} from step {start} of {cadence.stop}")
            note_resumption(workdir, config, start)
        with (
            MetricWriter(
                workdir, start if restored else None, active=lead, wandb=run.wandb
            ) as writer,
            Progress(
                cadence.stop,
                start,
                config.batch_size,
                active=lead,
                on_closed=interruption.output_closed if jax.process_count() == 1 else None,
            ) as progress,
            contextlib.closing(
                train_batches(
                    source,
                    data_seed=config.data_seed,
                    batch_size=config.batch_size,
                    start_step=start,
                    num_steps=cadence.stop,
                    process_index=jax.process_index(),
                    process_count=jax.process_count(),
                    prefetch=run.prefetch,
                    workers=run.workers,
                )
            ) as batches,
        ):
            method = METHODS[config.method.name]
            return train(
                state,
                step_fn=step,
                epoch_hook=make_epoch_hook(blueprint, mesh)
                if method.on_epoch is not Method.on_epoch
                else None,
                hyper=traced_scalars(config),
                batches=batches,
                mesh=mesh,
                cadence=cadence,
                checkpoints=checkpoints,
                monitor=monitor,
                reporter=Reporter(writer, progress, config.batch_size, checkpoints),
                interruption=interruption,
            )


def resolve(config: ConfigDict) -> ConfigDict:
    """The config with its seeds filled in, checked as far as it can be without data.

    Raises:
      UserError: naming the first value that cannot be.
    """
    config = config.copy_and_resolve_references()
    for name in ("init_seed", "data_seed"):
        config[name] = check_seed(name, config.seed if config[name] < 0 else config[name])
    method = choose("method.name", config.method.name, METHODS)
    readers = {
        "every optimizer": ("learning_rate", "weight_decay"),
        f"method.name={config.method.name!r}": method.HYPER,
        f"views.policy={config.views.policy!r}": policy_hyper(config),
    }
    for reader, names in readers.items():
        for name in names:
            if name not in config.hyper:
                raise UserError(
                    f"hyper.{name} is missing and {reader} reads it: give it with "
                    f"--config.hyper.{name}, or in the recipe's hyper group."
                )
    for name, value in config.hyper.items():
        if not math.isfinite(value) or value < 0 or (name == "temperature" and value == 0):
            raise UserError(f"hyper.{name}={value} cannot be: give a finite positive number.")
    if "ema" in config.hyper and config.hyper.ema > 1:
        raise UserError(f"hyper.ema={config.hyper.ema} cannot be: give a share from 0 to 1.")
    positive = {
        "batch_size": config.batch_size,
        "schedule.epochs": config.schedule.epochs,
        "encoder.width": config.encoder.width,
        "run.keep_last": config.run.keep_last,
    }
    for name, value in positive.items():
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{name}={value} cannot be: give a finite positive number.")
    for name, value in config.run.items():
        if value < 0:
            raise UserError(f"run.{name}={value} cannot be: give 0 or more.")
    return config


@contextlib.contextmanager
def misfits_in_words(config: ConfigDict) -> Iterator[None]:
    """What networks, optimizers and losses refuse, and settings that are missing, as UserError."""
    try:
        yield
    except AttributeError as error:
        if not isinstance(error.obj, ConfigDict):
            raise
        groups = {"config": config, **{f"config.{k}": v for k, v in config.items()}}
        where = next((name for name, group in groups.items() if group is error.obj), "config")
        chosen = f", which its name={error.obj.name!r} reads" if "name" in error.obj else ""
        raise UserError(
            f"{where} has no {error.name!r}{chosen}: take a recipe that has it, or write one."
        ) from error
    except (TypeError, ValueError) as error:
        said = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"this config makes no step: {said} (--verbosity=1 shows where)."
        ) from error


def make_spec(config: ConfigDict, source: Source, policy: Policy) -> Spec:
    """What the method may know of the data and the run.

    Raises:
      UserError: if the run would not have a single step.
    """
    # The policy's own word: one that appends channels is believed.
    views = jax.eval_shape(policy, abstract_batch(source, 1), traced_scalars(config))
    total_steps = int(len(source) * config.schedule.epochs // config.batch_size)
    if total_steps == 0:
        raise UserError(
            f"batch_size={config.batch_size} leaves no step in {config.schedule.epochs:g} epochs "
            f"of {len(source)} images: lower batch_size or raise schedule.epochs."
        )
    return Spec(
        num_examples=source.original_size,
        num_classes=source.num_classes,
        channels=views.images[0].shape[-1],
        image_size=source.image_shape[:2],
        total_steps=total_steps,
    )


def restore_or_create(
    blueprint: Blueprint, checkpoints: Checkpoints, mesh: Mesh
) -> tuple[TrainState, bool]:
    """The state of the newest sound checkpoint, or a fresh one; and whether it was restored."""
    if found := checkpoints.restore_newest(blueprint.abstract(mesh)):
        return found[1], True
    return blueprint.create(blueprint.config.init_seed, mesh), False


def say(text: str) -> None:
    """One line for the user, from the first process."""
    if jax.process_index() == 0:
        print(text, flush=True)


def _main(values: flags.FlagValues) -> None:
    pretrain(values.config, values.workdir)


if __name__ == "__main__":
    cli.define_config_file()
    flags.DEFINE_string("workdir", None, "Run directory: made, or resumed.", required=True)
    cli.launch(_main)
