"""What a config decides before anything is computed or written: data, method, step, cadence."""

import contextlib
import dataclasses
import fractions
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxssl import distributed, extensions
from jaxssl.augment.policies import (
    Policy,
    check_order,
    check_policy,
    make_finisher,
    make_policy,
    policy_hyper,
    recipes,
)
from jaxssl.data.examples import Source, abstract_batch, identity_differences
from jaxssl.data.pipeline import Batches, check_distinct, drawn_anew, repeats, train_batches
from jaxssl.data.sources import check_view_size
from jaxssl.data.splits import Splits
from jaxssl.data.summary import describe
from jaxssl.errors import UserError
from jaxssl.evaluation import probe
from jaxssl.evaluation.evals import Evaluation, Setting, make_evals
from jaxssl.evaluation.frozen import make_cropped_view
from jaxssl.evaluation.probe_data import Opening, check_probeable
from jaxssl.leaves import described, named_leaves
from jaxssl.methods import Spec, method_class
from jaxssl.programs import programs_of
from jaxssl.randomness import check_seed
from jaxssl.ranges import AT_LEAST_ONE, AT_LEAST_TWO, NON_NEGATIVE, POSITIVE, check_ranges
from jaxssl.run_directory import config_differences
from jaxssl.training.loop import Cadence, EpochHook, Fill
from jaxssl.training.online import Online, make_online
from jaxssl.training.optim import group_hyper
from jaxssl.training.schedules import Schedules, check_hyper
from jaxssl.training.state import Blueprint, TrainState, traced_scalars
from jaxssl.training.step import RESERVED_METRICS
from jaxssl.words import counted

UNSET = -1  # of init_seed and data_seed: as seed
MAX_STEPS = 2**31  # steps are counted in int32


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
      online: the classifier that is trained beside it, or None.
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
    online: Online | None
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
        if found.batches and not drawn_anew(self.source):
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
        schedules = Schedules.from_config(config.hyper, config.epochs, spec.steps_per_epoch)
        programs = programs_of(config, policy, schedules, spec, mesh)
        blueprint = programs.blueprint
        state, batch, hyper = abstract_arguments(config, blueprint, source, mesh)
        distributed.check_fits(state, mesh)
        path = schedules.path(config.hyper, policy_hyper(config.views.policy))
        check_policy(config.views, path, *source.image_shape[:2])
        online = make_online(
            config.online, blueprint, make_cropped_view(config), source, mesh, config.batch_size
        )
        opening = Opening(config, probe.default_config(), sources, splits)
        layer = None if online is None else online.layer
        shared = Setting(blueprint, opening, mesh, config.batch_size, layer)
        evals = make_evals(config.evals, shared, len(source))
        # Traced once, so that what does not fit is refused before the directory is made.
        after, metrics = jax.eval_shape(programs.step, state, batch, hyper)
    check_lasting(state, after)
    check_logged(metrics, evals)
    if programs.fill is not None:
        jax.eval_shape(programs.fill, state, batch, jnp.int32(0), hyper)
    if programs.epoch_hook is not None:
        jax.eval_shape(programs.epoch_hook, state, jnp.int32(0), hyper)
    return Plan(
        mesh=mesh,
        source=source,
        lacking=check_probeable(config, splits),
        splits=splits.known(),
        blueprint=blueprint,
        step=programs.step,
        fill=programs.fill,
        epoch_hook=programs.epoch_hook,
        online=online,
        cadence=Cadence.from_config(config.run, config.batch_size, len(source), spec.total_steps),
        evals=evals,
    )


def abstract_arguments(
    config: ConfigDict, blueprint: Blueprint, source: Source, mesh: Mesh
) -> tuple[Any, ...]:
    """Shapes and places of what a step takes: state, batch, ``hyper``."""
    batch = abstract_batch(source, config.batch_size, distributed.sharded(mesh))
    return blueprint.abstract(mesh), batch, traced_scalars(config)


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
    check_plain(config.method.name, config.normalize)
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


def check_plain(method: str, normalize: ConfigDict) -> None:
    """Raises UserError if images are normalised and the method asks for images in [0, 1]."""
    given = [f"--config.normalize.{name}={value}" for name, value in normalize.items() if value]
    if given and method_class(method).PLAIN_IMAGES:
        raise UserError(
            f"--config.method.name={method} asks for images in [0, 1], and {' and '.join(given)} "
            "moves them out: give --config.normalize.mean='()' and --config.normalize.std='()'."
        )


def check_lasting(before: TrainState, after: TrainState) -> None:
    """Refuses a method whose variables are others after a step: no checkpoint would fit them.

    Raises:
      TypeError: naming the first one, as it is its author's mistake.
    """
    old, new = (
        described(named_leaves(state.params) | named_leaves(state.rest))
        for state in (before, after)
    )
    for path in sorted({*old, *new}):
        one, other = (found.get(path, "missing") for found in (old, new))
        if one != other:
            raise TypeError(
                f"the variable {path} of the method is {one} before a step and {other} after it: "
                "keep what must survive in an nnx.Variable of one shape and dtype."
            )


def check_logged(metrics: Iterable[str], evals: Iterable[str]) -> None:
    """Refuses an evaluation with the name of what a step logs: a resumed run would take it as done.

    Args:
      metrics: names of what a step logs.
      evals: names of the evaluations of the run.

    Raises:
      UserError: naming it.
    """
    for name in evals:
        if name in {*RESERVED_METRICS, *metrics}:
            raise UserError(
                f"--config.evals.{name} has the name of something that every step may log: give "
                "the evaluation another name in the recipe."
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
