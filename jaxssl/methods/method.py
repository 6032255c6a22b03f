"""The contract between a method and everything else.

A method is an ``nnx.Module`` made of an encoder and whatever else it trains or keeps. The training
step calls `embed`, then `objective`, takes the gradient with respect to every ``nnx.Param``, lets
the optimizer move them, and calls `after_update`. What must survive from step to step without
being trained is an ``nnx.Variable`` of another type (`Teacher`, `Queue`, ``nnx.BatchStat`` ...);
a method may assign to those in any of the three.
"""

import dataclasses
from typing import ClassVar

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.errors import UserError
from jaxssl.models import Encoder

Hyper = dict[str, Array]
Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a method may have to know of the data and the run before it can be built.

    Attributes:
      num_examples: examples of the *original* training split, the size of a bank keyed by index.
      num_classes: classes of the training labels, or None where there are none.
      channels: channels of the views.
      image_size: height and width of the canonical image, pixels.
      total_steps: steps of the whole schedule.
    """

    num_examples: int
    num_classes: int | None
    channels: int
    image_size: tuple[int, int]
    total_steps: int


class Method(nnx.Module):
    """Base class of every method.

    Attributes:
      HYPER: names of the traced scalars that the method reads from ``hyper``.
      encoder: the encoder that probes look at.
    """

    HYPER: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        """Keeps the encoder; a subclass builds what else it needs.

        Args:
          config: the ``method`` group of the config.
          encoder: already built.
          spec: what the data and the run are like.
          rngs: source of initial values.
        """
        self.encoder = encoder

    def embed(self, views: Views) -> dict[str, Array]:
        """All network work: a pytree of arrays that lead with the batch, in training mode."""
        raise NotImplementedError

    def objective(
        self, embeddings: dict[str, Array], views: Views, key: Key[Array, ""], hyper: Hyper
    ) -> tuple[Float[Array, ""], Metrics]:
        """All that couples samples: the scalar to minimise and what to log, keyed by the step."""
        raise NotImplementedError

    def after_update(self, hyper: Hyper) -> None:
        """Runs after the optimizer has moved the parameters: EMA, counters."""

    def on_epoch(self, epoch: Int[Array, ""], key: Key[Array, ""]) -> None:
        """Runs before the first step of each epoch: cluster assignments."""

    def represent(self, images: Float[Array, "b h w c"]) -> dict[str, Float[Array, "b d"]]:
        """What a probe may ask for, in evaluation mode: ``pooled``, and a method's own layers."""
        return {"pooled": self.encoder(images, train=False).pooled}


class Teacher(nnx.Variable):
    """A parameter of a network that follows another one and gets no gradient."""


class Queue(nnx.Variable):
    """Embeddings of past batches, or the position in them."""


class Counter(nnx.Variable):
    """How often something has happened, or the key of a stream counted by it."""


def make_teacher(student: nnx.Module) -> nnx.Module:
    """A copy of ``student`` whose parameters are `Teacher` variables; statistics are its own."""
    teacher = nnx.clone(student)
    for _, module in nnx.iter_modules(teacher):
        for name, value in vars(module).items():
            if isinstance(value, nnx.Param):
                setattr(module, name, Teacher(value[...]))
    return teacher


def follow(teacher: nnx.Module, student: nnx.Module, decay: Float[Array, ""]) -> None:
    """Teacher <- decay * teacher + (1 - decay) * student, over parameters alone."""
    target = nnx.to_pure_dict(nnx.state(student, nnx.Param))
    state = nnx.state(teacher, Teacher)
    moved = jax.tree.map(lambda t, s: decay * t + (1 - decay) * s, nnx.to_pure_dict(state), target)
    nnx.replace_by_pure_dict(state, moved)
    nnx.update(teacher, state)


def require_labels(views: Views, method: str) -> Int[Array, " b"]:
    """The labels of a batch.

    Raises:
      UserError: if the data set has none.
    """
    if "label" not in views.targets:
        raise UserError(
            f"method {method} needs labels but the data set has none: choose a labelled set or a "
            "self-supervised method."
        )
    return views.targets["label"]
