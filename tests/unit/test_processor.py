import pytest

from visionserve.processor import overflows


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu sse4_2 avx2 fma\nbugs : none\n", True),
        ("processor : 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\nbugs : none\n", False),
        ("processor : 0\nflags\t\t: fpu avx2 avx_vnni\n", False),
        ("processor : 0\nFeatures : fp asimd asimddp\n", False),
    ],
)
def test_sums_overflow_on_x86_without_vnni(cpuinfo: str, expected: bool) -> None:
    assert overflows(cpuinfo) == expected
