"""OpenVINO on a CPU."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# oneDNN has a cache of up to a thousand kernels, in addition to OpenVINO's own cache. This turns
# it off, to save memory. oneDNN reads the variable once, when it makes its first kernel.
os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "0"

import openvino
from openvino import opset13 as opset

from visionserve import heap
from visionserve.config import Precision
from visionserve.metadata import LEAST
from visionserve.runtimes.base import Linear, Passed, Runtime

# OpenVINO makes a kernel for each layer and size, and keeps those that it used last: as many as a
# crop and the three sizes that `dense` views mostly have take, see `visionserve.tta.STRIDES`, where
# these are not too many. A layer takes 1 to 3.6 for the four sizes, 3.6 in a ResNet-18 of INT8.
SIZES = 4
LAYERS = ("Convolution", "GroupConvolution", "MatMul")

# The most that are kept, as one takes up to 0.12 MB, and OpenVINO's default of 5000 hundreds. Those
# of INT8 and BF16 take longest to make: of four sizes mixed, a pass of efficientnet_lite0, with
# 50 layers, takes in INT8 2.3 times what it takes where one size follows itself with 64, 1.17 with
# 128 and 1.10 with 256; in BF16 1.35 with 64 and 1.06 with 128.
KERNELS: dict[Precision, int] = {"fp32": 64, "bf16": 128, "int8": 256}

# How OpenVINO names what a model computes in. A processor may not have what is asked for.
PRECISIONS: dict[str, Precision] = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}

# A pass over more pixels than two crops gives its memory back; the `dense` view of most photographs
# has 1.63. New memory for each pass would make it a tenth slower, because the kernel clears
# each page that it gives.
KEPT_CROPS = 2


class OpenVINORuntime(Runtime):
    """A compiled OpenVINO IR and its one inference request.

    Each view has its own forward pass. On a CPU a batch is no faster, because its activations do
    not fit the processor's cache, and each size of batch would need its own kernels.

    Args:
        artifact: the IR's `.xml` file.
        crop: side of the model's crop, in pixels.
        threads: inference threads. They are not pinned to cores, which all workers share.
        features: whether the model has a linear layer alone after a global pool, so that it has
            pooled features to give. They are added to the outputs; the file has one.
        bf16: whether layers are computed in BF16, from the weights of FP32. Maps of explanations
            are not.
    """

    capacity = 1

    def __init__(
        self, artifact: Path, crop: int, threads: int, features: bool = False, bf16: bool = False
    ) -> None:
        self._artifact = artifact
        self._threads = threads
        self._kept = KEPT_CROPS * crop * crop * 3
        heap.keep_small_buffers()
        model = openvino.Core().read_model(artifact)
        self._request = self._compile(with_features(model) if features else model, bf16)
        self.precision = "int8" if _is_int8(model) else self._computes()

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify a batch; see `visionserve.runtimes.Runtime`."""
        return self.passed(pixels).probabilities

    def passed(self, pixels: NDArray[np.uint8]) -> Passed:
        """Classify a batch; see `visionserve.runtimes.Runtime`."""
        passes = []
        for view in np.split(pixels, len(pixels)):
            probabilities, *windows = self._infer(self._request, view)
            passes.append(Passed(probabilities, *(rows.mean(0, keepdims=True) for rows in windows)))
        return Passed.joined(passes)

    def contributions(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Explain a batch; see `visionserve.runtimes.Runtime`."""
        return self._infer(self._mapping_request, pixels)[0]

    def linear(self) -> Linear:
        """Return the last layer; see `visionserve.runtimes.Runtime`."""
        layer = last_layer(openvino.Core().read_model(self._artifact))
        weight, *bias = self._compile(layer).infer().values()
        found = np.ascontiguousarray(weight.T)
        return Linear(found, bias[0].ravel() if bias else np.zeros(found.shape[1], np.float32))

    def _infer(self, request: Any, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Run a forward pass, and release its memory if it was much larger than a crop's.

        OpenVINO would keep the activations of its largest pass for ever. Those of a `dense` view
        with a side of 1,024 pixels take 50 MB.
        """
        outputs = request.infer(pixels, share_inputs=True)
        found: list[NDArray[np.float32]] = [output.copy() for output in outputs.values()]
        if pixels.size > self._kept:
            request.get_compiled_model().release_memory()
            heap.trim()
        return found

    @cached_property
    def _mapping_request(self) -> Any:
        """A second model that makes maps, compiled at the first explanation.

        As an output of the first model, they would make every prediction slower.
        """
        return self._compile(with_contributions(openvino.Core().read_model(self._artifact)))

    def _computes(self) -> Precision:
        """Ask OpenVINO what it computes the layers in that are not quantized."""
        hint = self._request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT")
        return PRECISIONS[hint.get_type_name()]

    def _compile(self, model: openvino.Model, bf16: bool = False) -> Any:
        arithmetic: Precision = "int8" if _is_int8(model) else "bf16" if bf16 else "fp32"
        compiled = openvino.Core().compile_model(
            model,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": self._threads,
                "ENABLE_CPU_PINNING": False,
                "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
                "CPU_RUNTIME_CACHE_CAPACITY": _kernels(model, arithmetic),
            },
        )
        return compiled.create_infer_request()


def _kernels(model: openvino.Model, arithmetic: Precision) -> int:
    """Return how many kernels are kept for a model."""
    layers = sum(node.get_type_name() in LAYERS for node in model.get_ops())
    return min(SIZES * layers, KERNELS[arithmetic])


def _is_int8(model: openvino.Model) -> bool:
    return any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())


def with_features(model: openvino.Model) -> openvino.Model:
    """Return a model with a second output: what its last linear layer gets, a row for each window.

    In INT8, these are rounded as they are for that layer. Features from before the rounding would
    keep OpenVINO from fusing it, which moves probabilities and takes time; these do neither.
    """
    outputs = [model.get_result().input_value(0), _linear(model).input_value(0)]
    return openvino.Model(outputs, model.get_parameters())


def last_layer(model: openvino.Model) -> openvino.Model:
    """Return a model without an input that outputs the last layer's weight, and its bias if any.

    The weight is of shape (classes, channels).
    """
    after, node = None, model.get_result()
    outputs = []
    while node.get_type_name() not in ("AvgPool", "Convolution"):
        if node.get_type_name() == "MatMul":
            outputs = [node.input_value(1)]
            if not node.get_attributes()["transpose_b"]:
                outputs = [opset.transpose(outputs[0], np.array([1, 0])).output(0)]
            if after is not None and after.get_type_name() == "Add":
                outputs.append(after.input_value(1))
        after, node = node, node.input_value(0).get_node()
    return openvino.Model(outputs, [])


def with_contributions(model: openvino.Model) -> openvino.Model:
    """Return a model that outputs contributions in place of probabilities.

    It applies the last linear layer to each position of the feature map, where the original
    applies it to pooled windows. In INT8, it also skips the quantization between the pool and
    that layer, whose range fits pooled features alone. Where the last operation sums up groups,
    so do the maps; see `visionserve.models.FullyConvolutional.contributions`.
    """
    last = model.get_result().input_value(0).get_node()
    linear = _linear(model)
    features = _producer(linear, "AvgPool").input_value(0)
    maps = opset.transpose(features, np.array([0, 2, 3, 1]))
    weight = linear.input_value(1)
    mapped = opset.matmul(maps, weight, False, linear.get_attributes()["transpose_b"])
    if last.get_type_name() == "MatMul":
        probabilities, members = (last.input_value(index) for index in (0, 1))
        least = np.array(LEAST, np.float32)
        weights = opset.unsqueeze(opset.maximum(probabilities, least), np.array([1, 2]))

        def summed(values: Any) -> Any:
            return opset.matmul(values, members, False, last.get_attributes()["transpose_b"])

        mapped = opset.divide(summed(opset.multiply(mapped, weights)), summed(weights))
    return openvino.Model([mapped], model.get_parameters())


def _linear(model: openvino.Model) -> Any:
    """Return the linear layer that follows the pool."""
    node, found = model.get_result(), None
    while node.get_type_name() not in ("AvgPool", "Convolution"):
        found = node if node.get_type_name() == "MatMul" else found
        node = node.input_value(0).get_node()
    return found


def _producer(node: Any, kind: str) -> Any:
    """Return the nearest operation of a kind among those that produce a node's first input."""
    node = node.input_value(0).get_node()
    while node.get_type_name() != kind:
        node = node.input_value(0).get_node()
    return node
