"""The runtimes, precisions and TTA modes that are compared."""

from typing import get_args

from visionserve.config import TTA, HandlerConfig

VARIANTS = {
    "pytorch fp32": HandlerConfig(runtime="pytorch"),
    "openvino fp32": HandlerConfig(runtime="openvino"),
    "openvino fp32, fast decode": HandlerConfig(runtime="openvino", decode="fast"),
    "openvino int8": HandlerConfig(runtime="openvino", precision="int8"),
    "openvino int8, fast decode": HandlerConfig(
        runtime="openvino", precision="int8", decode="fast"
    ),
}
MODES: tuple[TTA, ...] = get_args(TTA)
