"""The contract between a method and everything else.

A method is an ``nnx.Module`` made of an encoder and whatever else it trains or keeps. The training
step calls `embed`, then `objective`, takes the gradient with respect to every ``nnx.Param``, lets
the optimizer move them, and calls `after_update`. What must survive from step to step without
being trained is an ``nnx.Variable`` of another type (`Teacher`, `Bank`, ``nnx.BatchStat`` ...);
a method may assign to those in any of the three, and in the optional `fill` and `on_epoch`.
"""

import dataclasses
import fractions
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from jaxssl.augment.views import Views
from jaxssl.errors import UserError
from jaxssl.models import Encoder, ProjectionHead
from jaxssl.ranges import Ranges

Hyper = dict[str, Array]
Metrics = dict[str, Float[Array, ""]]
Layers = dict[str, Array]
Projections = tuple[Float[Array, "b d"], ...]  # one array a view


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a method may have to know of the data and the run before it can be built.

    Attributes:
      num_examples: examples of the *original* training split, the size of a bank keyed by index.
      num_classes: classes of the training labels, or None where there are none.
      channels: channels of the views.
      image_size: height and width of the canonical image, pixels.
      total_steps: steps of the whole run.
      steps_per_epoch: images trained on over images a step, not rounded; a fraction, so that
        epochs can be counted in integers.
    """

    num_examples: int
    num_classes: int | None
    channels: int
    image_size: tuple[int, int]
    total_steps: int
    steps_per_epoch: fractions.Fraction | float | int

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        exact = fractions.Fraction(self.steps_per_epoch)
        return dataclasses.asdict(self) | {
            "image_size": list(self.image_size),
            "steps_per_epoch": [exact.numerator, exact.denominator],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Spec":
        """The inverse of `to_json`."""
        return cls(
            **{
                **content,
                "image_size": tuple(content["image_size"]),
                "steps_per_epoch": fractions.Fraction(*content["steps_per_epoch"]),
            }
        )


class Keys(NamedTuple):
    """What the networks of a method may draw from.

    Attributes:
      sample: one key an image [B], a function of (data seed, split, epoch, index): for masks and
        noise, which must not depend on who else is in the batch.
      step: one key, a function of (init seed, step): for what concerns the batch as a whole, such
        as a permutation.
    """

    sample: Key[Array, " b"]
    step: Key[Array, ""]


class Method(nnx.Module):
    """Base class of every method.

    Attributes:
      HYPER: the scalars that the method reads from ``hyper``, with their ranges.
      SETTINGS: the numbers that it reads from ``config.method``, with their ranges.
      VIEWS: how many views it takes; None: any number.
      PLAIN_IMAGES: whether its loss asks for images in [0, 1], which are not normalised.
      encoder: the encoder that probes look at.
    """

    HYPER: ClassVar[Ranges] = {}
    SETTINGS: ClassVar[Ranges] = {}
    VIEWS: ClassVar[int | None] = None
    PLAIN_IMAGES: ClassVar[bool] = False

    def __init__(self, config: ConfigDict, encoder: Encoder, spec: Spec, rngs: nnx.Rngs):
        """Keeps the encoder; a subclass builds what else it needs.

        Args:
          config: the ``method`` group of the config.
          encoder: already built.
          spec: what the data and the run are like.
          rngs: source of initial values.
        """
        self.encoder = encoder

    def embed(self, views: Views, keys: Keys) -> Any:
        """All network work: a pytree of arrays that lead with the batch, in training mode."""
        raise NotImplementedError

    def objective(
        self, embeddings: Any, views: Views, key: Key[Array, ""], hyper: Hyper
    ) -> tuple[Float[Array, ""], Metrics]:
        """All that couples samples: the scalar to minimise and what to log, keyed by the step."""
        raise NotImplementedError

    def watched(self, embeddings: Any) -> tuple[Float[Array, "..."], ...]:
        """The embeddings whose spread tells a collapse, a tuple of arrays [..., D]; empty here."""
        return ()

    def after_update(self, hyper: Hyper) -> None:
        """Runs after the optimizer has moved the parameters: EMA, counters."""

    def fill(self, embeddings: Any, views: Views) -> None:
        """Runs before the first step of a run, for each batch of epoch 0: a bank's first rows.

        A method that defines it has all training images embedded once with the initial weights:
        batch k with the views and keys of step k. The last batch may hold images of epoch 1 too
        (`jaxssl.methods.queue.put_rows` settles which row stays). What `embed` assigns in this
        pass, such as BatchNorm's statistics, is dropped; what this method assigns stays.
        """

    def on_epoch(self, epoch: Int[Array, ""], key: Key[Array, ""], hyper: Hyper) -> None:
        """Runs on the mesh before the first step of each epoch: cluster assignments."""

    def represent(self, images: Float[Array, "b h w c"]) -> Layers:
        """Every layer that a program may ask for by name, in evaluation mode.

        Vectors [B, D], or maps [B, h, w, D]: ``pooled`` and ``stage1``, ``stage2`` ... of the
        encoder; a subclass adds its own. What is not asked for is not computed under ``jit``.
        """
        return encoder_layers(self.encoder, images)


def encoder_layers(encoder: Encoder, images: Float[Array, "b h w c"]) -> Layers:
    """``pooled`` and the maps ``stage1``, ``stage2`` ... of an encoder, in evaluation mode."""
    stages, pooled = encoder(images, train=False)
    return {"pooled": pooled, **{f"stage{n}": stage for n, stage in enumerate(stages, 1)}}


def head_layers(head: ProjectionHead, pooled: Float[Array, "b d"]) -> Layers:
    """A head's hidden layers ``head1``, ``head2`` ... and its output, the ``projection``."""
    *hidden, output = head.layers(pooled, train=False)
    return {**{f"head{n}": layer for n, layer in enumerate(hidden, 1)}, "projection": output}


def projected_layers(
    encoder: Encoder, head: ProjectionHead, images: Float[Array, "b h w c"]
) -> Layers:
    """`encoder_layers` and, of the pooled features, `head_layers`."""
    layers = encoder_layers(encoder, images)
    return {**layers, **head_layers(head, layers["pooled"])}


def teacher_layers(
    encoder: Encoder, head: ProjectionHead, images: Float[Array, "b h w c"]
) -> Layers:
    """A teacher's ``teacher`` (its encoder's pooled features) and ``teacher_projection``."""
    pooled = encoder(images, train=False).pooled
    return {"teacher": pooled, "teacher_projection": head(pooled, train=False)}


def project(
    encoder: Encoder, head: ProjectionHead, images: Float[Array, "b h w c"]
) -> Float[Array, "b d"]:
    """The projections of one view in training; BatchNorm sees this view alone."""
    return head(encoder(images, train=True).pooled, train=True)


class Teacher(nnx.Variable):
    """A parameter of a network that follows another one and gets no gradient."""


class Bank(nnx.Variable):
    """Embeddings or assignments of past batches, or a position among them."""


def make_teacher(student: nnx.Module) -> nnx.Module:
    """A copy of ``student`` whose parameters are `Teacher` variables; statistics are its own.

    Parameters may lie in plain containers too, and one may serve in several places.
    """
    teacher = nnx.clone(student)
    made: dict[int, tuple[nnx.Param, Teacher]] = {}  # the parameters too, or ids would be reused

    def following(value: Any) -> Any:
        if not isinstance(value, nnx.Param):
            return value
        return made.setdefault(id(value), (value, Teacher(value[...])))[1]

    def is_whole(value: Any) -> bool:
        return isinstance(value, nnx.Variable | nnx.Module)

    for _, module in nnx.iter_modules(teacher):
        for name, value in vars(module).items():
            leaves = jax.tree.leaves(value, is_leaf=is_whole)
            if any(isinstance(leaf, nnx.Param) for leaf in leaves):
                setattr(module, name, nnx.data(jax.tree.map(following, value, is_leaf=is_whole)))
    return teacher


def follow(teacher: nnx.Module, student: nnx.Module, decay: Float[Array, ""]) -> None:
    """Teacher <- decay * teacher + (1 - decay) * student, over parameters alone."""
    state = nnx.state(teacher, Teacher)
    old = nnx.to_pure_dict(state)
    target = nnx.to_pure_dict(nnx.state(student, nnx.Param))
    # With the roles exchanged, so that the large share is the number given and not 1 - (1 - it).
    nnx.replace_by_pure_dict(state, optax.incremental_update(old, target, decay))
    nnx.update(teacher, state)


def require_labels(views: Views, method: str) -> Int[Array, " b"]:
    """The labels of a batch.

    Raises:
      UserError: if the data set has none.
    """
    if "label" not in views.targets:
        raise no_labels(method)
    return views.targets["label"]


def check_classes(method: str, count: int | None) -> None:
    """Raises UserError unless a method that needs labels has two classes to tell apart.

    Args:
      method: its name.
      count: of classes; None: there are no labels.
    """
    if count is None:
        raise no_labels(method)
    if count < 2:
        raise UserError(
            f"--config.method.name={method} tells classes apart and the data set has one: choose "
            "data with two classes or more, or a self-supervised method."
        )


def no_labels(method: str) -> UserError:
    """What to raise where a method needs labels and there are none."""
    return UserError(
        f"--config.method.name={method} needs labels but the data set has none: choose a "
        "labelled --config.data.name, or a self-supervised method."
    )
