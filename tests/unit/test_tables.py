"""Markdown tables."""

import math

from visionserve_tools.report.tables import percent, table


def test_a_colon_aligns_a_column_right() -> None:
    lines = ["| server | requests/s |", "|---|---:|", "| ours | 80 |", "| theirs |  |"]
    assert table(["server", "requests/s:"], [("ours", 80), ("theirs", "")]) == "\n".join(lines)


def test_a_name_ends_neither_its_cell_nor_its_row() -> None:
    (*_, line) = table(["class"], [["a | b\nc\x1b"]]).splitlines()
    assert line == "| a \\| b\N{REPLACEMENT CHARACTER}c\N{REPLACEMENT CHARACTER} |"


def test_a_share_of_nothing_is_a_dash() -> None:
    assert percent(None) == percent(math.nan) == percent(math.nan, math.nan, math.nan) == "–"
    assert percent(0.9876) == "98.8%" and percent(0.9876, digits=0) == "99%"
    assert percent(0.5, low=0.25, high=1.0) == "50.0% (25.0% to 100.0%)"
