"""Find free ports."""

import socket
from contextlib import closing


def free_ports() -> dict[str, str]:
    """Return properties that put every API of a TorchServe on a free port."""
    addresses = {
        f"{api}_address": f"http://127.0.0.1:{free_port()}"
        for api in ("inference", "management", "metrics")
    }
    grpc = {f"grpc_{api}_port": str(free_port()) for api in ("inference", "management")}
    return addresses | grpc


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that no process listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
