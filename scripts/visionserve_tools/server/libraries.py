"""The Java libraries in TorchServe's frontend, and their advisories that nobody has reviewed."""

import re
import sys
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import requests

from visionserve_tools import paths

TABLE = paths.CONFIG / "README.md"

# The libraries of TorchServe 0.12.0, by their names in Maven's repository: the release, the day on
# which its last class was compiled, and what its classes' names begin with. TorchServe's build
# leaves out the files in which a jar names its release, so that the day has to tell it.
KNOWN = """
io.netty:netty-codec-http             4.1.53.Final  2020-10-13  io/netty/handler/codec/http/
io.netty:netty-codec-http2            4.1.53.Final  2020-10-13  io/netty/handler/codec/http2/
io.netty:netty-codec                  4.1.53.Final  2020-10-13  io/netty/handler/codec/
io.netty:netty-handler                4.1.53.Final  2020-10-13  io/netty/handler/
io.netty:netty-common                 4.1.53.Final  2020-10-13  io/netty/
io.grpc:grpc-netty-shaded             1.50.0        2022-10-11  io/grpc/netty/
io.grpc:grpc-protobuf                 1.50.0        2022-10-11  io/grpc/
io.perfmark:perfmark-api              0.25.0        2022-02-24  io/perfmark/
com.google.protobuf:protobuf-java     3.21.7        2022-09-29  com/google/protobuf/
com.google.code.gson:gson             2.10.1        2023-01-06  com/google/gson/
com.google.guava:guava                31.1-android  2022-02-28  com/google/common/
org.yaml:snakeyaml                    2.1           2023-08-04  org/yaml/
org.apache.logging.log4j:log4j-core   2.17.1        2021-12-27  org/apache/logging/
org.slf4j:slf4j-api                   1.7.32        2021-12-27  org/slf4j/
com.lmax:disruptor                    3.4.4         2021-04-29  com/lmax/
org.apache.commons:commons-compress   1.25.0        2023-10-06  org/apache/commons/compress/
commons-io:commons-io                 2.16.1        2024-04-04  org/apache/commons/io/
commons-cli:commons-cli               1.3.1         2015-06-14  org/apache/commons/cli/
io.prometheus:simpleclient            0.9.0         2020-05-11  io/prometheus/
org.codehaus.groovy:groovy            3.0.9         2021-09-03  org/codehaus/groovy/
org.apache.ant:ant                    1.10.11       2021-07-10  org/apache/tools/
org.testng:testng                     7.4.0         2021-02-27  org/testng/
junit:junit                           4.13.2        2021-02-13  org/junit/
"""


@dataclass(frozen=True)
class Library:
    """A library in the jar.

    Attributes:
        name: its name in Maven's repository, as `GROUP:ARTIFACT`.
        release: its release; None if its classes are of another day than the known release's.
    """

    name: str
    release: str | None

    def __str__(self) -> str:
        """Return the name and the release."""
        return f"{self.name} {self.release or 'of an unknown release'}"


def audit(osv: str) -> int:
    """Print the libraries, and what OSV knows of them that the table of threats does not name.

    Args:
        osv: the address of OSV's query.

    Returns:
        The exit code: 1 if there is something to review, or OSV cannot be asked.
    """
    libraries = read(jar())
    print("\n".join(map(str, libraries)))
    try:
        found = [line for library in libraries for line in unreviewed(library, osv)]
    except (requests.RequestException, ValueError) as error:
        reason = type(error).__name__
        print(f"{osv} does not answer ({reason}): newer advisories may exist.", file=sys.stderr)
        return 1
    print("\n".join(found) or f"{TABLE} names all advisories of these.")
    return 1 if found else 0


def jar() -> Path:
    """Return the path of TorchServe's frontend."""
    return Path(str(distribution("torchserve").locate_file("ts/frontend/model-server.jar")))


def owner(entry: str) -> str | None:
    """Return the name of the library that a class belongs to, or None if none is known."""
    fitting = [(len(folder), name) for name, _, _, folder in _known() if entry.startswith(folder)]
    return max(fitting)[1] if fitting else None


def read(file: Path) -> list[Library]:
    """Return the libraries that have classes in a frontend."""
    built: dict[str, str] = {}
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith(".class") and (name := owner(entry.filename)):
                year, month, day, *_ = entry.date_time
                built[name] = max(f"{year}-{month:02}-{day:02}", built.get(name, ""))
    return [
        Library(name, release if built[name] == day else None)
        for name, release, day, _ in _known()
        if name in built
    ]


def unreviewed(library: Library, osv: str) -> list[str]:
    """Return what the table of threats does not name of a library's advisories, a line each.

    Raises:
        requests.RequestException: OSV cannot be reached or answers with an error.
        ValueError: what answers is not OSV.
    """
    if library.release is None:
        return [f"{library}: review {TABLE}."]
    package = {"ecosystem": "Maven", "name": library.name}
    response = requests.post(osv, json={"package": package, "version": library.release}, timeout=20)
    response.raise_for_status()
    reviewed = set(re.findall(r"CVE-\d+-\d+|GHSA(?:-\w{4}){3}", TABLE.read_text(encoding="utf-8")))
    advisories: list[dict[str, Any]] = response.json().get("vulns", [])
    return [
        f"{library}: {' '.join(names)} {advisory.get('summary', '')}"
        for advisory in advisories
        if reviewed.isdisjoint(names := [advisory["id"], *advisory.get("aliases", [])])
    ]


@cache
def _known() -> list[list[str]]:
    return [line.split() for line in KNOWN.strip().splitlines()]
