"""OpenVINO on a CPU."""

from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray


class OpenVINORuntime:
    """A compiled OpenVINO IR and its one inference request.

    Args:
        artifact: the IR's `.xml` file.
        threads: inference threads. Workers share the machine's cores, so none is pinned.
    """

    capacity = 16

    def __init__(self, artifact: Path, threads: int) -> None:
        compiled = openvino.Core().compile_model(
            artifact,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": threads,
                "ENABLE_CPU_PINNING": False,
                "INFERENCE_PRECISION_HINT": "f32",
            },
        )
        self._request = compiled.create_infer_request()

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify a batch; see `visionserve.runtimes.Runtime`."""
        outputs = self._request.infer(pixels, share_inputs=True)
        return np.array(outputs[0])
