"""Pretrains an encoder: ``python -m jaxssl.pretrain --config FILE --workdir DIR``.

mesh -> data -> method -> state -> restore -> loop. The directory holds all that a later program
needs; the same command again resumes, or says that the run is finished.
"""

import contextlib
import dataclasses
import fractions
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxssl import cli, distributed, extensions
from jaxssl.augment.policies import (
    Policy,
    check_order,
    check_policy,
    make_finisher,
    make_policy,
    policy_hyper,
    recipes,
)
from jaxssl.checkpoint import Checkpoints
from jaxssl.data.examples import Source, abstract_batch, identity, identity_differences
from jaxssl.data.pipeline import Batches, check_distinct, repeats, train_batches
from jaxssl.data.sources import check_view_size
from jaxssl.data.splits import Splits, check_effects
from jaxssl.data.summary import describe
from jaxssl.errors import UserError
from jaxssl.evaluation.evals import Evaluation, make_evals
from jaxssl.evaluation.frozen import make_test_view
from jaxssl.evaluation.probe_data import check_probeable
from jaxssl.interruption import Interruption
from jaxssl.methods import Method, Spec, method_class
from jaxssl.randomness import check_seed
from jaxssl.ranges import AT_LEAST_ONE, AT_LEAST_TWO, NON_NEGATIVE, POSITIVE, check_ranges
from jaxssl.reporting import MetricWriter, Progress
from jaxssl.run_directory import (
    check_outside,
    claim,
    config_differences,
    has_config,
    note_resumption,
    owned,
    place,
    watched,
)
from jaxssl.storage import Path
from jaxssl.training.loop import Cadence, EpochHook, Fill, Reporter, filled, owed, train
from jaxssl.training.optim import group_hyper
from jaxssl.training.schedules import Schedules, check_hyper
from jaxssl.training.state import Blueprint, TrainState, traced_scalars
from jaxssl.training.step import Step, compile_step, make_epoch_hook, make_fill, make_step
from jaxssl.words import counted

UNSET = -1  # of init_seed and data_seed: as seed
MAX_STEPS = 2**31  # steps are counted in int32


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
        ``"train"``, ``"validation"`` if something is evaluated on it, and ``"pretrain"`` if it
        differs.

    Raises:
      UserError: for whatever the user can mend.
      Interrupted: after SIGINT, SIGTERM or SIGHUP, or if nobody reads the output any more; the
        last step is saved.
    """
    with missing_in_words(config):
        config = resolve(config)
    workdir = place(workdir)
    if sources is None:
        check_outside(workdir, "--workdir", config.data)
    data = "data from Python" if sources is not None else config.data.name
    cli.announce(f"pretraining {config.method.name} on {data} in {workdir}")
    distributed.check_launched(config.run.distributed)
    if config.run.distributed:
        distributed.initialize()
    if not has_config(workdir):
        check_effects(config.corruption, config.data if sources is None else None)
    plan = distributed.all_can("the run's plan", lambda: make_plan(config, sources))
    content = identity(plan.source) | {"from_python": sources is not None}
    distributed.check_equal("config and data", same_on_all(config, content), differing)
    for line in plan.in_words(config, sources is None):
        say(line)
    with (
        # Last of all, so that bad input leaves no directory behind.
        owned(workdir) as lost,
        Interruption(active=jax.process_count() == 1) as interruption,
        Checkpoints(
            workdir / "checkpoints", config.run.keep_last, config.run.keep_every_steps, lost
        ) as checkpoints,
    ):
        changed = claim(workdir, config, content, plan.blueprint.spec.to_json())
        state, restored = restore_or_create(
            plan.blueprint, config.init_seed, checkpoints, plan.mesh
        )
        start, stop = int(state.step), plan.cadence.stop
        first = owed(plan.evals, plan.cadence, workdir, start) if restored else []
        if start >= stop and not first:
            say(f"{workdir} is finished: {finished_in_words(start, stop)}.")
            return state
        if restored:
            say(f"resuming {workdir} from step {start} of {stop}")
            for clause in changed:
                say(f"computed otherwise than before: {clause}")
            note_resumption(workdir, config, content, plan.blueprint.spec.to_json(), start)
        return _run(plan, config, workdir, state, restored, first, checkpoints, interruption)


def _run(
    plan: "Plan",
    config: ConfigDict,
    workdir: Path,
    state: TrainState,
    restored: bool,
    first: Sequence[str],
    checkpoints: Checkpoints,
    interruption: Interruption,
) -> TrainState:
    """Trains from a state, fresh or restored, to the plan's last step."""
    start, stop = int(state.step), plan.cadence.stop
    step = announced(plan, config) if start < stop else plan.step
    hyper = traced_scalars(config)
    checkpoints.check_owned()  # compilation may have taken minutes
    if plan.fill is not None and not restored:
        say(f"embedding {len(plan.source):,} images once, for what the method starts from")
        with contextlib.closing(plan.batches(config, 0, plan.steps_of_epoch_0)) as batches:
            state = filled(
                state,
                fill=plan.fill,
                hyper=hyper,
                batches=batches,
                mesh=plan.mesh,
                interruption=interruption,
            )
    lead = jax.process_index() == 0
    alone = jax.process_count() == 1
    with (
        MetricWriter(
            workdir, start if restored else None, active=lead, wandb=config.run.wandb
        ) as writer,
        Progress(
            stop,
            start,
            config.batch_size,
            active=lead,
            on_closed=interruption.output_closed if alone else None,
        ) as progress,
        contextlib.closing(plan.batches(config, start, stop)) as batches,
    ):
        return train(
            state,
            step_fn=step,
            epoch_hook=plan.epoch_hook,
            hyper=hyper,
            batches=watched(batches, checkpoints.check_owned, start, plan.cadence.log),
            mesh=plan.mesh,
            cadence=plan.cadence,
            checkpoints=checkpoints,
            evals=plan.evals,
            first=first,
            reporter=Reporter(writer, progress, config.batch_size, checkpoints),
            interruption=interruption,
        )


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run before its directory is touched: everything that a config decides.

    Attributes:
      mesh: the devices.
      source: what is trained on.
      splits: all that the data have, by name.
      lacking: what a later probe would lack, in sentences.
      blueprint: the method and its optimizer.
      step: the jitted `Step`.
      fill: what the method does with all images before the first step, or None.
      epoch_hook: what the method does before an epoch, or None.
      cadence: when what happens.
      evals: what is evaluated during training, by name.
    """

    mesh: Mesh
    source: Source
    splits: Mapping[str, Source]
    lacking: Sequence[str]
    blueprint: Blueprint
    step: Any
    fill: Fill | None
    epoch_hook: EpochHook | None
    cadence: Cadence
    evals: Mapping[str, Evaluation]

    @property
    def steps_of_epoch_0(self) -> int:
        """How many batches hold all images of epoch 0."""
        return -(-len(self.source) // self.cadence.batch_size)

    def batches(self, config: ConfigDict, start: int, stop: int) -> Batches:
        """The rows of the batches of steps start .. stop - 1 that this process reads."""
        return train_batches(
            self.source,
            data_seed=config.data_seed,
            batch_size=config.batch_size,
            start_step=start,
            num_steps=stop,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            prefetch=config.run.prefetch,
            workers=config.run.workers,
        )

    def in_words(self, config: ConfigDict, from_config: bool) -> list[str]:
        """Data, repeated images, devices and parameters, one line each.

        Args:
          config: of the run.
          from_config: whether the data are ``config.data``'s.
        """
        data = config.data.copy_and_resolve_references()
        data.name = data.name if from_config else ""
        shapes = jax.tree.leaves(self.blueprint.abstract(self.mesh).params)
        kind = self.mesh.devices.flat[0].device_kind
        parameters = sum(leaf.size for leaf in shapes)
        devices = f"{self.mesh.size} x {kind}"
        lines = [
            f"data: {describe(self.splits, data)}",
            f"model: {config.encoder.name}, {parameters:,} parameters in all; devices: {devices}",
        ]
        steps = self.blueprint.spec.total_steps
        found = repeats(len(self.source), config.batch_size, config.data_seed, steps)
        if found.batches:
            lines.append(found.in_words(steps))
        return [*lines, *(f"note: {sentence}" for sentence in self.lacking)]


def make_plan(config: ConfigDict, sources: Mapping[str, Source] | None) -> Plan:
    """Opens the data and builds what a resolved config describes; nothing is computed.

    Raises:
      UserError: for whatever does not fit together.
    """
    mesh = distributed.data_mesh(config.run.num_devices)
    distributed.check_batch_size(config.batch_size, mesh)
    splits = splits_of(config, sources)
    source = splits["pretrain"]
    check_view_size(source, config.views.global_crops.size)
    check_distinct(source, config.batch_size)
    check_letterbox(config.views.policy, source)
    check_views(config.method.name, len(recipes(config.views)))
    with missing_in_words(config):
        policy = policy_of(config)
        spec = make_spec(config, source, policy)
        blueprint = Blueprint.from_config(config.method, config.encoder, config.optimizer, spec)
        schedules = Schedules.from_config(config.hyper, config.epochs, spec.steps_per_epoch)
        path = schedules.path(config.hyper, policy_hyper(config.views.policy))
        check_policy(config.views, path, *source.image_shape[:2])
        evals = make_evals(
            config.evals, blueprint, splits, make_test_view(config), mesh, config.batch_size
        )
        make = make_step(
            blueprint,
            policy,
            schedules,
            batch_size=config.batch_size,
            learning_rate_scaling=config.optimizer.scaling,
        )
        step = compile_step(make, mesh)
        # Traced once, so that what does not fit is refused before the directory is made.
        jax.eval_shape(step, *_abstract_arguments(config, blueprint, source, mesh))
    method, fill, hook = method_class(config.method.name), None, None
    if method.fill is not Method.fill:
        fill = make_fill(blueprint, policy, schedules, mesh)
        state, batch, hyper = _abstract_arguments(config, blueprint, source, mesh)
        jax.eval_shape(fill, state, batch, jnp.int32(0), hyper)
    if method.on_epoch is not Method.on_epoch:
        hook = make_epoch_hook(
            blueprint,
            schedules,
            mesh,
            batch_size=config.batch_size,
            learning_rate_scaling=config.optimizer.scaling,
        )
        jax.eval_shape(hook, blueprint.abstract(mesh), jnp.int32(0), traced_scalars(config))
    return Plan(
        mesh=mesh,
        source=source,
        lacking=check_probeable(config, splits),
        splits=splits.known(),
        blueprint=blueprint,
        step=step,
        fill=fill,
        epoch_hook=hook,
        cadence=Cadence.from_config(config.run, config.batch_size, len(source), spec.total_steps),
        evals=evals,
    )


def _abstract_arguments(
    config: ConfigDict, blueprint: Blueprint, source: Source, mesh: Mesh
) -> tuple[Any, ...]:
    batch = abstract_batch(source, config.batch_size, distributed.sharded(mesh))
    return blueprint.abstract(mesh), batch, traced_scalars(config)


def announced(plan: Plan, config: ConfigDict) -> Step:
    """The step, compiled, and a line that says what one step costs and how long that took."""
    begin = time.monotonic()
    arguments = _abstract_arguments(config, plan.blueprint, plan.source, plan.mesh)
    lowered = plan.step.lower(*arguments)
    compiled = lowered.compile()
    seconds = f"compiled in {time.monotonic() - begin:.1f} s"
    cost = lowered.cost_analysis()  # None where the backend does not count
    say(f"{cost['flops'] / 1e9:,.3g} GFLOPs a step, {seconds}" if cost else f"step {seconds}")
    return compiled


def policy_of(config: ConfigDict) -> Policy:
    """The views that a config trains on."""
    finish = make_finisher(config.corruption, config.normalize, config.randbit)
    return make_policy(config.views, finish, order=config.corruption.order)


def splits_of(config: ConfigDict, sources: Mapping[str, Source] | None = None) -> Splits:
    """The examples of a config, or of ``sources``, with the config's corruption."""
    return Splits(config.data, config.corruption, config.views.global_crops.size, sources)


def resolve(config: ConfigDict) -> ConfigDict:
    """The config with its seeds filled in, checked as far as it can be without data.

    Raises:
      UserError: naming the first value that is out of range.
    """
    config = config.copy_and_resolve_references()
    config.data.data_dir = absolute(config.data.data_dir)
    if "digits_dir" in config.data.get("compose", {}):
        config.data.compose.digits_dir = absolute(config.data.compose.digits_dir)
    for name in ("init_seed", "data_seed"):
        used = "seed" if config[name] == UNSET else name
        config[name] = check_seed(f"--config.{used}", config[used])
    check_ranges("", config, {"batch_size": AT_LEAST_TWO, "epochs": POSITIVE})
    numbers = [name for name, value in config.run.items() if not isinstance(value, bool)]
    check_ranges("run", config.run, dict.fromkeys(numbers, NON_NEGATIVE))
    check_ranges("run", config.run, {"keep_last": AT_LEAST_ONE})
    method = method_class(config.method.name)
    check_hyper(
        config.hyper,
        config.epochs,
        {
            "every optimizer": {"learning_rate": NON_NEGATIVE, "weight_decay": NON_NEGATIVE},
            f"--config.method.name={config.method.name}": method.HYPER,
            f"--config.views.policy={config.views.policy}": policy_hyper(config.views.policy),
            "--config.optimizer.groups": group_hyper(config.optimizer.groups),
        },
    )
    recipes(config.views)
    check_order(config.views.policy, config.corruption.order)
    return config


def absolute(folder: str) -> str:
    """Where data lie, whatever the working directory of a later start; "" stays."""
    return os.path.abspath(os.path.expanduser(folder)) if folder and "://" not in folder else folder


def same_on_all(config: ConfigDict, data: Mapping[str, Any]) -> dict[str, Any]:
    """What all processes of a job must agree on, as JSON gives it back."""
    own = extensions.digests(extensions.noted(config))
    told = {"config": config.to_dict(), "data": {**data, "name": "", **own}}
    return json.loads(json.dumps(told, default=str))


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Where two of `same_on_all` differ, in words."""
    first, second = (ConfigDict(told["config"]) for told in (one, other))
    return [
        *config_differences(first, second, ignore=()),
        *identity_differences(one["data"], other["data"]),
    ]


@contextlib.contextmanager
def missing_in_words(config: ConfigDict) -> Iterator[None]:
    """Settings that are missing from a config, as UserError; all other errors as they are."""
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


def make_spec(config: ConfigDict, source: Source, policy: Policy) -> Spec:
    """What the method may know of the data and the run.

    Raises:
      UserError: if the run would not have a single step.
    """
    schedules = Schedules.from_config(config.hyper, config.epochs, 1)
    # The policy's own word: one that appends channels is believed.
    views = jax.eval_shape(
        lambda batch, hyper: policy(batch, schedules.at(hyper, 0)),
        abstract_batch(source, 1),
        traced_scalars(config),
    )
    total_steps = int(len(source) * config.epochs // config.batch_size)
    if total_steps >= MAX_STEPS:
        raise UserError(
            f"--config.epochs={config.epochs:g} of {counted(len(source), 'image')} are "
            f"{total_steps:.3g} steps, which must be fewer than {MAX_STEPS}: lower it."
        )
    if total_steps == 0:
        raise UserError(
            f"--config.batch_size={config.batch_size} leaves no step in "
            f"--config.epochs={config.epochs:g} of {counted(len(source), 'image')}: lower the one, "
            "or raise the other."
        )
    return Spec(
        num_examples=source.original_size,
        num_classes=source.num_classes,
        channels=views.images[0].shape[-1],
        image_size=source.image_shape[:2],
        total_steps=total_steps,
        steps_per_epoch=fractions.Fraction(len(source), config.batch_size),
    )


def check_views(method: str, count: int) -> None:
    """Raises UserError unless a method takes so many views."""
    takes = method_class(method).VIEWS
    if takes not in (None, count):
        raise UserError(
            f"--config.method.name={method} takes {counted(takes, 'view')} and the config makes "
            f"{count}: set "
            f"--config.views.global_crops.count={takes} and no local crops."
        )


def check_letterbox(policy: str, source: Source) -> None:
    """Refuses a square of a share of the picture where pictures differ in aspect.

    Raises:
      UserError: naming the policy.
    """
    letterboxed = source.canonical is not None and source.canonical.fit == "letterbox"
    if letterboxed and "patch_area" in policy_hyper(policy):
        raise UserError(
            f"--config.views.policy={policy} cuts a square of a share of the picture, which a long "
            "one cannot hold, and --config.data.fit=letterbox keeps long pictures: use "
            "--config.data.fit=crop."
        )


def finished_in_words(done: int, stop: int) -> str:
    """How far a run is that has nothing left to do."""
    if done == stop:
        return f"step {done} of {stop}"
    return f"it has {counted(done, 'step')} and --config.run.stop_step asks for {stop}"


def restore_or_create(
    blueprint: Blueprint, init_seed: int, checkpoints: Checkpoints, mesh: Mesh
) -> tuple[TrainState, bool]:
    """The state of the newest sound checkpoint, or a fresh one; and whether it was restored."""
    if found := checkpoints.restore_newest(blueprint.abstract(mesh)):
        return found[1], True
    return blueprint.create(init_seed, mesh), False


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
