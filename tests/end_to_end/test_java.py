"""Java, from the machine or from PyPI."""

import os
import subprocess
from pathlib import Path

import pytest

from scripts.server import java


def test_without_java_the_packaged_one_is_found_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    home = java.java_home()
    assert home == java.packaged()
    done = subprocess.run([home / "bin" / "java", "-version"], capture_output=True, check=True)
    assert b"version" in done.stderr


@pytest.mark.parametrize(("version", "chosen"), [("17.0.15", True), ("11.0.2", False)])
def test_a_java_on_the_path_is_taken_from_version_17_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, chosen: bool
) -> None:
    program = tmp_path / "jdk" / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    program.chmod(0o755)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}/bin")
    assert (java.java_home() == tmp_path / "jdk") == chosen
