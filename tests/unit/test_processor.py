from pathlib import Path

import pytest
from packaging import markers

from visionserve import processor
from visionserve.config import Precision, Wanted
from visionserve.processor import multiplies_bf16, overflows, precision, reason, suits_int8
from visionserve_tools.archive.converted import packages

AVX512 = "processor : 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\nbugs : none\n"
AMX = "processor : 0\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_bf16 amx_tile amx_int8\n"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu sse4_2 avx2 fma\nbugs : none\n", True),
        (AVX512, False),
        ("processor : 0\nflags\t\t: fpu avx2 avx_vnni\n", False),
        ("processor : 0\nFeatures : fp asimd asimddp\n", False),
    ],
)
def test_sums_overflow_on_x86_without_vnni(cpuinfo: str, expected: bool) -> None:
    assert overflows(cpuinfo) == expected


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (AVX512, False),
        (AMX, True),
        ("flags : fpu avx512f avx512_bf16\n", True),
        ("flags : fpu avx2 avx_vnni avx_ne_convert\n", False),
        ("Features : fp asimd bf16\n", False),
    ],
)
def test_bf16_is_multiplied_by_amx_and_avx512_bf16(cpuinfo: str, expected: bool) -> None:
    assert multiplies_bf16(cpuinfo) == expected


@pytest.mark.parametrize(
    ("cpuinfo", "wanted", "close", "found", "why"),
    [
        (AMX, "auto", True, "bf16", "in BF16, which"),
        (AMX, "auto", False, "fp32", "not close enough"),
        (AMX, "bf16", True, "bf16", None),
        (AVX512, "auto", True, "fp32", "does not multiply BF16"),
        (AVX512, "bf16", True, "fp32", "does not multiply BF16"),
        (AMX, "fp32", True, "fp32", None),
        (AMX, "int8", True, "int8", None),
    ],
)
def test_what_a_model_computes_in(
    cpuinfo: str,
    wanted: Wanted,
    close: bool,
    found: Precision,
    why: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert precision(wanted, close) == found
    told = reason(wanted, found, close)
    assert why in told if why and told else told is why


@pytest.mark.parametrize(
    ("machine", "expected"),
    [("x86_64", True), ("AMD64", True), ("aarch64", False), ("arm64", False), ("ARM64", False)],
)
def test_int8_is_for_x86(machine: str, expected: bool) -> None:
    assert suits_int8(machine) == expected


def test_an_archive_made_on_one_machine_is_the_same_on_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its fingerprint holds these; for ARM64 there is no `cykooz-resizer`."""
    here, known = packages(), markers.default_environment()
    assert any(one.startswith("cykooz-resizer==") for one in here)
    other = {**known, "platform_machine": "aarch64"}
    monkeypatch.setattr(markers, "default_environment", lambda: dict(other))
    assert packages() == here
