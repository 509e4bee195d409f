"""How many replicas, and where. No torch, no Ray."""

from __future__ import annotations

import importlib.util
import socket
from dataclasses import dataclass

from pocketgem.errors import InputError
from pocketgem.kernels.cores import default_threads

PATIENCE = 5.0  # seconds for a cluster to take a connection


@dataclass(frozen=True)
class Scale:
    """
    replicas  how many
    threads   of each, which reserves as many CPUs; None, on a cluster: one replica a machine, with all it has
    address   of a cluster that is there, as ``ray.init`` takes it; None: this machine alone
    """

    replicas: int
    threads: int | None
    address: str | None = None

    @classmethod
    def here(cls, replicas: int, threads: int | None) -> Scale:
        """On this machine. Replicas share its cores unless they are told how many threads each has."""
        return cls(replicas, threads or max(1, default_threads().count // replicas))

    def check(self) -> None:
        """Raises InputError where Ray is not installed, and for an address that cannot be used or does not answer."""
        if importlib.util.find_spec("ray") is None:
            raise InputError("--ray needs Ray, which is not installed: pip install 'pocketgem[ray]'")
        if self.address is not None and "://" in self.address:
            raise InputError(
                "--ray-address: Ray's client protocol is not spoken here; "
                "start the server on a machine of the cluster, with HOST:PORT or auto"
            )
        host, colon, port = (self.address or "").rpartition(":")
        if colon and not _answers(host.strip("[]"), port):
            raise InputError(f"--ray-address: nothing answers at {self.address}; start Ray there, or see `ray status`")


def _answers(host: str, port: str) -> bool:
    """Ray itself would ask for minutes."""
    try:
        with socket.create_connection((host, int(port)), timeout=PATIENCE):
            return True
    except (OSError, ValueError, OverflowError):
        return False
