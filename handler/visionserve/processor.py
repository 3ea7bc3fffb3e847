"""What INT8 has to know of the processor."""

import re
from pathlib import Path

VNNI = {"avx512_vnni", "avx_vnni"}


def overflows(cpuinfo: str | None = None) -> bool:
    """Tell whether the processor's sums of INT8 products can overflow.

    Without VNNI, an x86 processor adds two products of a pixel's 8 bits and a weight's 8 bits in 16
    bits, and cuts what is too large. On 500 photographs that cost efficientnet_lite0 two points of
    Top-1. Weights of half the range never add up to so much.
    Source: https://docs.openvino.ai/2026/openvino-workflow/model-optimization-guide/quantizing-models-post-training.html

    Args:
        cpuinfo: the text of `/proc/cpuinfo`; this machine's if None.
    """
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if cpuinfo is None else cpuinfo
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return flags is not None and not VNNI & set(flags[1].split())
