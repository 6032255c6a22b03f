"""Checkpoints on disk. The only file that knows Orbax.

Orbax is imported where the first checkpoint is read or written, not before: that takes a third of a
second, which a program would otherwise spend before its first word.

A checkpoint is a directory ``<step>/`` that holds the leaves of a pytree under flat names
(``params/encoder/conv/kernel``), so that any part of it can be read back onto any devices without
the code that wrote it::

    <step>/state/...       the arrays, as Orbax writes them
    <step>/leaves.json     name -> shape and dtype of each leaf
    <step>/manifest.json   size and SHA-256 of each file above; see `jaxssl.manifest`
"""

import contextlib
import logging as stdlib_logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from absl import logging

from jaxssl.distributed import agree, all_or_none
from jaxssl.errors import UserError
from jaxssl.leaves import check_structure, described, named_leaves, not_finite, struct_of
from jaxssl.manifest import AFTERWARDS, LEAVES, MANIFEST, damage_of, is_complete, seal
from jaxssl.storage import Path, as_path, is_local, read_json
from jaxssl.upgrade import dropped, saved_names
from jaxssl.words import counted

_ITEM = "state"
_BESIDE = "online/"  # leaves that a checkpoint may lack or have alone: the method's do without
_ATTEMPTS = 20  # to read a checkpoint of a run that goes on and removes old ones
_NO_ROOM = ("No space left", "ENOSPC", "quota", "EDQUOT", "File too large", "EFBIG")


class CheckpointReader:
    """Reads the checkpoints of a directory and never changes it.

    Args:
      directory: where the ``<step>/`` directories are; a program passes ``<workdir>/checkpoints``.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        path = as_path(directory, "checkpoints")
        # Orbax takes no relative path.
        self.directory = path.absolute() if isinstance(path, pathlib.Path) else path
        self._damaged: list[int] = []

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending, as this process sees them.

        Unfinished ones do not count.
        """
        if not self.directory.is_dir():
            return []
        return sorted(int(d.name) for d in self.directory.iterdir() if self._is_finished(d))

    def _is_finished(self, folder: Path) -> bool:
        if not folder.name.isdecimal():
            return False
        # In the cloud a checkpoint has its name from the beginning, and these files at the end.
        return is_local(folder) or any((folder / n).exists() for n in (MANIFEST, *AFTERWARDS))

    def newest_in_words(self) -> str:
        """A clause on what a run that fails has left, for the end of a message."""
        steps = self.steps()
        return f"the checkpoint of step {steps[-1]} is intact" if steps else "none was saved before"

    def shapes(self) -> dict[str, str]:
        """Shapes of the leaves of a checkpoint, ``float32[3,3,1,4]``, by name: all have the same.

        Every process of a job calls it.

        Raises:
          UserError: if none can be read.
        """

        def read() -> dict[str, str]:
            for step in reversed(self.steps()):
                with contextlib.suppress(OSError, ValueError):  # damaged, or just removed
                    return dict(read_json(self.directory / str(step) / LEAVES))
            raise self._none_here()

        return agree("the shapes of a checkpoint", read)

    def _none_here(self) -> UserError:
        return UserError(
            f"{self.directory} holds no checkpoint of jaxssl: "
            "name the directory of a run that has saved one."
        )

    def restore(self, template: Any, step: int | None = None) -> tuple[int, Any]:
        """Reads a whole state.

        Args:
          template: pytree of the state's structure. Its leaves carry shape, dtype and ``sharding``
            (`jax.ShapeDtypeStruct` or arrays); a leaf without a sharding goes to the first local
            device. The devices need not be those that saved.
          step: the step to read; None reads the newest undamaged one, with a warning in the log
            for each damaged one passed over.

        Returns:
          (step, state), the state bit for bit as saved, all leaves `jax.Array`. Leaves of
          ``online`` that the checkpoint lacks stay as the template has them, and those that it
          alone has are left out.

        Every process of a job calls it: process 0 chooses and hashes, the others read its choice.

        Raises:
          UserError: on every process, if there is no checkpoint, the one asked for is absent or
            damaged, all are damaged, or one is of a newer format, which is left as it is; if a
            process does not see the one chosen; or if the state saved has other leaves than the
            template.
        """
        return self._restore(template, step, partial=False)

    def restore_partial(self, template: Any, step: int | None = None) -> tuple[int, Any]:
        """Reads some leaves of a state and nothing else.

        Args:
          template: like that of `restore`, with the leaves wanted alone, under the names they have
            in the whole: ``{"params": {"encoder": ...}}``. Only names count, not container types.
          step: as in `restore`.

        Returns:
          (step, tree of the template's structure).

        Raises:
          UserError: as `restore`; leaves that the template leaves out are no reason.
        """
        return self._restore(template, step, partial=True)

    def _restore(self, template: Any, step: int | None, partial: bool) -> tuple[int, Any]:
        for _ in range(_ATTEMPTS):
            chosen = agree("the checkpoint to read", lambda: self._choose(step))
            folder = self.directory / str(chosen)
            all_or_none("the checkpoint to read", self._unseen(folder))
            try:
                state = _read(folder, template, partial)
            except UserError:
                raise
            except Exception:
                if jax.process_count() > 1 or is_complete(folder):
                    raise
            else:
                if jax.process_count() > 1 or is_complete(folder):
                    return chosen, state
            # The run that it is of goes on, and has removed it meanwhile.
            if step is not None:
                raise UserError(f"--step={step} of {self.directory} is gone: choose another.")
        raise UserError(
            f"{self.directory} changes faster than it can be read: give --step with one that the "
            "run keeps, or try again later."
        )

    def _unseen(self, folder: Path) -> str | None:
        if jax.process_count() == 1 or (folder / LEAVES).exists():
            return None
        return (
            f"does not see {folder}, which process 0 chose: name a directory on storage that all "
            "processes share."
        )

    def _choose(self, step: int | None) -> int:
        steps = self.steps()
        if not any((self.directory / str(s) / MANIFEST).exists() for s in steps):
            raise self._none_here()
        if step is not None:
            if step not in steps:
                raise UserError(f"--step={step} is not in {self.directory}: choose one of {steps}.")
            if damage := damage_of(self.directory / str(step)):
                raise UserError(
                    f"checkpoint {self.directory / str(step)} is damaged ({damage}): "
                    f"choose another --step of {steps}."
                )
            return step
        for _ in range(_ATTEMPTS):
            for candidate in reversed(steps):
                damage = damage_of(self.directory / str(candidate))
                if damage is None:
                    return candidate
                if self.steps()[-1:] != steps[-1:]:
                    break  # a run that still writes has saved another and removed this one
                if candidate not in self._damaged:
                    self._damaged.append(candidate)
                logging.warning(
                    "checkpoint %s is damaged (%s): passed over for the one before.",
                    self.directory / str(candidate),
                    damage,
                )
            else:
                break
            steps = self.steps()
        raise UserError(
            f"{self.directory} has {counted(len(steps), 'checkpoint')} and none that is sound: "
            "restore one from a copy, or start in a new --workdir."
        )


class Checkpoints(CheckpointReader):
    """Reads and writes the checkpoints of one run; one writer a directory.

    Saving is asynchronous: `save` returns once the state has been copied from the devices. What
    goes wrong afterwards is raised by the next `save`, by `wait` or by `close`.

    Args:
      directory: as in `CheckpointReader`; made by the first save.
      keep_last: how many of the newest checkpoints to keep, >= 1.
      keep_every: also keep each checkpoint whose step is a multiple of this; 0 keeps no others.
      lost: what took the directory from this run, a clause, or None: `run_directory.owned`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep_last: int,
        keep_every: int,
        lost: Callable[[], str | None] = lambda: None,
    ) -> None:
        super().__init__(directory)
        if keep_last < 1:
            raise UserError(f"--config.run.keep_last={keep_last} must be at least 1.")
        if keep_every < 0:
            raise UserError(f"--config.run.keep_every_steps={keep_every} must be at least 0.")
        self._keep_last, self._keep_every = keep_last, keep_every
        self._manager: Any = None  # Orbax's CheckpointManager, once something was saved
        self._seal: Callable[[], None] = lambda: None
        self._lost = lost
        self._let_go = False  # whether it is known to be lost
        self._sound: int | None = None  # the newest step that this run knows to be saved

    def restore_newest(self, template: Any) -> tuple[int, Any] | None:
        """`restore`, or None on every process if process 0 sees no checkpoint yet."""
        if not agree("whether there is a checkpoint", lambda: bool(self.steps())):
            return None
        self._sound, state = self.restore(template)
        return self._sound, state

    def check_owned(self) -> None:
        """Raises UserError, on every process, if the directory is not this run's any more.

        Every process of a run calls it.
        """

        def look() -> None:
            if sentence := self._loss():
                raise UserError(sentence)

        try:
            agree("the run directory", look)
        except UserError:
            self._let_go = True
            raise

    def _loss(self) -> str | None:
        """That the directory is lost, in a sentence; None if it is not."""
        if (clause := self._lost()) is None:
            return None
        self._let_go = True
        last = "no step" if self._sound is None else f"step {self._sound} as the last"
        return (
            f"stopped because {clause} while this run wrote to it, which has saved {last}: give "
            "the place where it lies now as --workdir to go on, once nobody else writes there."
        )

    def save(self, step: int, state: Any) -> bool:
        """Saves a state; every process of a run calls it.

        Args:
          step: number of updates behind the state; not below the newest checkpoint's.
          state: any pytree of arrays (float, integer, bool, typed keys) and Python numbers, none
            of them empty. Over several processes: global arrays only. May be donated afterwards.

        Returns:
          False if the step was saved before (nothing is written), else True.

        Raises:
          UserError: a leaf is not finite (nothing is written); the disk is full, now or during the
            save before; the directory has later steps, or is lost (see `check_owned`). Earlier
            checkpoints stay as they are.
        """
        import orbax.checkpoint as ocp

        self.check_owned()
        leaves = named_leaves(state)
        if name := not_finite(leaves):
            raise UserError(
                f"the state of step {step} is not finite (first in {name}) and was not saved: "
                "lower --config.hyper.learning_rate and start in a new --workdir; "
                f"{self.newest_in_words()}."
            )
        with self._disk_errors():
            manager = self._open()
            newest = max(manager.all_steps(), default=-1)
            if newest == step:
                return False
            if newest > step:
                raise UserError(
                    f"{self.directory} has step {newest} already, so step {step} cannot be saved "
                    "there: resume from the newest step or use a new directory."
                )
            manager.wait_until_finished()  # the callback of the save before reads `_seal`
            saved = described(leaves)
            self._seal = lambda: self._complete(step, saved)
            manager.save(
                step, args=ocp.args.Composite(**{_ITEM: ocp.args.PyTreeSave(leaves)}), force=True
            )
        return True

    def wait(self) -> None:
        """Returns, on every process, once all saves are on disk; raises what went wrong."""
        if self._manager is not None:
            with self._disk_errors():
                self._manager.wait_until_finished()
                self._manager.check_for_errors()
            self.check_owned()

    def close(self) -> None:
        """`wait`, then gives up the threads; the object can still read."""
        manager, self._manager = self._manager, None
        if manager is not None:
            try:
                with self._disk_errors():
                    manager.close()
            except Exception:
                if not self._let_go:  # else that was said
                    raise
            finally:
                logging.get_absl_logger().removeFilter(_is_no_traceback_of_orbax)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self) -> Any:
        import orbax.checkpoint as ocp

        if self._manager is None:
            self._set_damaged_aside()
            logging.get_absl_logger().addFilter(_is_no_traceback_of_orbax)
            policies = [ocp.checkpoint_managers.LatestN(self._keep_last)]
            if self._keep_every:
                policies.append(ocp.checkpoint_managers.EveryNSteps(self._keep_every))
            self._manager = ocp.CheckpointManager(
                self.directory,
                item_names=(_ITEM,),
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
                    cleanup_tmp_directories=True,
                    async_options=ocp.AsyncOptions(
                        # Called on process 0 when all files are complete, before the rename.
                        post_finalization_callback=lambda: self._seal()
                    ),
                ),
            )
        return self._manager

    def _complete(self, step: int, description: Mapping[str, str]) -> None:
        if sentence := self._loss():  # what was made again at the old place is no checkpoint
            raise RuntimeError(sentence)
        seal(self._unfinished(step), step, description)
        self._sound = step

    def _unfinished(self, step: int) -> Path:
        # In the cloud a checkpoint is written where it stays.
        found = list(self.directory.glob(f"{step}.orbax-checkpoint-tmp*"))
        (folder,) = found or [self.directory / str(step)]
        return folder

    def _set_damaged_aside(self) -> None:
        """Renames what `restore` passed over: Orbax would count it and skip steps before it."""

        def rename() -> None:
            for step in self._damaged:  # process 0 alone knows them
                path = self.directory / str(step)
                path.rename(_unused(path.with_name(f"{step}.damaged")))
            self._damaged = []

        agree("the setting aside of damaged checkpoints", rename)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turns a write that found no room or no directory, whoever met it, into a UserError."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            if sentence := self._loss():
                raise UserError(sentence) from error
            if any(sign in str(error) for sign in _NO_ROOM):
                raise UserError(
                    f"there was no room for a checkpoint in {self.directory}: "
                    f"free space there and run it again; {self.newest_in_words()}."
                ) from error
            raise


def _unused(path: Path) -> Path:
    candidate, number = path, 1
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def _read(folder: Path, template: Any, partial: bool) -> Any:
    """The leaves of a checkpoint that the template names, in its structure."""
    import orbax.checkpoint as ocp

    form = read_json(folder / MANIFEST)["format"]
    named = named_leaves(template)
    before = saved_names(form, list(named))
    wanted = {before[name]: struct_of(leaf) for name, leaf in named.items()}
    saved = {
        name: shape
        for name, shape in read_json(folder / LEAVES).items()
        if name not in dropped(form) and (name in wanted or not name.startswith(_BESIDE))
    }
    apart = {name for name in wanted if name.startswith(_BESIDE) and name not in saved}
    wanted = {name: leaf for name, leaf in wanted.items() if name not in apart}
    check_structure(folder, described(wanted), saved, partial)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        leaves = reader.restore(
            os.fspath(folder / _ITEM),
            args=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            ),
        )
    found = [leaves.get(before[name], leaf) for name, leaf in named.items()]
    return jax.tree.unflatten(jax.tree.structure(template), found)


def _is_no_traceback_of_orbax(record: stdlib_logging.LogRecord) -> bool:
    """Orbax logs each failure with several tracebacks and then raises it: once is enough."""
    return not (record.exc_info and "orbax" in pathlib.Path(record.pathname).parts)
