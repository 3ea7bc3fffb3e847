"""Find free ports."""

import socket
from contextlib import ExitStack


def free_ports() -> dict[str, str]:
    """Return properties that put every API that a TorchServe lets one connect to on a free port."""
    ports = iter(_free(4))
    addresses = {
        f"{api}_address": f"http://127.0.0.1:{next(ports)}"
        for api in ("inference", "management", "metrics")
    }
    return addresses | {"grpc_inference_port": str(next(ports))}


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that no process listens on."""
    (port,) = _free(1)
    return port


def _free(count: int) -> list[int]:
    """Find distinct ports: each stays bound until all are found."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
