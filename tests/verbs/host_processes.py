"""Hosts as processes of this machine."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 180


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


class Hosts:
    """Processes that are given one command, and what they say."""

    def __init__(self, folder, flags, hosts=2, devices=1, address="localhost", prefixes=None):
        env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
        where = f"{address}:{free_port()}"
        self.logs = [folder / f"host{host}" for host in range(hosts)]
        self.processes = []
        for host, log in enumerate(self.logs):
            own = [f"--coordinator_address={where}", f"--num_processes={hosts}", f"--process_id={host}"]
            command = [sys.executable, "-m", "t5x_lite", *(flags[host] if isinstance(flags[0], list) else flags)]
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [*(prefixes[host] if prefixes else []), *command, *(own if hosts > 1 else [])],
                        cwd=folder,
                        env=env,
                        stdout=file,
                        stderr=file,
                    )
                )

    def said(self, host=0) -> str:
        return self.logs[host].read_text()

    def wait_for(self, pattern, host=0):
        deadline = time.monotonic() + SECONDS
        while not re.search(pattern, self.said(host)):
            assert time.monotonic() < deadline and all(p.poll() is None for p in self.processes), self.all()
            time.sleep(0.05)

    def all(self) -> str:
        return "\n\n".join(self.said(host) for host in range(len(self.logs)))

    def end(self) -> list[int]:
        try:
            return [process.wait(SECONDS) for process in self.processes]
        finally:
            self.kill()

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


def positions(directory, step) -> dict[str, bytes]:
    """What a checkpoint has of the position in each data shard."""
    folder = Path(directory) / f"checkpoints/{step}/data"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith(("shard", "position"))}
