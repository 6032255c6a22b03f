"""Contestants timed in turns in one process, and what is said of them."""

import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
from rich.console import Console
from rich.table import Table

Run = Callable[[int], None]  # takes that many steps, and waits for the last


def time_alternating(contestants: dict[str, Run], rounds: int, steps: int) -> dict[str, list]:
    """Milliseconds a step in each round; every contestant has run before."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run(steps)
            times[name].append(1e3 * (time.perf_counter() - start) / steps)
    return times


def time_servers(commands: dict[str, list[str]], rounds: int) -> dict[str, list[list[float]]]:
    """What contestants in processes of their own print in each round, taking turns.

    A command prints "ready" once it has warmed up, and then numbers for each line that it gets.

    Raises:
      RuntimeError: if one ends before it is ready.
    """
    servers = {}
    for name, command in commands.items():
        server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        while server.stdout.readline() != "ready\n":
            if server.poll() is not None:
                raise RuntimeError(f"{name} ended before it began: {' '.join(command)}")
        servers[name] = server
    times: dict[str, list[list[float]]] = {name: [] for name in servers}
    for _ in range(rounds):
        for name, server in servers.items():
            server.stdin.write("\n")
            server.stdin.flush()
            times[name].append([float(word) for word in server.stdout.readline().split()])
    for server in servers.values():
        server.stdin.close()
        server.wait()
    return times


def summarise(times: dict, base: str, batch: int, flops: float, peak: float) -> dict[str, dict]:
    """One row a contestant.

    Args:
      times: milliseconds a step in each round, by contestant.
      base: the contestant to whose speed the others' are put in ratio, if it took part.
      batch: images a step.
      flops: of a step; 0 if unknown.
      peak: GFLOP/s that a share of 1 stands for.
    """
    rows = {}
    for name, values in times.items():
        median = statistics.median(values)
        row = {
            "milliseconds": round(median, 3),
            "fastest_slowest": [round(min(values), 3), round(max(values), 3)],
            "images_per_second": round(1e3 * batch / median, 1),
        }
        if base in times:
            row["times_base"] = round(statistics.median(times[base]) / median, 3)
        if flops:
            row["share_of_gemm_peak"] = round(flops / (1e6 * median) / peak, 3)
        rows[name] = row
    return rows


def show(console: Console, title: str, base: str, rows: dict[str, dict]) -> None:
    """Prints the rows of `summarise` as a table."""
    table = Table(title=title, title_justify="left")
    table.add_column("step")
    for heading in (
        "ms (fastest .. slowest)",
        "images/s",
        f"x {base.split(',')[0]}",
        "of GEMM peak",
    ):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        low, high = row["fastest_slowest"]
        ratio, share = row.get("times_base"), row.get("share_of_gemm_peak")
        table.add_row(
            name,
            f"{row['milliseconds']:,.1f} ({low:,.1f} .. {high:,.1f})",
            f"{row['images_per_second']:,.1f}",
            "" if ratio is None else f"{ratio:.2f}",
            "" if share is None else f"{share:.1%}",
        )
    console.print(table)


def environment() -> dict:
    """What the figures hold for."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")
    git = ["git", "rev-parse", "--short", "HEAD"]
    here = pathlib.Path(__file__).parent
    commit = subprocess.run(git, capture_output=True, text=True, cwd=here, check=False)
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit.stdout.strip() or None,
        "device": jax.devices()[0].device_kind,
        "hardware": f"{os.cpu_count()} CPU cores, {processor or platform.processor()}",
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
