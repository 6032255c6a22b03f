"""Time and memory of the losses beside their peers', in one run on one machine.

    python benchmarks/losses.py [--only nt_xent swd uniformity memory compile] [--out FILE.json]

Each contestant lives in a process of its own, for the thread pools of two libraries in one process
disturb each other; runs alternate and medians count, of wall time and of the CPU time of all
threads, which a busy machine distorts less. Peers that are not installed are skipped
with a line that says so: torch (CPU build), lightly, pytorch-metric-learning, POT, ott-jax.
"""

import argparse
import functools
import importlib.abc
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec

import jax
import jax.numpy as jnp
import numpy as np
from side_by_side import time_servers

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from jaxssl import losses
from jaxssl.metrics.uniformity import uniformity as uniformity_metric

TEMPERATURE = 0.1
FEATURES = 128
PEERS = {
    "torch": "torch",
    "lightly": "lightly",
    "pytorch_metric_learning": "pytorch-metric-learning",
    "ot": "POT",
    "ott": "ott-jax",
    "optax": "optax",
}


def installed(module: str) -> bool:
    """Whether a peer can be run; says so if not."""
    if importlib.util.find_spec(module) is None:
        print(f"  skipped: {PEERS[module]} is not installed")
        return False
    return True


def views(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two noisy views of ``count / 2`` images."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(count // 2, FEATURES))
    first, second = (np.float32(base + 0.5 * rng.normal(size=base.shape)) for _ in range(2))
    return first, second


# NT-Xent ------------------------------------------------------------------------------------------


def naive_nt_xent(z1: jax.Array, z2: jax.Array) -> jax.Array:
    """The full matrix, as it is usually written."""
    z = jnp.concatenate([z1, z2])
    z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
    logits = z @ z.T / TEMPERATURE
    logits = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, logits)
    positive = jnp.sum(z * jnp.roll(z, len(z1), axis=0), axis=1) / TEMPERATURE
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - positive)


def reference_nt_xent(z1: jax.Array, z2: jax.Array) -> jax.Array:
    """As SimCLR's code arranges it: two halves of the matrix for each view, side by side."""
    z1, z2 = (z / jnp.linalg.norm(z, axis=1, keepdims=True) for z in (z1, z2))
    itself = 1e9 * jnp.eye(len(z1))
    targets = jnp.arange(len(z1))

    def half(own: jax.Array, other: jax.Array) -> jax.Array:
        logits = [own @ other.T / TEMPERATURE, own @ own.T / TEMPERATURE - itself]
        log_probability = jax.nn.log_softmax(jnp.concatenate(logits, axis=1), axis=1)
        return -jnp.mean(log_probability[targets, targets])

    return (half(z1, z2) + half(z2, z1)) / 2


def optax_nt_xent(z1: jax.Array, z2: jax.Array) -> jax.Array:
    import optax

    z = jnp.concatenate([z1, z2])
    z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
    return optax.losses.ntxent(z, jnp.tile(jnp.arange(len(z1)), 2), TEMPERATURE)


def jax_step(loss: Callable, *arrays: np.ndarray) -> Callable[[], object]:
    """Value and gradient, compiled and run once."""
    arrays = tuple(jnp.asarray(x) for x in arrays)
    places = tuple(range(len(arrays)))
    program = jax.jit(jax.value_and_grad(loss, argnums=places)).lower(*arrays).compile()
    return lambda: jax.block_until_ready(program(*arrays))


def torch_step(loss: Callable, *arrays: np.ndarray) -> Callable[[], object]:
    """Value and gradient."""
    import torch

    tensors = [torch.from_numpy(x).requires_grad_() for x in arrays]

    def run() -> float:
        for tensor in tensors:
            tensor.grad = None
        value = loss(*tensors)
        value.backward()
        return value.detach().item()

    return run


class Hollow(types.ModuleType):
    """A module that has every name, each an empty class."""

    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Hollow modules for torchvision's, which lightly imports but its losses do not use."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        """A specification for torchvision and what is below it."""
        known = name.split(".")[0] == "torchvision"
        return ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        """The hollow module."""
        return Hollow(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def lightly_step(z1: np.ndarray, z2: np.ndarray) -> Callable[[], object]:
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(StandIn())
    from lightly.loss import NTXentLoss

    return torch_step(NTXentLoss(temperature=TEMPERATURE), z1, z2)


def metric_learning_step(z1: np.ndarray, z2: np.ndarray) -> Callable[[], object]:
    import torch
    from pytorch_metric_learning.losses import NTXentLoss

    loss, labels = NTXentLoss(temperature=TEMPERATURE), torch.arange(len(z1)).repeat(2)
    return torch_step(lambda a, b: loss(torch.cat([a, b]), labels), z1, z2)


OURS = functools.partial(losses.nt_xent, temperature=TEMPERATURE)
NT_XENT = {
    "ours": (None, functools.partial(jax_step, OURS)),
    "naive JAX": (None, functools.partial(jax_step, naive_nt_xent)),
    "SimCLR's form in JAX": (None, functools.partial(jax_step, reference_nt_xent)),
    "lightly": ("lightly", lightly_step),
    "pytorch-metric-learning": ("pytorch_metric_learning", metric_learning_step),
    "optax": ("optax", functools.partial(jax_step, optax_nt_xent)),
}
# Beyond these sizes a peer takes minutes or all memory: it compares positives with negatives.
LARGEST = {"optax": 1024, "pytorch-metric-learning": 256}


# Sliced Wasserstein -------------------------------------------------------------------------------


def naive_swd(h: jax.Array) -> jax.Array:
    """Two float sorts, differentiated by JAX."""
    first, second = jax.random.split(jax.random.key(0))
    directions = jnp.linalg.qr(jax.random.normal(first, (h.shape[1],) * 2))[0]
    prior = jax.random.normal(second, h.shape)
    return jnp.mean((jnp.sort(h @ directions, axis=0) - jnp.sort(prior @ directions, axis=0)) ** 2)


def torch_swd(h):
    """Contiguous rows to sort, no gradient through the prior's."""
    import torch

    with torch.no_grad():
        directions = torch.linalg.qr(torch.randn(h.shape[1], h.shape[1]))[0]
        prior = (directions.T @ torch.randn(h.shape).T).sort(dim=1).values
    return ((directions.T @ h.T).sort(dim=1).values - prior).square().mean()


def pot_swd(h):
    import ot
    import torch

    return ot.sliced_wasserstein_distance(h, torch.randn(h.shape), n_projections=h.shape[1])


def ott_swd(h: jax.Array) -> jax.Array:
    from ott.tools import sliced

    prior = jax.random.normal(jax.random.key(1), h.shape)
    return sliced.sliced_wasserstein(h, prior, n_proj=h.shape[1], rng=jax.random.key(0))[0]


def ours_swd(h: jax.Array) -> jax.Array:
    return losses.sliced_wasserstein(h, key=jax.random.key(0), prior="normal")


def normal(rows: int, features: int) -> np.ndarray:
    """The features whose distance or uniformity is measured."""
    return np.random.default_rng(0).normal(size=(rows, features)).astype(np.float32)


SWD = {
    "ours": (None, functools.partial(jax_step, ours_swd)),
    "naive JAX": (None, functools.partial(jax_step, naive_swd)),
    "torch": ("torch", functools.partial(torch_step, torch_swd)),
    "POT": ("ot", functools.partial(torch_step, pot_swd)),
    "ott-jax": ("ott", functools.partial(jax_step, ott_swd)),
}


# Uniformity ---------------------------------------------------------------------------------------


def metric_step(z: np.ndarray) -> Callable[[], object]:
    """The evaluation metric, which has no gradient."""
    on_device = jnp.asarray(z)
    return lambda: uniformity_metric(on_device).block_until_ready()


def loss_value(z: np.ndarray) -> Callable[[], object]:
    on_device = jnp.asarray(z)
    program = jax.jit(losses.uniformity).lower(on_device).compile()
    return lambda: program(on_device).block_until_ready()


def pdist_uniformity(z):
    """Wang and Isola's own three lines."""
    import torch

    unit = torch.nn.functional.normalize(z)
    return torch.pdist(unit, p=2).pow(2).mul(-2).exp().mean().log()


def pdist_value(z: np.ndarray) -> Callable[[], object]:
    import torch

    tensor = torch.from_numpy(z)
    return lambda: pdist_uniformity(tensor).item()


UNIFORMITY = {
    "ours": (None, metric_step),
    "ours, the loss": (None, loss_value),
    "torch.pdist": ("torch", pdist_value),
}
UNIFORMITY_GRADIENT = {
    "ours": (None, functools.partial(jax_step, losses.uniformity)),
    "torch.pdist": ("torch", functools.partial(torch_step, pdist_uniformity)),
}


# Measuring ----------------------------------------------------------------------------------------


def inputs(section: str, size: int) -> tuple[np.ndarray, ...]:
    """The arrays of a section."""
    if section == "nt_xent":
        return views(size)
    return (normal(size, FEATURES if section == "swd" else 512),)


CONTESTS = {
    "nt_xent": NT_XENT,
    "swd": SWD,
    "uniformity": UNIFORMITY,
    "uniformity_gradient": UNIFORMITY_GRADIENT,
}


def serve(section: str, size: int, name: str) -> None:
    """Runs one contestant for every line of the input; prints wall and CPU milliseconds."""
    run = CONTESTS[section][name][1](*inputs(section, size))
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        run()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        print(1e3 * wall, 1e3 * processor, flush=True)


def medians(section: str, size: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Median wall and CPU milliseconds of each contestant, runs alternating."""
    commands = {}
    for name, (module, _) in CONTESTS[section].items():
        if size > LARGEST.get(name, size) or (module is not None and not installed(module)):
            continue
        command = [sys.executable, __file__, "--serve", section, str(size), name]
        commands[name] = command
    times = time_servers(commands, rounds)
    return {
        name: (statistics.median(walls), statistics.median(processors))
        for name, (walls, processors) in ((n, zip(*rows, strict=True)) for n, rows in times.items())
    }


def report(title: str, section: str, size: int, rounds: int) -> dict:
    """Prints and returns medians and ratios to ours."""
    print(title, flush=True)
    found = medians(section, size, rounds)
    rows = {}
    for name, (wall, processor) in found.items():
        ratios = wall / found["ours"][0], processor / found["ours"][1]
        print(
            f"  {name:26s} {wall:9.1f} ms {ratios[0]:7.2f} x ours   "
            f"CPU {processor:9.1f} ms {ratios[1]:7.2f} x ours",
            flush=True,
        )
        rows[name] = {
            "milliseconds": round(wall, 2),
            "times_ours": round(ratios[0], 2),
            "cpu_milliseconds": round(processor, 2),
            "cpu_times_ours": round(ratios[1], 2),
        }
    return rows


def resident(field: str) -> float:
    """A line of this process's status in MB: VmRSS now, VmHWM at its peak."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise ValueError(field)


def memory_rise(name: str, count: int) -> None:
    """Prints by how many MB a step raises this process's peak; compiled, inputs in place."""
    run = NT_XENT[name][1](*views(count))
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    run()
    print(resident("VmHWM") - before)


def memory(cases: list[tuple[str, int]]) -> dict:
    """Peak memory of each case in a process of its own."""
    print("NT-Xent, rise of peak memory in a step", flush=True)
    rows = {}
    for name, count in cases:
        module = NT_XENT[name][0]
        if module is not None and not installed(module):
            continue
        command = [sys.executable, __file__, "--memory-of", name, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rise = float(done.stdout.splitlines()[-1])
        print(f"  {name:26s} N={count:<7d} {rise:8.1f} MB", flush=True)
        rows[f"{name} N={count}"] = round(rise, 1)
    return rows


def temporaries(loss: Callable, count: int) -> float:
    """MiB that a compiled step allocates beside its arguments and results."""
    shape = jax.ShapeDtypeStruct((count // 2, FEATURES), jnp.float32)
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(shape, shape).compile()
    return program.memory_analysis().temp_size_in_bytes / 2**20


def compiled_memory() -> dict:
    """Temporaries of ours and of the full matrix."""
    print("NT-Xent, temporaries of the compiled step", flush=True)
    rows = {}
    for count in (4096, 8192, 32768, 262144):
        ours = temporaries(OURS, count)
        rows[f"ours N={count}"] = round(ours, 1)
        print(f"  {'ours':26s} N={count:<7d} {ours:8.1f} MiB", flush=True)
        if count > 8192:
            continue
        for name, loss in (("naive JAX", naive_nt_xent), ("SimCLR's form", reference_nt_xent)):
            theirs = temporaries(loss, count)
            rows[f"{name} N={count}"] = round(theirs, 1)
            print(
                f"  {name:26s} N={count:<7d} {theirs:8.1f} MiB   {theirs / ours:5.1f} x ours",
                flush=True,
            )
    return rows


def environment() -> dict:
    """What the figures hold for."""
    versions = {}
    for name in ("jax", "jaxlib", "numpy", *PEERS.values()):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parent,
        check=False,
    )
    processor = next(
        (
            line.split(":")[1].strip()
            for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "command": " ".join(["python", "benchmarks/losses.py", *sys.argv[1:]]),
        "commit": commit.stdout.strip() or None,
        "device": jax.devices()[0].device_kind,
        "hardware": f"{os.cpu_count()} CPU cores, {processor}",
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": versions,
    }


SECTIONS = ("nt_xent", "swd", "uniformity", "memory", "compile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--memory-of", nargs=2, metavar=("WHO", "N"), help=argparse.SUPPRESS)
    serving = ("SECTION", "SIZE", "WHO")
    parser.add_argument("--serve", nargs=3, metavar=serving, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        section, size, name = arguments.serve
        serve(section, int(size), name)
        return
    if arguments.memory_of:
        memory_rise(arguments.memory_of[0], int(arguments.memory_of[1]))
        return
    found: dict = {}
    if "nt_xent" in arguments.only:
        for count in (256, 1024, 4096, 8192):
            title = f"NT-Xent, value and gradient, N={count} d={FEATURES}"
            found[title] = report(title, "nt_xent", count, arguments.rounds)
    if "swd" in arguments.only:
        title = f"Sliced Wasserstein, value and gradient, b=4096 d={FEATURES}"
        found[title] = report(title, "swd", 4096, arguments.rounds)
    if "uniformity" in arguments.only:
        title = "Uniformity, value, 10000 x 512"
        found[title] = report(title, "uniformity", 10_000, arguments.rounds)
        title = "Uniformity, value and gradient, 10000 x 512"
        found[title] = report(title, "uniformity_gradient", 10_000, 3)
    if "memory" in arguments.only:
        cases = [
            (name, 8192) for name in ("ours", "naive JAX", "SimCLR's form in JAX", "lightly")
        ] + [("ours", 32768)]
        found["NT-Xent, rise of peak memory in a step, MB"] = memory(cases)
    if "compile" in arguments.only:
        found["NT-Xent, temporaries of the compiled step, MiB"] = compiled_memory()
    found["environment"] = environment()
    print(json.dumps(found["environment"], indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
