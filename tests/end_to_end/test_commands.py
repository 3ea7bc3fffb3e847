"""The one command, `visionserve`."""

import argparse
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import pytest

from tests.end_to_end.test_readmes import READMES
from tests.end_to_end.test_readmes import commands as in_text
from tests.helpers import called
from visionserve_tools import commands, lock, paths
from visionserve_tools.arguments import Parser

VISIONSERVE = Path(sys.executable).with_name("visionserve")


def visionserve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([VISIONSERVE, *arguments], capture_output=True, text=True, cwd="/")


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help_tells_each_command_in_a_line(arguments: tuple[str, ...]) -> None:
    done = visionserve(*arguments)
    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("  ")]
    folder = Path(commands.__file__).parent
    there = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert [name for name, *_ in lines] == commands.names() and set(commands.names()) == there
    assert all(len(about) > 3 for _, *about in lines)


def test_a_command_runs_by_its_name_from_any_folder() -> None:
    done = visionserve("manage", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: visionserve manage ")


@pytest.mark.parametrize("option", ["--models resnet18", "--prof local"])
def test_an_option_that_would_be_ignored_or_guessed_is_refused(option: str) -> None:
    done = visionserve("serve", "stop", *option.split())
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(f"unrecognized arguments: {option}")


@pytest.mark.parametrize("name", commands.names())
def test_help_waits_for_no_heavy_import(name: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "visionserve_tools", name, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=paths.ROOT)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert imported.isdisjoint({"torch", "numpy", "scipy", "PIL", "requests"})


def test_a_plan_needs_no_extra() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "visionserve_tools", "capacity"]
    done = subprocess.run([*command, "--service-time-ms", "8"], capture_output=True, text=True)
    assert done.returncode == 0 and "| 10 | 625.0 | 50% |" in done.stdout
    assert not re.search(r"\b(torch|scipy)\b", done.stderr)


def test_what_is_no_command_is_refused_in_a_line() -> None:
    done = visionserve("bench-", "--help")
    assert done.returncode == 2
    assert done.stderr == "bench- is no command; visionserve --help lists them.\n"
    assert "manag is no command (is it manage?);" in visionserve("manag", "list").stderr
    assert "version is no command (is it --version?);" in visionserve("version").stderr


def test_what_nginx_cannot_take_is_told_by_an_example(tmp_path: Path) -> None:
    for option, value, example in (
        ("--upstream", "x key.json", "http://127.0.0.1:8080"),
        ("--listen", "x", "127.0.0.1:8000"),
        ("--probes", "http://127.0.0.1:8001", "127.0.0.1:8000"),
        ("--model", "a/b", "resnet18"),
        ("--rate", "fast", "20r/s"),
        ("--trust", "10.0.0.0/33", "10.0.0.0/8"),
        ("--allow-origin", "app.example", "https://app.example"),
    ):
        served = ("--upstream", "http://127.0.0.1:9", "key.json")
        upstream = () if option == "--upstream" else served
        done = called("proxy", "start", *upstream, option, *value.split(), "--state", tmp_path)
        name, first = option.removeprefix("--"), value.split()[0]
        assert done.stderr == f"{name}: {first!r} cannot be: give it as {example}.\n"


@pytest.mark.parametrize(
    "words",
    [
        "proxy start --model x --upstream http://127.0.0.1:9 /absent/key.json --state {}",
        "build efficientnet_lite0 --expect /absent/expected.csv --store {}",
    ],
)
def test_a_file_that_is_not_there_is_told_in_words(words: str, tmp_path: Path) -> None:
    done = visionserve(*words.format(tmp_path).split())
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert re.search(r"/absent\S*: no such file or directory\.", done.stderr)


def parsers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Parser]:
    """Each command's parser, and those of its own commands after it."""
    found: list[Parser] = []

    def keep(parser: Parser) -> NoReturn:
        found.append(parser)
        sys.exit()

    for name in commands.names():
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(Parser, "parse_args", keep)
            import_module(f"visionserve_tools.commands.{name}").main()
    for parser in found:
        yield parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from action.choices.values()


def test_every_help_ends_with_an_example_and_documents_parse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As far as options and choices go: what the arguments name need not be there."""
    there = {parser.prog: parser for parser in parsers(monkeypatch)}
    for prog, parser in there.items():
        assert parser.format_help().endswith(f"\nexample:\n  {parser.example}\n"), prog
        _, name, *arguments = words = parser.example.split()
        assert set(prog.split()) <= set(words), parser.example
        there[f"visionserve {name}"].parse_args(arguments)
    documented = [line for page in (*READMES, "config/OPERATE.md") for line in in_text(page)]
    called = [re.search(r"(?:^|/)visionserve (\w+)(.*?)(?: [|>].*)?$", line) for line in documented]
    assert sum(map(bool, called)) > 30
    for match in filter(None, called):
        there[f"visionserve {match[1]}"].parse_args(shlex.split(match[2]))


NUMBERS = {
    "build": "--resize --crop --mean --std",
    "classify x": "--top-k --threshold --concurrency --retries",
    "train x": "--seed --epochs --batch --learning-rate",
    "manage scale x": "minimum",
    "manage register x": "--workers",
    "capacity --service-time-ms 1": "--service-time-ms --workers --rate --p99-ms",
    "evaluate": "--enlarge",
    "robustness": "--photographs",
    "tests.stress.fuzz": "--runs",
    "tests.stress.soak": "--minutes --interval",
    "tests.stress.overload": "--times --seconds",
    "tests.bench.__main__": "--rounds --seconds",
    "tests.bench.page": "--rounds",
    "tests.bench.device": "--forward-ms --decoders --batches --seconds",
    "tests.bench.bare store image": "--processes --seconds",
}

NO_NUMBERS = ("-1", "nan", "inf", "1e999", "9" * 5000, "x", "", "١", "１", "1_0", " 1", "1 ", "+1")


def test_a_number_that_cannot_be_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = "".join(path.read_text() for path in paths.TOOLS.rglob("*.py"))
    assert not re.search(r"type=(int|float)\b", sources), "visionserve_tools.arguments has bounds"
    assert "ArgumentParser(" not in sources, "arguments.Parser takes whole names alone"
    for words, options in NUMBERS.items():
        name, *first = words.split()
        main = import_module(name if "." in name else f"visionserve_tools.commands.{name}").main
        for option in options.split():
            for number in NO_NUMBERS:
                given = [option, number] if option.startswith("--") else [number]
                monkeypatch.setattr(sys, "argv", [name, *first, *given])
                with pytest.raises(SystemExit) as end:
                    pytest.fail(f"{words} {option} {number}: {main()}")
                *_, line = capsys.readouterr().err.splitlines()
                assert end.value.code == 2, (words, option, number)
                assert option in line and "give a " in line, line
                assert len(line) < 200


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["serve", "start", "--help"],
        ["serve", "status"],
        ["capacity", "--service-time-ms", "8"],
        ["proxy", "stop", "--state", "/absent"],
    ],
)
def test_a_reader_that_goes_early_is_no_error(arguments: list[str]) -> None:
    """As head does, which closes the pipe; here it is closed before anything is written."""
    with subprocess.Popen(
        [VISIONSERVE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout and running.stderr
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == 0


@pytest.mark.parametrize(
    ("ending", "code", "told"),
    [
        (">/dev/full", 1, "The output cannot be written: no space left on device.\n"),
        ("2>/dev/full", 0, ""),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        (">&- 2>&-", 0, ""),
    ],
)
def test_an_output_that_cannot_be_written_is_a_line(ending: str, code: int, told: str) -> None:
    for command in ("--help", "capacity --service-time-ms 8"):
        shell = ["sh", "-c", f"{VISIONSERVE} {command} {ending}"]
        done = subprocess.run(shell, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (code, told)
        assert bool(done.stdout) is ending.startswith("2")


def test_a_log_whose_reader_has_gone_ends_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [VISIONSERVE, "repack", "none", "--store", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout and running.stderr
        running.stderr.close()
        assert running.stdout.read() == ""
    assert running.returncode == 1


# At an import, as if Ctrl-C came then.
INTERRUPTED = """
import os, signal, sys
_, chosen, *sys.argv = sys.argv
class Finder:
    def find_spec(self, name, *_):
        if name == chosen:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from visionserve_tools.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    "name",
    [
        *("importlib.metadata", "visionserve_tools.commands"),
        *("visionserve_tools.commands.build", "pydantic"),
    ],
)
def test_ctrl_c_before_a_command_begins_is_a_line(name: str, tmp_path: Path) -> None:
    words = [name, "visionserve", "build", "none", "--store", str(tmp_path)]
    command = [sys.executable, "-c", INTERRUPTED, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")


def test_ctrl_c_ends_an_installation_in_a_line() -> None:
    """As `make serve` begins with; here of an index that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        given = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index, "PIP_FIND_LINKS": ""}
        command = [sys.executable, "-m", "visionserve_tools.installer", "Installing.", "absent==1"]
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | given
        ) as running:
            silent.accept()
            running.send_signal(signal.SIGINT)
            assert running.stderr
            said = running.stderr.read()
    assert said == "Installing.\nInterrupted; give the command again to go on.\n"
    assert running.returncode == 130


def test_ctrl_c_ends_a_command_in_a_line(tmp_path: Path) -> None:
    with (
        lock.alone(tmp_path),
        subprocess.Popen(
            [VISIONSERVE, "proxy", "stop", "--state", tmp_path], stderr=subprocess.PIPE, text=True
        ) as running,
    ):
        assert running.stderr
        assert "waiting for the end of process" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        assert running.stderr.read() == "Interrupted.\n"
    assert running.returncode == 130
