"""OpenVINO on a CPU."""

import ctypes
import os
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# oneDNN keeps the kernels of a thousand layers and shapes of its own, beside OpenVINO's cache.
# It reads this variable once, when it makes its first kernel.
os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "0"

import openvino
from openvino import opset13 as opset

from visionserve.runtimes import Runtime

# Kernels are made for a shape. So many are those of the crop and of one size of `dense`: with these
# in turn, half as many took 12 ms more a pass, and twice as many none less. 5000, the plugin's
# default, take hundreds of megabytes where images differ in size.
KERNELS = 64

# Buffers from this size on go back to the system when they are freed. By default glibc raises the
# bound to the largest buffer freed so far, so that a large image leaves the heap in pieces.
LARGE_BUFFER = 1_000_000
M_MMAP_THRESHOLD = -3


class OpenVINORuntime(Runtime):
    """A compiled OpenVINO IR and its one inference request.

    Each view has a forward pass of its own: on a CPU a batch is no faster, as its activations leave
    the processor's cache, and each size of batch would need kernels of its own.

    Args:
        artifact: the IR's `.xml` file.
        threads: inference threads. Workers share the machine's cores, so none is pinned.
    """

    capacity = 1

    def __init__(self, artifact: Path, threads: int) -> None:
        self._artifact = artifact
        self._threads = threads
        self._smallest = sys.maxsize
        _return_large_buffers()
        self._request = self._compile(openvino.Core().read_model(artifact))

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify a batch; see `visionserve.runtimes.Runtime`."""
        views = np.split(pixels, len(pixels))
        return np.concatenate([self._infer(self._request, view) for view in views])

    def contributions(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map a batch; see `visionserve.runtimes.Runtime`."""
        return self._infer(self._mapping_request, pixels)

    def _infer(self, request: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run a forward pass, and give back the memory of one that is larger than the smallest.

        OpenVINO keeps the activations of its largest pass, 50 MB of a `dense` one with a side of
        1,024 pixels. The smallest pass is that of a crop.
        """
        found: NDArray[np.float32] = request.infer(pixels, share_inputs=True)[0].copy()
        self._smallest = min(self._smallest, pixels.size)
        if pixels.size > self._smallest:
            request.get_compiled_model().release_memory()
            _trim()
        return found

    @cached_property
    def _mapping_request(self) -> Any:
        """Compiled at the first explanation: a second output would slow every prediction."""
        return self._compile(with_contributions(openvino.Core().read_model(self._artifact)))

    def _compile(self, model: openvino.Model) -> Any:
        compiled = openvino.Core().compile_model(
            model,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": self._threads,
                "ENABLE_CPU_PINNING": False,
                "INFERENCE_PRECISION_HINT": "f32",
                "CPU_RUNTIME_CACHE_CAPACITY": KERNELS,
            },
        )
        return compiled.create_infer_request()


def _return_large_buffers() -> None:
    """Set the bound where the C library has one, as glibc does."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BUFFER)


def _trim() -> None:
    """Give the heap's free pages back to the system, where the C library is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def with_contributions(model: openvino.Model) -> openvino.Model:
    """Apply the last linear layer to the feature map itself, in place of its pooled windows.

    In INT8, what quantizes the pooled features is left out too, as its range is theirs.
    """
    linear = _producer(model.get_result(), "MatMul")
    features = _producer(linear, "AvgPool").input_value(0)
    maps = opset.transpose(features, np.array([0, 2, 3, 1]))
    weight = linear.input_value(1)
    mapped = opset.matmul(maps, weight, False, linear.get_attributes()["transpose_b"])
    return openvino.Model([mapped], model.get_parameters())


def _producer(node: Any, kind: str) -> Any:
    """Follow the first input upwards to an operation of a kind."""
    node = node.input_value(0).get_node()
    while node.get_type_name() != kind:
        node = node.input_value(0).get_node()
    return node
