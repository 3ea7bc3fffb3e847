"""What INT8 and BF16 have to know of the processor."""

import platform
import re
from pathlib import Path

from visionserve.config import Precision, Wanted

CPUINFO = Path("/proc/cpuinfo")
VNNI = {"avx512_vnni", "avx_vnni"}
BF16 = {"avx512_bf16", "amx_bf16"}
# What a builder makes in another way, or proves in another arithmetic, on some processors.
DEPEND: tuple[Wanted, ...] = ("auto", "bf16", "int8")


def overflows(cpuinfo: str | None = None) -> bool:
    """Tell whether the processor's sums of INT8 products can overflow.

    Without VNNI, an x86 processor adds two products of a pixel's 8 bits and a weight's 8 bits in 16
    bits, and cuts what is too large. On 500 photographs that cost efficientnet_lite0 two points of
    Top-1. Weights of half the range never add up to so much.
    Source: https://docs.openvino.ai/2026/openvino-workflow/model-optimization-guide/quantizing-models-post-training.html

    Args:
        cpuinfo: the text of `/proc/cpuinfo`; this machine's if None.
    """
    flags = _flags(cpuinfo)
    return flags is not None and not VNNI & flags


def multiplies_bf16(cpuinfo: str | None = None) -> bool:
    """Tell whether the processor itself multiplies BF16, by AMX or AVX-512.

    OpenVINO would emulate it with AVX-512 alone, slower than FP32.
    Source: https://docs.openvino.ai/2026/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html

    Args:
        cpuinfo: as for `overflows`.
    """
    return bool(BF16 & (_flags(cpuinfo) or set()))


def precision(wanted: Wanted, close: bool = True) -> Precision:
    """Return what a model computes in on this processor.

    Args:
        wanted: what its configuration says.
        close: whether BF16 was close enough to FP32 when the model was built.
    """
    if wanted == "auto" or wanted == "bf16":
        return "bf16" if close and multiplies_bf16() else "fp32"
    return wanted


def loosest(wanted: Wanted, close: bool = True) -> Precision:
    """Return what a model may compute in that is furthest from FP32, on any processor.

    Args:
        wanted: what its configuration says.
        close: as for `precision`.
    """
    if wanted == "auto":
        return "bf16" if close else "fp32"
    return wanted


def reason(wanted: Wanted, found: Precision, close: bool = True) -> str | None:
    """Say what a model computes in here and why; None if that is what its configuration names.

    Args:
        wanted: what its configuration says.
        found: what it computes in.
        close: as for `precision`.
    """
    if found == wanted:
        return None
    if found == "bf16":
        return "in BF16, which this processor multiplies itself"
    if wanted == "fp16":
        return "in FP32, as no CUDA device is here"
    if wanted == "auto" and not close:
        return "in FP32, as BF16 was not close enough to it when the archive was built"
    return "in FP32, as this processor does not multiply BF16 itself (no AMX, no AVX-512 BF16)"


def is_special(wanted: Wanted) -> bool:
    """Tell whether the processor makes a builder do something else than others do.

    That is INT8 of half the range, or a model that is proved in BF16.
    """
    return overflows() if wanted == "int8" else precision(wanted) == "bf16"


def _flags(cpuinfo: str | None) -> set[str] | None:
    """Return the instruction sets of an x86 processor; None of another one."""
    text = CPUINFO.read_text(encoding="utf-8") if cpuinfo is None else cpuinfo
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return flags and set(flags[1].split())


def suits_int8(machine: str | None = None) -> bool:
    """Tell whether OpenVINO 2026.4 computes INT8 as it was quantized on this kind of processor.

    On ARM64 it computes nearly half of efficientnet_lite0's quantized convolutions in floats; the
    README of the repository has what that costs.

    Args:
        machine: as `platform.machine` tells it; this machine's if None.
    """
    return (machine or platform.machine()).lower() not in ("aarch64", "arm64")
