"""What is worked around within a worker of TorchServe 0.12.0.

Each module says what it does, why, and which code of TorchServe it depends on. Read them again
when the version that `pyproject.toml` pins changes; a test compares it with `VERSION`.

What is worked around elsewhere says so where it is, and names TorchServe 0.12: counters in place of
histograms in `visionserve.telemetry`; from outside, in `visionserve_tools.server`, keys (`client`),
lost requests (`retire`), `snapshots`, `properties` and registration (`torchserve`); in nginx, forms
and requests that TorchServe misreads (`config/nginx/gate.lua`, `form.lua`, `turns.lua`).
`visionserve/__init__.py` turns off OpenVINO's telemetry, which is not TorchServe's doing.

- `form_parts` patches `ts.service.Service`, so that a form may hold several parts of one name.
- `logs` quietens the worker's loggers, which write lines for each request and each batch.
- `openvino_converter` has OpenVINO's package imported without what no worker needs.
- `response_size` reads the frontend's `max_response_size`, which TorchServe tells no worker.
- `server_folder` finds the folder that the server was started in.
- `torch_stand_in` saves OpenVINO's workers the import of PyTorch. The builder puts it into the
  root of such archives as `torch.py`.
- `torchvision_compiler` saves those of PyTorch the import of its compiler.
"""

from visionserve.workarounds import form_parts, logs, openvino_converter

VERSION = "0.12.0"


def apply() -> None:
    """Patch this worker process, once, before its first request."""
    form_parts.keep_repeated()
    logs.quieten()
    openvino_converter.leave_out()
