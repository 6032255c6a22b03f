"""Part a: the accelerator works, and a step's gradient there is the CPU's.

    python benchmarks/gpu/correct.py --out FILE.json [--toy]

One SimCLR step of ResNet-18 in float32: views, loss and gradient on both, from the same weights and
images. Products in full precision must agree to 1e-3 of the gradient's norm; how far those do that
are used by default (TF32 on a GPU) is told beside. Exits with 1 where they do not agree.
"""

import argparse
import pathlib
import time
from typing import Any

from results import Results  # isort: skip  (puts the package on the path)

import flax
import jax
import jax.numpy as jnp
import numpy as np
from side_by_side import environment
from train_step import noise, prepare, recipe

from jaxssl.training.step import loss_and_gradient

TOLERANCE = 1e-3


def distance(a: Any, b: Any) -> float:
    """||a - b|| / ||b|| over all leaves, in float64."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    gap = sum(float(np.sum((np.float64(x) - np.float64(y)) ** 2)) for x, y in pairs)
    return (gap / sum(float(np.sum(np.float64(y) ** 2)) for _, y in pairs)) ** 0.5


def compare(width: int, batch: int) -> dict[str, Any]:
    """Loss, gradient and views on JAX's first device beside the CPU's."""
    ours, policy = prepare(recipe(width, batch, "float32"), noise(10 * batch))
    hyper = ours.schedules.at(ours.hyper, 0)
    given = jax.device_get((ours.state, ours.views["views"], ours.batch, hyper))

    def step(state: Any, views: Any, hyper: Any) -> Any:
        return loss_and_gradient(ours.blueprint.graph, state, views, hyper)[::2]

    def on(device: jax.Device, precision: str | None) -> Any:
        state, views, batch, now = jax.device_put(given, device)
        with jax.default_matmul_precision(precision):
            loss, gradient = jax.jit(step)(state, views, now)
            made = jax.jit(policy)(batch, now).images
        return jax.device_get((loss, gradient, made))

    found: dict[str, Any] = {}
    reference = on(jax.devices("cpu")[0], "highest")
    for name, precision in (("in full", "highest"), ("by default", None)):
        loss, gradient, made = on(jax.devices()[0], precision)
        found[f"products {name}"] = {
            "gradient_relative_distance": distance(gradient, reference[1]),
            "loss_difference": abs(float(loss) - float(reference[0])),
            "views_largest_difference": max(
                float(np.abs(one - other).max())
                for one, other in zip(made, reference[2], strict=True)
            ),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--toy", action="store_true")
    arguments = parser.parse_args()
    results = Results(arguments.out, arguments.toy)
    results.add("environment", environment() | {"flax": flax.__version__})
    begin = time.perf_counter()
    total = float(jnp.arange(1000.0).sum())
    assert total == 499_500, f"0 + 1 + ... + 999 is {total} on {jax.devices()[0]}"
    results.add("seconds_to_the_first_result", round(time.perf_counter() - begin, 2))
    found = compare(*((4, 8) if arguments.toy else (64, 64)))
    results.add("against_the_cpu", found)
    error = found["products in full"]["gradient_relative_distance"]
    if not error < TOLERANCE:  # NaN is none either
        raise SystemExit(f"the gradient is {error:.2g} away from the CPU's: stop here.")
    results.finish()


if __name__ == "__main__":
    main()
