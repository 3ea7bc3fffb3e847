"""OpenVINO on a CPU."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# oneDNN keeps the kernels of a thousand layers and shapes of its own, beside OpenVINO's cache.
# It reads this variable once, when it makes its first kernel.
os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "0"

import openvino

# Kernels are made for a shape. So many are those of the crop and of one or two sizes of `dense`;
# 5000, the plugin's default, take hundreds of megabytes where images differ in size.
KERNELS = 128


class OpenVINORuntime:
    """A compiled OpenVINO IR and its one inference request.

    Each view has a forward pass of its own: on a CPU a batch is no faster, as its activations leave
    the processor's cache, and each size of batch would need kernels of its own.

    Args:
        artifact: the IR's `.xml` file.
        threads: inference threads. Workers share the machine's cores, so none is pinned.
    """

    capacity = 1

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
                "CPU_RUNTIME_CACHE_CAPACITY": KERNELS,
            },
        )
        self._request = compiled.create_infer_request()

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify a batch; see `visionserve.runtimes.Runtime`."""
        views = np.split(pixels, len(pixels))
        return np.concatenate([self._request.infer(v, share_inputs=True)[0].copy() for v in views])
