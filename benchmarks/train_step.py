"""Our SimCLR training step beside the same step in PyTorch, in one run on one machine.

    python benchmarks/train_step.py [--widths 16 64] [--batch 128] [--dtype float32] [--out F.json]
    python benchmarks/train_step.py --real-pipeline

The recipe of configs/pretrain/simclr.py on one device: ResNet-18 with CIFAR stem, 32x32 pixels,
head, NT-Xent, SGD. Both steps start from the same weights and get the same two views; that they
do the same work is asserted by their losses before and after the first update. Ours also computes
its metrics (gradient norm, collapse) and, in a row of its own, the views. Runs alternate and the
median counts.

FLOPs are XLA's count for our step without augmentation, a multiply-add as 2, products with padding
as 0; it is that of the program before XLA rewrites it, because on a GPU the compiled one has
convolutions that XLA cannot count. The GEMM peak is the best run of a large square product in the
same dtype by either library. Needs an idle machine: beside another program PyTorch's threads, which
wait for each other, lose far more than ours.

``--real-pipeline`` times our step fed by the input pipeline against our step on one batch that
stays on the device; CIFAR-10 where TFDS finds it prepared, otherwise random pixels. PyTorch is
optional. On a GPU that is not large start with XLA_PYTHON_CLIENT_PREALLOCATE=false, or JAX leaves
PyTorch a quarter of the memory.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from side_by_side import Run, environment, show, summarise, time_alternating

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from configs.pretrain import simclr
from jaxssl.data.pipeline import train_batches, training_rows
from jaxssl.data.sources import Source, array_source, load
from jaxssl.distributed import data_mesh, global_batch
from jaxssl.errors import UserError
from jaxssl.plan import make_spec, policy_of, resolve
from jaxssl.randomness import Split
from jaxssl.training.optim import parameter_paths, scaled_learning_rate
from jaxssl.training.schedules import Schedules
from jaxssl.training.state import Blueprint, Hyper, TrainState, traced_scalars
from jaxssl.training.step import Step, compile_step, make_step

try:
    import torch_simclr
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    torch_simclr = None

VIEWS_MADE = "jaxssl, views made"
VIEWS_GIVEN = "jaxssl, views given"
TORCH = "PyTorch, views given"
CACHED = "cached batch"
PIPELINE = "input pipeline"
# Losses of the first two steps may differ by this share of them.
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}


@dataclasses.dataclass
class Ours:
    """What a program has in its hands before the first step; ``state`` moves with every step."""

    config: ConfigDict
    source: Source
    mesh: Mesh
    blueprint: Blueprint
    schedules: Schedules
    hyper: Hyper
    batch: dict[str, Any]
    views: dict[str, Any]
    state: TrainState

    def lower(self, policy: Callable, batch: dict[str, Any]) -> jax.stages.Lowered:
        """The step with a policy, not yet compiled."""
        step = make_step(
            self.blueprint,
            policy,
            self.schedules,
            batch_size=self.config.batch_size,
            learning_rate_scaling=self.config.optimizer.scaling,
        )
        return compile_step(step, self.mesh).lower(self.state, batch, self.hyper)

    def advance(self, step: Step, batches: Iterator[dict[str, Any]], steps: int) -> float:
        """Takes steps; returns the loss of the last one."""
        for _ in range(steps):
            self.state, metrics = step(self.state, next(batches), self.hyper)
        return float(jax.block_until_ready((self.state, metrics))[1]["loss"])


def noise(images: int = 50_000, side: int = 32) -> Source:
    """Random pixels, in the shape of CIFAR-10's training images unless told."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, side, side, 3), np.uint8)
    return array_source("noise", Split.TRAIN, pixels, {})


def real_images(config: ConfigDict) -> Source:
    """CIFAR-10, or random pixels."""
    try:
        return load(config.data, "train")
    except UserError as error:
        print(f"random pixels in place of {config.data.name}: {error}")
        return noise()


def recipe(width: int, batch: int, dtype: str) -> ConfigDict:
    """The recipe of configs/pretrain/simclr.py, resolved."""
    config = simclr.get_config(f"batch={batch},width={width}")
    config.encoder.dtype = dtype
    return resolve(config)


def prepare(config: ConfigDict, source: Source) -> tuple[Ours, Callable]:
    """A resolved recipe on a source, and its view policy."""
    policy = policy_of(config)
    spec = make_spec(config, source, policy)
    schedules = Schedules.from_config(config.hyper, config.epochs, spec.steps_per_epoch)
    hyper, mesh = traced_scalars(config), data_mesh(1)
    blueprint = Blueprint.from_config(config.method, config.encoder, config.optimizer, spec)
    rows = training_rows(0, config.batch_size, len(source), config.data_seed)
    batch = global_batch(mesh, source.gather(*rows))
    views = jax.device_get(jax.jit(policy)(batch, schedules.at(hyper, 0)))
    return Ours(
        config=config,
        source=source,
        mesh=mesh,
        blueprint=blueprint,
        schedules=schedules,
        hyper=hyper,
        batch=batch,
        views=global_batch(mesh, {"views": views}),
        state=blueprint.create(config.init_seed, mesh),
    ), policy


def same(item: Any) -> Iterator[Any]:
    """The same thing for ever."""
    while True:
        yield item


def torch_steps(step: Callable[[], Any]) -> Run:
    def run(steps: int) -> None:
        for _ in range(steps):
            step()
        torch_simclr.wait()

    return run


def torch_peer(ours: Ours, *, compiled: bool = False) -> Callable[[], Any]:
    """The step in PyTorch from the weights of ``ours``; asserts that the nets are of one size."""
    config, params = ours.config, ours.state.params
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    step, count = torch_simclr.make_step(
        tuple(np.array(image) for image in ours.views["views"].images),
        dict(zip(parameter_paths(params), arrays, strict=True)),
        encoder=config.encoder.name,
        width=config.encoder.width,
        stem=config.encoder.stem,
        dtype=config.encoder.dtype,
        temperature=config.hyper.temperature,
        learning_rate=scaled_learning_rate(
            config.hyper.learning_rate.value, config.batch_size, config.optimizer.scaling
        ),
        momentum=config.optimizer.momentum,
        weight_decay=config.hyper.weight_decay,
        compiled=compiled,
    )
    own = sum(array.size for array in arrays)
    assert count == own, f"{own} parameters here, {count} in PyTorch"
    return step


def gemm_peak(arguments: argparse.Namespace) -> dict[str, float]:
    """GFLOP/s of the best run of a square product, by library."""
    n = arguments.gemm
    a, b = jax.random.normal(jax.random.key(0), (2, n, n)).astype(arguments.dtype)
    product = jax.jit(jnp.matmul)

    def ours(steps: int) -> None:
        for _ in range(steps):
            result = product(a, b)
        result.block_until_ready()

    contestants = {"jax": ours}
    if torch_simclr is not None:
        contestants["torch"] = torch_steps(torch_simclr.matmul(n, arguments.dtype))
    for run in contestants.values():
        run(1)
    times = time_alternating(contestants, arguments.rounds, arguments.steps)
    return {name: 2 * n**3 / (1e6 * min(values)) for name, values in times.items()}


def against_torch(width: int, arguments: argparse.Namespace) -> tuple[dict, dict]:
    """Times by contestant, and what is the same for all of them."""
    ours, policy = prepare(recipe(width, arguments.batch, arguments.dtype), noise())
    lowered = ours.lower(lambda batch, _: batch["views"], ours.views)
    given = lowered.compile()
    made = ours.lower(policy, ours.batch).compile()
    facts: dict[str, Any] = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(ours.state.params)),
        "flops_a_step": lowered.cost_analysis()["flops"],
        "flops_a_step_as_compiled": given.cost_analysis()["flops"],
    }
    peer = None if torch_simclr is None else torch_peer(ours)
    # The second loss is that after an update: it differs unless gradient and optimizer agree.
    facts["losses"] = [ours.advance(given, same(ours.views), 1) for _ in range(2)]
    ours.advance(made, same(ours.batch), 1)
    contestants: dict[str, Run] = {
        VIEWS_MADE: lambda steps: ours.advance(made, same(ours.batch), steps),
        VIEWS_GIVEN: lambda steps: ours.advance(given, same(ours.views), steps),
    }
    if peer is not None:
        facts["losses_torch"] = [float(peer()) for _ in range(2)]
        for pair in zip(facts["losses"], facts["losses_torch"], strict=True):
            assert math.isclose(*pair, rel_tol=TOLERANCE[arguments.dtype]), f"losses {pair}"
        contestants[TORCH] = torch_steps(peer)
    return time_alternating(contestants, arguments.rounds, arguments.steps), facts


def against_pipeline(width: int, arguments: argparse.Namespace) -> tuple[dict, dict]:
    """Times by contestant, and what is the same for both of them."""
    config = recipe(width, arguments.batch, arguments.dtype)
    ours, policy = prepare(config, real_images(config))
    made = ours.lower(policy, ours.batch).compile()
    ours.advance(made, same(ours.batch), 1)
    batches = train_batches(
        ours.source,
        data_seed=ours.config.data_seed,
        batch_size=ours.config.batch_size,
        start_step=0,
        num_steps=1 + arguments.rounds * arguments.steps,
        process_index=0,
        process_count=1,
        prefetch=ours.config.run.prefetch,
        workers=ours.config.run.workers,
    )
    with contextlib.closing(batches):
        fed = (global_batch(ours.mesh, batch) for batch in batches)
        ours.advance(made, fed, 1)
        contestants: dict[str, Run] = {
            CACHED: lambda steps: ours.advance(made, same(ours.batch), steps),
            PIPELINE: lambda steps: ours.advance(made, fed, steps),
        }
        times = time_alternating(contestants, arguments.rounds, arguments.steps)
    return times, {"images": ours.source.name}


def parse() -> argparse.Namespace:
    # On a CPU a step takes seconds, on a GPU it is too short to be timed alone.
    cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--batch", type=int, default=128, help="images, not views")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1 if cpu else 50, help="steps a round")
    parser.add_argument("--dtype", choices=sorted(TOLERANCE), default="float32")
    parser.add_argument("--gemm", type=int, default=4096 if cpu else 8192, help="side of a matrix")
    parser.add_argument("--real-pipeline", action="store_true")
    parser.add_argument("--out", type=pathlib.Path)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    console = Console(width=100)
    versions = {"torch": None if torch_simclr is None else torch_simclr.torch.__version__}
    found: dict[str, Any] = {"environment": environment() | versions, "widths": {}}
    console.print(found["environment"])
    if found["environment"]["load_at_start"] > 1:
        console.print("This machine is busy: do not compare these figures.")
    if torch_simclr is None and not arguments.real_pipeline:
        console.print("skipped: torch is not installed, so there is no PyTorch row")
    peak = math.nan
    if not arguments.real_pipeline:
        found["gemm_gflops"] = gemm_peak(arguments)
        peak = max(found["gemm_gflops"].values())
        console.print(
            f"GEMM, {arguments.gemm} a side, {arguments.dtype}, GFLOP/s:", found["gemm_gflops"]
        )
    measure, base = (
        (against_pipeline, CACHED) if arguments.real_pipeline else (against_torch, TORCH)
    )
    for width in arguments.widths:
        times, facts = measure(width, arguments)
        rows = summarise(times, base, arguments.batch, facts.get("flops_a_step", 0.0), peak)
        found["widths"][width] = {**facts, "rows": rows}
        title = f"ResNet-18 width {width}, batch {arguments.batch}, {arguments.dtype}"
        show(console, title, base, rows)
        console.print(facts)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
