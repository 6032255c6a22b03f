"""What a config compiles to, shared by the runs of a process that differ in traced numbers alone.

Seeds and the numbers of ``config.hyper`` are arguments of these programs, so the members of a study
take turns through one executable.
"""

import collections
import dataclasses
import json
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxssl import extensions
from jaxssl.augment.policies import Policy
from jaxssl.compilation import compiler_options
from jaxssl.methods import Method, Spec, method_class
from jaxssl.training.loop import EpochHook, Fill
from jaxssl.training.schedules import Schedules
from jaxssl.training.state import Blueprint
from jaxssl.training.step import compile_step, make_epoch_hook, make_fill, make_step

_READ = (
    "method",
    "encoder",
    "optimizer",
    "views",
    "corruption",
    "normalize",
    "randbit",
    "batch_size",
)
_MOST = 8  # kept; an executable may hold memory of its device

_kept: collections.OrderedDict[str, "Programs"] = collections.OrderedDict()


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs of a run, jitted over its mesh and compiled when first called.

    Attributes:
      blueprint: the method and its optimizer.
      step: the `Step`.
      fill: what the method does with all images before the first step, or None.
      epoch_hook: what the method does before an epoch, or None.
    """

    blueprint: Blueprint
    step: Any
    fill: Fill | None
    epoch_hook: EpochHook | None


def programs_of(
    config: ConfigDict, policy: Policy, schedules: Schedules, spec: Spec, mesh: Mesh
) -> Programs:
    """The programs of a config: those of an earlier run of this process if they are the same.

    Args:
      config: resolved; `_READ` of it decide.
      policy: its views.
      schedules: of its ``hyper``.
      spec: what the data and the run are like.
      mesh: the devices.

    Raises:
      UserError: if the method, the encoder or the optimizer does not fit.
    """
    told = {name: getattr(config, name) for name in _READ}
    key = json.dumps(
        {
            **ConfigDict(told).to_dict(),
            "own": extensions.digests(extensions.noted(config)),
            "schedules": str(schedules),
            "spec": spec.to_json(),
            "devices": str(mesh.devices.tolist()),
            "options": compiler_options(mesh),
            "x64": jax.config.read("jax_enable_x64"),
        },
        sort_keys=True,
        default=str,
    )
    if key not in _kept:
        _kept[key] = _built(config, policy, schedules, spec, mesh)
    _kept.move_to_end(key)
    while len(_kept) > _MOST:
        _kept.popitem(last=False)
    return _kept[key]


def forget() -> None:
    """Later runs build everything anew, as after code has changed."""
    _kept.clear()


def _built(
    config: ConfigDict, policy: Policy, schedules: Schedules, spec: Spec, mesh: Mesh
) -> Programs:
    blueprint = Blueprint.from_config(config.method, config.encoder, config.optimizer, spec)
    scaling = {
        "batch_size": config.batch_size,
        "learning_rate_scaling": config.optimizer.scaling,
    }
    method, fill, hook = method_class(config.method.name), None, None
    if method.fill is not Method.fill:
        fill = make_fill(blueprint, policy, schedules, mesh)
    if method.on_epoch is not Method.on_epoch:
        hook = make_epoch_hook(blueprint, schedules, mesh, **scaling)
    step = compile_step(make_step(blueprint, policy, schedules, **scaling), mesh)
    return Programs(blueprint, step, fill, hook)
