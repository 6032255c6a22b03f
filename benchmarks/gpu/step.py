"""Parts b and e: our SimCLR step beside the same in ``torch.compile``, on one device.

    python benchmarks/gpu/step.py --encoder resnet18 --size 32 --batch 512 --out FILE.json [--toy]

bfloat16, PyTorch channels_last under autocast and ``torch.compile``; both start from the same
weights and get the same views, and their losses before and after an update must agree. Rounds
alternate and medians count; the file is written after each. The share is of the best run of a large
square bfloat16 product by either library. Memory: what our compiled step takes for temporaries,
arguments and results, and the most that PyTorch had allocated.
"""

import argparse
import math
import pathlib
import time
from typing import Any

from results import Results  # isort: skip  (puts the package on the path)

import jax
from side_by_side import Run, environment, summarise, time_alternating
from train_step import (
    TOLERANCE,
    TORCH,
    VIEWS_GIVEN,
    VIEWS_MADE,
    gemm_peak,
    noise,
    prepare,
    recipe,
    same,
    torch_peer,
    torch_simclr,
    torch_steps,
)

from configs.common import view_group
from jaxssl.augment.augmentation import simclr_imagenet


def configured(arguments: argparse.Namespace) -> Any:
    """The recipe: SimCLR's CIFAR views, or from 224 pixels on ImageNet's with its stem."""
    config = recipe(arguments.width, arguments.batch, arguments.dtype)
    config.encoder.name = arguments.encoder
    if arguments.encoder == "resnet50":
        with config.unlocked():
            config.views = view_group(simclr_imagenet(arguments.size))
        config.encoder.stem = "imagenet"
    return config


def mebibytes(compiled: Any) -> float:
    """Memory that a compiled program takes on its device."""
    sizes = compiled.memory_analysis()
    taken = sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    return round((taken - sizes.alias_size_in_bytes) / 2**20, 1)


def measure(results: Results, arguments: argparse.Namespace) -> None:
    """Compiles the contestants, checks their losses, and lets them take turns."""
    peak = results.found["matrix_peak_gflops"]
    config = configured(arguments)
    side = arguments.size if arguments.size <= 64 else arguments.size * 8 // 7
    ours, policy = prepare(config, noise(max(2 * arguments.batch, 64), side))
    begin = time.perf_counter()
    lowered = ours.lower(lambda batch, _: batch["views"], ours.views)
    given = lowered.compile()
    made = ours.lower(policy, ours.batch).compile()
    facts = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(ours.state.params)),
        "flops_a_step": (lowered.cost_analysis() or {}).get("flops", 0.0),
        "compile_seconds": round(time.perf_counter() - begin, 1),
        "mebibytes": {VIEWS_GIVEN: mebibytes(given), VIEWS_MADE: mebibytes(made)},
    }
    peer = None if torch_simclr is None else torch_peer(ours, compiled=not arguments.toy)
    facts["losses"] = [ours.advance(given, same(ours.views), 1) for _ in range(2)]
    ours.advance(made, same(ours.batch), 1)
    contestants: dict[str, Run] = {
        VIEWS_MADE: lambda steps: ours.advance(made, same(ours.batch), steps),
        VIEWS_GIVEN: lambda steps: ours.advance(given, same(ours.views), steps),
    }
    if peer is not None:
        begin = time.perf_counter()
        facts["losses_torch"] = [float(peer()) for _ in range(2)]
        facts["compile_seconds_torch"] = round(time.perf_counter() - begin, 1)
        facts["losses_agree"] = all(
            math.isclose(*pair, rel_tol=TOLERANCE[arguments.dtype])
            for pair in zip(facts["losses"], facts["losses_torch"], strict=True)
        )
        contestants[TORCH] = torch_steps(peer)
        contestants[TORCH](3)
        facts["mebibytes"][TORCH] = torch_simclr.mebibytes()
    results.add("facts", facts)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, values in time_alternating(contestants, 1, arguments.steps).items():
            times[name] += values
        rows = summarise(times, TORCH, arguments.batch, facts["flops_a_step"], peak)
        results.add("rows", rows)
    results.add("rounds", arguments.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--encoder", choices=("resnet18", "resnet50"), default="resnet18")
    parser.add_argument("--toy", action="store_true")
    numbers = {"width": 64, "size": 32, "batch": 512, "rounds": 7, "steps": 20, "gemm": 8192}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=sorted(TOLERANCE), default="bfloat16")
    arguments = parser.parse_args()
    if arguments.toy:
        small = {"width": 4, "size": min(arguments.size, 32), "batch": 8, "rounds": 1, "steps": 1}
        vars(arguments).update(small, gemm=64, dtype="float32")
    results = Results(arguments.out, arguments.toy)
    results.add("environment", environment())
    if "matrix_peak_gflops" not in results:
        found = gemm_peak(arguments)
        results.add("gemm_gflops", found)
        results.add("matrix_peak_gflops", max(found.values()))
    if "rounds" not in results:
        measure(results, arguments)
    results.finish()


if __name__ == "__main__":
    main()
