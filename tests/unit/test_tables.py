"""Markdown tables."""

from visionserve_tools.report.tables import table


def test_a_colon_aligns_a_column_right() -> None:
    lines = ["| server | requests/s |", "|---|---:|", "| ours | 80 |", "| theirs |  |"]
    assert table(["server", "requests/s:"], [("ours", 80), ("theirs", "")]) == "\n".join(lines)
