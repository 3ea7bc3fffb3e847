"""The runtimes, precisions and TTA modes that are compared."""

from typing import get_args

from visionserve.config import TTA, HandlerConfig
from visionserve.processor import multiplies_bf16

VARIANTS = {
    "pytorch fp32": HandlerConfig(runtime="pytorch"),
    "openvino fp32": HandlerConfig(runtime="openvino"),
    "openvino fp32, fast decode": HandlerConfig(runtime="openvino", decode="fast"),
    "openvino bf16": HandlerConfig(runtime="openvino", precision="bf16"),
    "openvino int8": HandlerConfig(runtime="openvino", precision="int8"),
    "openvino int8, fast decode": HandlerConfig(
        runtime="openvino", precision="int8", decode="fast"
    ),
}
if not multiplies_bf16():
    del VARIANTS["openvino bf16"]  # It would be FP32.
MODES: tuple[TTA, ...] = get_args(TTA)
