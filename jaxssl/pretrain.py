"""Pretrains an encoder: ``python -m jaxssl.pretrain --config FILE --workdir DIR``.

mesh -> data -> method -> state -> restore -> loop. The directory holds all that a later program
needs; the same command again resumes, or says that the run is finished.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Mapping, Sequence

import jax
from absl import flags
from ml_collections import ConfigDict

from jaxssl import cli, distributed
from jaxssl.checkpoint import Checkpoints
from jaxssl.data.examples import Source, identity
from jaxssl.data.splits import check_effects
from jaxssl.distributed import say
from jaxssl.interruption import Interruption
from jaxssl.plan import (
    Plan,
    abstract_arguments,
    differing,
    make_plan,
    missing_in_words,
    resolve,
    same_on_all,
)
from jaxssl.reporting import MetricWriter, Progress, read_metrics
from jaxssl.run_directory import (
    check_outside,
    claim,
    has_config,
    note_resumption,
    owned,
    place,
    watched,
)
from jaxssl.storage import Path
from jaxssl.training.loop import Reporter, filled, owed, train
from jaxssl.training.online import beside
from jaxssl.training.state import TrainState, traced_scalars
from jaxssl.training.step import Step
from jaxssl.words import counted


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
        state, restored = restore_or_create(plan, config.init_seed, checkpoints)
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
        elif jax.process_index() == 0 and (rows := read_metrics(workdir)):
            say(
                f"{workdir} has no checkpoint: starting again from step 0, without the "
                f"{counted(len(rows), 'row')} of metrics.jsonl up to step {rows[-1]['step']}"
            )
        return _run(plan, config, workdir, state, restored, first, checkpoints, interruption)


def _run(
    plan: Plan,
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
    if plan.online is not None:
        step = beside(step, plan.online)
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


def announced(plan: Plan, config: ConfigDict) -> Step:
    """The step, compiled, and a line that says what one step costs and how long that took."""
    begin = time.monotonic()
    arguments = abstract_arguments(config, plan.blueprint, plan.source, plan.mesh)
    lowered = plan.step.lower(*arguments)
    compiled = lowered.compile()
    seconds = f"compiled in {time.monotonic() - begin:.1f} s"
    cost = lowered.cost_analysis()  # None where the backend does not count
    say(f"{cost['flops'] / 1e9:,.3g} GFLOPs a step, {seconds}" if cost else f"step {seconds}")
    return compiled


def finished_in_words(done: int, stop: int) -> str:
    """How far a run is that has nothing left to do."""
    if done == stop:
        return f"step {done} of {stop}"
    return f"it has {counted(done, 'step')} and --config.run.stop_step asks for {stop}"


def restore_or_create(
    plan: Plan, init_seed: int, checkpoints: Checkpoints
) -> tuple[TrainState, bool]:
    """The state of the newest sound checkpoint, or a fresh one; and whether it was restored."""
    fresh = None if plan.online is None else plan.online.create()
    template = dataclasses.replace(plan.blueprint.abstract(plan.mesh), online=fresh)
    if found := checkpoints.restore_newest(template):
        step, state = found
        lacked = fresh is not None and (
            jax.tree.leaves(state.online)[0] is jax.tree.leaves(fresh)[0]
        )
        if lacked:
            say(f"the classifier beside the method begins at step {step}")
        return state, True
    return dataclasses.replace(plan.blueprint.create(init_seed, plan.mesh), online=fresh), False


def _main(values: flags.FlagValues) -> None:
    pretrain(values.config, values.workdir)


if __name__ == "__main__":
    cli.define_config_file()
    flags.DEFINE_string("workdir", None, "Run directory: made, or resumed.", required=True)
    cli.launch(_main)
