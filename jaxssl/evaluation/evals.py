"""What is evaluated while training: ``config.evals``, by name; today kNN accuracy alone."""

import dataclasses
import fractions
from collections.abc import Callable, Mapping

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxssl.augment.policies import Batch
from jaxssl.compilation import compiler_options
from jaxssl.data.examples import abstract_batch
from jaxssl.data.splits import Splits
from jaxssl.distributed import replicated, sharded
from jaxssl.errors import UserError, choose
from jaxssl.evaluation.features import Embed, as_vectors, extract
from jaxssl.metrics.collapse import feature_std
from jaxssl.metrics.knn import PROTOCOLS, knn_accuracy
from jaxssl.ranges import NON_NEGATIVE, check_ranges
from jaxssl.training.state import Blueprint, TrainState, merge
from jaxssl.words import counted

CleanView = Callable[[Batch], jax.Array]
Check = Callable[[], None]
Run = Callable[[TrainState, Check], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Something that is run on the state at multiples of some steps, and at the end.

    Attributes:
      every: steps, a fraction where epochs end within batches.
      run: from a state to numbers to log, one of them under the evaluation's name; it also takes
        a function, called between batches, that may raise what ends it.
    """

    every: fractions.Fraction
    run: Run


def make_evals(
    evals: ConfigDict,
    blueprint: Blueprint,
    splits: Splits,
    clean_view: CleanView,
    mesh: Mesh,
    batch_size: int,
) -> dict[str, Evaluation]:
    """The evaluations of a run that ever run.

    Args:
      evals: the ``evals`` group of the config: by name `every` (epochs), `split`, `protocol`,
        `layer`.
      blueprint: of the run.
      splits: the run's; ``"train"`` is the bank of neighbours.
      clean_view: the test-time images of a batch.
      mesh: devices to share each batch.
      batch_size: images a pass.

    Returns:
      By name; an evaluation NAME logs ``NAME``, top-1 in [0, 1], and ``NAME_feature_std``, the
      mean standard deviation of the normalised features times sqrt(D): 0 where they collapsed.

    Raises:
      UserError: if a split holds no image, the set has no labels or too few images, or the method
        no such layer.
    """
    made = {}
    for name, settings in evals.items():
        check_ranges(f"evals.{name}", settings, {"every": NON_NEGATIVE})
        if settings.every > 0:
            every = steps_of(settings.every, len(splits["pretrain"]), batch_size)
            run = _knn(name, settings, blueprint, splits, clean_view, mesh, batch_size)
            made[name] = Evaluation(every, run)
    return made


def steps_of(epochs: int | float, images: int, batch_size: int) -> fractions.Fraction:
    """How many steps so many epochs take, exactly, of the decimal that is written in a config."""
    return fractions.Fraction(str(epochs)) * images / batch_size


def _knn(
    name: str,
    settings: ConfigDict,
    blueprint: Blueprint,
    splits: Splits,
    clean_view: CleanView,
    mesh: Mesh,
    batch_size: int,
) -> Run:
    choose(f"evals.{name}.split", settings.split, dict.fromkeys(("validation", "test")))
    bank, queries = splits["train"], splits[settings.split]
    if bank.num_classes is None:
        raise UserError(
            f"the evaluation {name} needs labels but the data set has none: give "
            f"--config.evals.{name}.every=0."
        )
    check_neighbours(f"--config.evals.{name}.protocol", settings.protocol, len(bank))
    to_embed = embedder(blueprint.graph, name, settings.layer, clean_view, mesh)
    # Traced once before training, so that a wrong layer is refused now and not after an epoch.
    # Not jitted: within a trace JAX refuses the compiler's options.
    state = blueprint.abstract(mesh)
    traced = _embed(blueprint.graph, name, settings.layer, clean_view)
    jax.eval_shape(traced, state.params, state.rest, abstract_batch(bank, batch_size))

    def knn(state: TrainState, check: Check) -> dict[str, float]:
        embed = to_embed(state)

        def checked(batch: Batch) -> jax.Array:
            check()
            return embed(batch)

        known, asked = (
            extract(checked, source, mesh=mesh, batch_size=batch_size) for source in (bank, queries)
        )
        check()
        accuracy = knn_accuracy(
            known.features,
            known.labels,
            asked.features,
            asked.labels,
            protocol=settings.protocol,
        )
        return {
            name: float(accuracy),
            f"{name}_feature_std": float(feature_std(asked.features)),
        }

    return knn


def embedder(
    graph: nnx.GraphDef, name: str, layer: str, clean_view: CleanView, mesh: Mesh
) -> Callable[[TrainState], Embed]:
    """From a state to what `extract` takes: a layer of clean images, maps averaged over positions.

    One compilation serves every state.
    """
    whole = replicated(mesh)
    jitted = jax.jit(
        _embed(graph, name, layer, clean_view),
        in_shardings=(whole, whole, sharded(mesh)),
        out_shardings=whole,
        compiler_options=compiler_options(mesh),
    )
    return lambda state: lambda batch: jitted(state.params, state.rest, batch)


def _embed(
    graph: nnx.GraphDef, name: str, layer: str, clean_view: CleanView
) -> Callable[[nnx.State, nnx.State, Mapping], jax.Array]:
    def embed(params: nnx.State, rest: nnx.State, batch: Mapping) -> jax.Array:
        layers = merge(graph, params, rest).represent(clean_view(batch))
        return as_vectors(choose(f"evals.{name}.layer", layer, layers))

    return embed


def check_neighbours(flag: str, protocol: str, bank_size: int) -> None:
    """Raises UserError unless so many training images serve a kNN protocol."""
    asked = choose(flag, protocol, PROTOCOLS).k
    if asked > bank_size:
        raise UserError(
            f"{flag}={protocol} asks for {counted(asked, 'neighbour')} of "
            f"{counted(bank_size, 'training image')}: use more images, or a protocol with fewer "
            f"neighbours, such as {flag}=dino."
        )
