"""Leave out OpenVINO's converter of models, which no worker needs."""

import sys


def leave_out() -> None:
    """Have OpenVINO imported without its converter, to save 4 MB in each worker.

    `openvino/__init__.py` (2026.4.1) imports `openvino.tools.ovc`, which imports a frontend for
    TensorFlow, and goes without it where that raises an ImportError, as None in its place does.
    """
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
