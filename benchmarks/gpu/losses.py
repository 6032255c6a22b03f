"""Part f: NT-Xent, sliced Wasserstein and uniformity beside PyTorch, value and gradient.

    python benchmarks/gpu/losses.py --out FILE.json [--toy]

float32, d = 128 (512 for uniformity), both libraries in one process, in turns; medians of device
time from the host's clock. PyTorch's NT-Xent is the full matrix, compiled, as far as the memory
goes; beyond, ours is alone. Peaks are of products in TF32, as both libraries use them here.
"""

import argparse
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

from results import Results  # isort: skip  (puts the package on the path)

import jax
import jax.numpy as jnp
import numpy as np
from side_by_side import Run, environment, time_alternating

from jaxssl import losses

try:
    import torch
except ModuleNotFoundError:
    torch = None

TEMPERATURE = 0.1
DEVICE = "cuda" if torch is not None and torch.cuda.is_available() else "cpu"
Loss = Callable[..., Any]


def nt_xent_torch(z1: Any, z2: Any) -> Any:
    z = torch.nn.functional.normalize(torch.cat([z1, z2]))
    logits = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(z1))
    return torch.nn.functional.cross_entropy(logits, partner)


def swd_torch(h: Any) -> Any:
    with torch.no_grad():
        draw = torch.randn(h.shape[1], h.shape[1], device=h.device)
        directions = torch.linalg.qr(draw)[0]
        prior = (directions.T @ torch.randn(h.shape, device=h.device).T).sort(dim=1).values
    return ((directions.T @ h.T).sort(dim=1).values - prior).square().mean()


def uniformity_torch(z: Any) -> Any:
    unit = torch.nn.functional.normalize(z)
    return torch.pdist(unit, p=2).pow(2).mul(-2).exp().mean().log()


def nt_xent_ours(z1: jax.Array, z2: jax.Array) -> jax.Array:
    return losses.nt_xent(z1, z2, temperature=TEMPERATURE)


def swd_ours(h: jax.Array) -> jax.Array:
    return losses.sliced_wasserstein(h, key=jax.random.key(0), prior="normal")


def runner(loss: Loss, arrays: tuple[np.ndarray, ...]) -> tuple[Run, float]:
    """Ours, compiled and run once; and its temporaries in MiB."""
    given = [jnp.asarray(x) for x in arrays]
    step = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(given)))))
    program = step.lower(*given).compile()

    def run(steps: int) -> None:
        for _ in range(steps):
            result = program(*given)
        jax.block_until_ready(result)

    run(1)
    return run, program.memory_analysis().temp_size_in_bytes / 2**20


def torch_runner(loss: Loss, arrays: tuple[np.ndarray, ...], compiled: bool) -> Run:
    """PyTorch's, run once."""
    tensors = [torch.from_numpy(x).to(DEVICE).requires_grad_() for x in arrays]
    if compiled:
        loss = torch.compile(loss)

    def run(steps: int) -> None:
        for _ in range(steps):
            torch.autograd.grad(loss(*tensors), tensors)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    run(1)
    return run


def measure(
    ours: Loss, theirs: Loss | None, arrays: tuple[np.ndarray, ...], steps: int, compiled: bool
) -> dict[str, Any]:
    """Milliseconds of each, and ours' temporaries."""
    run, temporaries = runner(ours, arrays)
    contestants = {"jaxssl": run}
    if torch is not None and theirs is not None:
        try:
            contestants["PyTorch"] = torch_runner(theirs, arrays, compiled)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
    times = time_alternating(contestants, 5, steps)
    found: dict[str, Any] = {name: statistics.median(values) for name, values in times.items()}
    found["temporaries_mebibytes"] = round(temporaries, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--toy", action="store_true")
    arguments = parser.parse_args()
    results = Results(arguments.out, arguments.toy)
    results.add("environment", environment())
    if torch is not None:
        torch.set_float32_matmul_precision("high")
    scale = 128 if arguments.toy else 1
    compiled = not arguments.toy
    rng = np.random.default_rng(0)

    def normal(rows: int, features: int) -> np.ndarray:
        return rng.normal(size=(rows // scale, features)).astype(np.float32)

    for count in (1024, 4096, 16_384, 32_768, 262_144):
        name, steps = (
            f"NT-Xent, N={count // scale}",
            max(2 if arguments.toy else 200_000 // count, 2),
        )
        if name in results or (arguments.toy and count > 32_768):
            continue
        pair = normal(count // 2, 128), normal(count // 2, 128)
        peer = nt_xent_torch if count <= 32_768 else None
        results.add(name, measure(nt_xent_ours, peer, pair, steps, compiled))
    for rows in (4096, 65_536):
        name = f"sliced Wasserstein, b={rows // scale}"
        if name not in results:
            results.add(name, measure(swd_ours, swd_torch, (normal(rows, 128),), 5, False))
    name = f"uniformity, {10_000 // scale} x 512"
    if name not in results:
        given = (normal(10_000, 512),)
        results.add(name, measure(losses.uniformity, uniformity_torch, given, 5, False))
    results.finish()


if __name__ == "__main__":
    main()
