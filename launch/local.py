"""Starts one command several times on this machine, as the processes of one job.

    python launch/local.py 2 python -m jaxssl.pretrain --config configs/quickstart.py \
        --workdir runs/two --config.run.distributed

Every process gets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. The output of
process 0 is shown; that of the others only if they fail. If one fails the rest are stopped.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

SECONDS_TO_STOP = 10.0


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launch(count: int, command: list[str]) -> int:
    """Runs the job; returns the first non-zero exit status, or 0."""
    if shutil.which(command[0]) is None:
        sys.stderr.write(f"{command[0]} is no program here: give one that is on the PATH.\n")
        return 127
    address = f"127.0.0.1:{free_port()}"
    processes, outputs = [], []
    try:
        for number in range(count):
            environment = os.environ | {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(number),
            }
            output = tempfile.TemporaryFile() if number else None  # noqa: SIM115 (read at the end)
            outputs.append(output)
            processes.append(
                subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            )
        while True:
            codes = [process.poll() for process in processes]
            failed = [number for number, code in enumerate(codes) if code]
            if failed or all(code == 0 for code in codes):
                break
            time.sleep(0.1)
    finally:
        stop(processes)
    for number in failed:
        if outputs[number] is not None:
            outputs[number].seek(0)
            text = outputs[number].read().decode(errors="replace")
            sys.stderr.write(f"process {number}:\n{text}")
    return codes[failed[0]] if failed else 0


def stop(processes: list[subprocess.Popen]) -> None:
    """Ends the processes that still run: politely, then by force."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + SECONDS_TO_STOP
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            # JAX catches the polite signal for its notice of preemption, and goes on.
            process.kill()
            process.wait()


if __name__ == "__main__":
    if len(sys.argv) < 3 or not sys.argv[1].isdecimal() or int(sys.argv[1]) < 1:
        sys.exit("usage: python launch/local.py COUNT COMMAND ...")
    try:
        sys.exit(launch(int(sys.argv[1]), sys.argv[2:]))
    except KeyboardInterrupt:  # the processes got it too
        sys.exit(128 + signal.SIGINT)
