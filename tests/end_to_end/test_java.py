"""Java, from the machine or from PyPI, and the files that it reads and writes."""

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from visionserve_tools.server import java
from visionserve_tools.server.properties import read_properties, write_properties

# Groovy is a part of TorchServe's jar: java.util.Properties reads a file and writes another.
PROPERTIES = """
def read = new Properties()
new File(args[0]).withInputStream { read.load(it) }
new File(args[1]).withWriter("UTF-8") { read.store(it, "Saving snapshot") }
print groovy.json.JsonOutput.toJson(read)
"""
VALUES = {
    "path": " /tmp/図像 test/a\\b:c=d#e!",
    "empty": "",
    "snapshot": '{\n\t"marName": "a.mar"\r\f}',
    "beyond": "😀 é \u0080 \uffff",
    "escape": r"\u0041 \n \\",
    "vmargs": "-Xms64m -XX:+UseSerialGC -Dx=y",
}


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


def test_properties_are_read_and_written_as_java_does(tmp_path: Path) -> None:
    ours, javas = tmp_path / "ours", tmp_path / "javas"
    after = {"after": "two spaces  ", "only": " "}  # Ours are escaped; Java's are dropped.
    write_properties(ours, VALUES | after)
    jar = Path(sysconfig.get_path("purelib")) / "ts" / "frontend" / "model-server.jar"
    command = [str(java.java_home() / "bin" / "java"), "-cp", str(jar), "groovy.ui.GroovyMain"]
    done = subprocess.run(
        [*command, "-e", PROPERTIES, str(ours), str(javas)], capture_output=True, check=True
    )
    assert json.loads(done.stdout) == read_properties(ours) == VALUES | after
    assert VALUES.items() <= read_properties(javas).items()
    assert "vmargs=-Xms64m -XX:+UseSerialGC -Dx=y\n" in ours.read_text(encoding="ascii")
