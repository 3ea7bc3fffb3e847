"""The commands of the README files do what the text says of them, on the ports that it names."""

import csv
import doctest
import importlib.util
import io
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.test_doors import grpc_port
from tests.helpers import REAL, site_of
from visionserve.classifier import Classifier
from visionserve_tools import environment, paths, photos
from visionserve_tools.archive.recipe import Recipe, build
from visionserve_tools.server import openapi
from visionserve_tools.server.client import Client
from visionserve_tools.server.nginx import Proxy
from visionserve_tools.server.torchserve import TorchServe

READMES = ("README.md", "handler/README.md", "scripts/README.md", "config/README.md")
OTHERS = (
    *("config/OPERATE.md", "tests/bench/RESULTS.md"),
    *(f".github/{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "NOTICES", "SECURITY")),
)
NOT_RUN = {
    "make test": "would run itself",
    "prometheus --config.file=config/prometheus/prometheus.yml": (
        "listens on every interface until it is stopped; test_observability runs the configuration"
    ),
    ".venv/bin/visionserve samples export labelled": "needs samples; test_samples does the same",
    **dict.fromkeys(
        (
            "make image IMAGE=visionserve:1.0.0-amd64",
            "make image IMAGE=visionserve:1.0.0-arm64 ARCH=arm64",
            "buildah manifest create visionserve:1.0.0",
            "buildah manifest add visionserve:1.0.0 localhost/visionserve:1.0.0-amd64",
            "buildah manifest add visionserve:1.0.0 localhost/visionserve:1.0.0-arm64",
            "buildah manifest push --all visionserve:1.0.0 docker://REGISTRY/visionserve:1.0.0",
        ),
        "takes qemu, buildah and a registry",
    ),
    **dict.fromkeys(
        (
            ".venv/bin/visionserve train pictures/ --architecture efficientnet_lite0",
            ".venv/bin/visionserve build efficientnet_lite0 --name pictures --weights "
            "model_store/trained/pictures/weights.pt",
            ".venv/bin/visionserve evaluate model_store/trained/pictures/held-out.csv --archive "
            "model_store/local/pictures.mar --output evaluation",
            "make serve MODELS=pictures",
        ),
        "needs class folders; test_train does the same",
    ),
    ".venv/bin/visionserve compare fp32/efficientnet_lite0.mar efficientnet_lite0 photographs/ "
    "--at-least -1": "needs a second archive; test_evaluate does the same",
    **dict.fromkeys(
        (
            ".venv/bin/visionserve build resnet18 --version 2.0 --profile server --weights new.pt",
            ".venv/bin/visionserve compare resnet18 resnet18-2.0 photographs/ --profile server "
            "--at-least -1",
            ".venv/bin/visionserve manage --profile server register resnet18-2.0.mar",
            ".venv/bin/visionserve proxy start --canary resnet18=2.0:5%",
            "curl http://127.0.0.1:8001/metrics",
            ".venv/bin/visionserve proxy start --canary resnet18=2.0:100%",
            ".venv/bin/visionserve manage --profile server set-default resnet18 2.0",
            ".venv/bin/visionserve proxy start --canary resnet18=2.0:0%",
        ),
        "needs a second version; test_nginx does the same",
    ),
    ".venv/bin/visionserve classify --engine ray --archive "
    "model_store/local/efficientnet_lite0.mar photos/ --output rows.csv": (
        "needs Ray, which listens on every interface: `make test-ray`"
    ),
}
HOST = "127.0.0.1:8000"
VISIONSERVE = ".venv/bin/visionserve"
BEFORE = {
    "scripts/README.md": [f"{VISIONSERVE} manage unregister mountains"],
    "config/README.md": ["make stop"],
}
Printed = dict[str, dict[str, str]]


def blocks(readme: str, language: str) -> list[str]:
    text = (paths.ROOT / readme).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(readme: str) -> list[str]:
    """Return the shell commands of a README in order, each in one line and without a comment."""
    joined = re.sub(r"\\\n\s*|(?<=\|)\n\s*", " ", "".join(blocks(readme, "sh")))
    lines = (re.sub(r"\s#\s.*", "", line) for line in joined.splitlines())
    return [" ".join(line.split()) for line in lines if line.strip()]


def mentions(readme: str) -> list[str]:
    """Return what stands in the text as code."""
    text = (paths.ROOT / readme).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, common: Path, newer: Path) -> Path:
    """A copy of the repository with an environment of its own, and the files that are named.

    The profiles become those of the models that the run has converted, which are in FP32.
    """
    root = tmp_path_factory.mktemp("readmes")
    for folder in ("handler", "config", "scripts"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(paths.ROOT / folder, root / folder, ignore=ignored)
    for file in ("Makefile", "pyproject.toml", "README.md"):
        shutil.copy(paths.ROOT / file, root)
    local, server = (root / "config" / name / "model-config.yaml" for name in ("local", "server"))
    local.write_text(local.read_text().replace("precision: int8", "precision: fp32"))
    one = server.read_text().replace("minWorkers: 2", "minWorkers: 1")
    server.write_text(one.replace("precision: auto", "precision: fp32"))

    venv.create(root / ".venv", symlinks=True)
    (site,) = (root / ".venv" / "lib").glob("python*/site-packages")
    (site / "clone.pth").write_text(
        f"{root / 'handler'}\n{root / 'scripts'}\n{sysconfig.get_path('purelib')}\n"
    )
    for name in ("visionserve", "torchserve", "torch-model-archiver"):
        _, *code = Path(sys.executable).with_name(name).read_text().splitlines()
        script = root / ".venv" / "bin" / name
        script.write_text("\n".join([f"#!{root}/.venv/bin/python", *code]))
        script.chmod(0o755)
    for installed in (".serves", ".installed"):
        (root / ".venv" / installed).touch()

    build(Recipe(REAL, "resnet18", "1.0", server), root / "model_store" / "server")
    shutil.copy(common / "newer.pt", root / "tuned.pt")
    (root / "labels.txt").write_text("".join(f"mountain {number}\n" for number in range(1000)))
    (root / "names.json").write_text(json.dumps({"names": {"zh": {"alp": "高山雪景"}}}))
    (root / "home").mkdir()
    for folder in ("photos", "photographs/Egyptian cat"):
        (root / folder).mkdir(parents=True)
        shutil.copy(photos.greeting(), root / folder / "cat.png")
    Image.open(photos.greeting()).convert("RGB").save(root / "cat.jpg")
    tensor = np.asarray(Image.open(root / "cat.jpg").resize((64, 64)))
    given = {"name": "image", "shape": tensor.shape, "datatype": "UINT8"}
    request = {"inputs": [given | {"data": tensor.ravel().tolist()}]}
    (root / "request.json").write_text(json.dumps(request))
    return root


@pytest.fixture(scope="module")
def printed(clone: Path) -> Printed:
    """Run the commands of every README in one shell, and in a network of their own.

    A command that several of them have is run in the last one.

    Returns:
        What each command prints, by README.
    """
    if subprocess.run(["unshare", "--net", "--map-root-user", "true"]).returncode != 0:
        pytest.skip("this machine gives no process a network of its own")
    script = """
        set -e -o pipefail
        ip link set lo up
        export TORCH_HOME="$PWD/hub" HOME="$PWD/home" MPLCONFIGDIR=FONTS
        curl() { command curl -sS --fail-with-body "$@"; }
        trap 'make stop; make stop PROFILE=server; .venv/bin/visionserve proxy stop' EXIT
    """
    script = script.replace("FONTS", shlex.quote(matplotlib.get_cachedir()))
    files: dict[str, dict[str, Path]] = {readme: {} for readme in READMES}
    for at, (readme, of_readme) in enumerate(files.items(), 1):
        again = {command for later in READMES[at:] for command in commands(later)}
        for command in BEFORE.get(readme, []) + commands(readme):
            if command not in NOT_RUN and command not in again:
                of_readme[command] = file = clone / f"{len(script)}.txt"
                script += f"echo {shlex.quote(command)} >&2\n"
                script += f"{{\n{command.replace('HOST', HOST)}\n}} > {shlex.quote(str(file))}\n"
    shell = ["unshare", "--net", "--map-root-user", "bash", "-c", script]
    done = subprocess.run(shell, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        readme: {command: file.read_text() for command, file in of_readme.items()}
        for readme, of_readme in files.items()
    }


def test_images_are_classified(printed: Printed) -> None:
    of_readme = printed["README.md"]
    raw, form, sure, two, base64 = (
        of_readme[command] for command in of_readme if "$URL" in command
    )
    answer = json.loads(raw)
    assert "cat" in answer["predictions"][0]["label"]
    assert len(json.loads(form)["predictions"]) == 5 and json.loads(form)["tta"] == "five_crop"
    assert "under 90%" in json.loads(sure)["warning"]
    good, bad = json.loads(two)
    assert good["predictions"] == json.loads(base64)["predictions"] == answer["predictions"]
    assert bad["error"]["code"] == "unsupported_format"
    *_, everyday, both = of_readme.values()
    (best, *_) = everyday.partition(f"{REAL}-everyday 1.0 on chelsea.png, ")[2].splitlines()[1:]
    assert best.split()[1:] == ["cat"]
    assert "mountains 1.0 on chelsea.png" in both and f"{REAL} 1.0 on chelsea.png" in both
    assert re.search(r"mountain \d", both), (
        "a user's labels around a model that was converted before"
    )


def test_each_door_answers(printed: Printed, clone: Path) -> None:
    answer = json.loads(printed["README.md"]["curl -T $CAT $URL"])
    explained, invoked, first, second, labelled = (
        json.loads(text) for text in printed["handler/README.md"].values() if text
    )
    assert all(prediction.pop("explanation")["grid"] for prediction in explained["predictions"])
    for other in (explained, invoked, first["predictions"][0]):
        assert other | {"cached": True} == answer | {"cached": True}
    labels = [prediction["label"] for prediction in answer["predictions"]]
    assert second["outputs"][0]["data"] == labels
    assert [found["label"] for found in labelled] == labels[:2]
    assert Image.open(clone / "where.png").format == "PNG"


def test_no_build_and_no_worker_is_reported(printed: Printed, clone: Path) -> None:
    """OpenVINO keeps the ID in that folder under which it reports to Google Analytics."""
    assert any("visionserve build" in command for command in printed["scripts/README.md"])
    assert not (clone / "home" / "intel").exists()


def test_versions_follow_each_other(printed: Printed, clone: Path) -> None:
    of_readme = printed["scripts/README.md"]
    assert f"{REAL} 1.0 (default): workers 1 ready" in of_readme[f"{VISIONSERVE} manage list"]
    (row,) = csv.DictReader((clone / "rows.csv").read_text().splitlines())
    assert "cat" in row["label_1"] and row["version"] == "2.0"


def test_temperatures_are_fitted(printed: Printed, clone: Path) -> None:
    store = clone / "model_store" / "local"
    with zipfile.ZipFile(store / f"{REAL}.mar") as archive:
        packed = json.loads(archive.read("metadata.json"))["temperatures"]
    fitted = json.loads((store / f"{REAL}-temperatures.json").read_text())
    assert fitted["temperatures"] == packed and packed
    assert (clone / "evaluation" / "worst.html").exists()


def test_the_plan_is_the_one_that_is_printed(printed: Printed) -> None:
    plan = printed["scripts/README.md"][f"{VISIONSERVE} capacity --service-time-ms 8"]
    readme = (paths.ROOT / "scripts/README.md").read_text(encoding="utf-8")
    table = re.search(r"^\| workers \|.*\n.*\n((?:\|.*\n)+)", readme, re.MULTILINE)
    assert table and set(table[1].splitlines()) <= set(plan.splitlines())


def test_nginx_answers(printed: Printed, clone: Path) -> None:
    image, described, tensors = (
        json.loads(text)
        for command, text in printed["config/README.md"].items()
        if "curl" in command and text
    )
    assert described["name"] == "resnet18" and described["versions"] == ["1.0"]
    assert json.loads((clone / "openapi.json").read_text())["openapi"] == "3.1.0"
    assert image["model"] == "resnet18" and len(image["predictions"]) == 3
    assert tensors["outputs"][0]["shape"] == [1, 3]


def test_no_readme_and_no_command_is_left_out() -> None:
    found = [paths.ROOT / "README.md", *paths.ROOT.glob("[a-z]*/**/README.md")]
    assert {str(path.relative_to(paths.ROOT)) for path in found} == set(READMES)
    assert set(NOT_RUN) < {command for readme in READMES for command in commands(readme)}
    languages = {
        language
        for readme in READMES
        for language in re.findall(r"^```(\w+)$", (paths.ROOT / readme).read_text(), re.MULTILINE)
    }
    assert languages <= {"sh", "python", "js", "json", "mermaid"}


def test_links_lead_somewhere() -> None:
    """To a file that there is, and to a heading of it."""
    for page in (*READMES, *OTHERS):
        text = (paths.ROOT / page).read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https:)([^)\s]+)\)", text):
            file, _, anchor = link.partition("#")
            target = (paths.ROOT / page).parent / file if file else paths.ROOT / page
            assert target.exists(), f"{page}: {link}"
            if anchor:
                headings = re.findall(
                    r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE
                )
                slugs = {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
                assert anchor in slugs, f"{page}: {link}"


def test_the_walk_from_bytes_to_answer_names_each_room() -> None:
    text = (paths.ROOT / "handler/README.md").read_text(encoding="utf-8")
    walk = text.partition("| module |")[2].partition("**Batches.**")[0]
    named = re.findall(r"`(\w+(?:\.py|/))`", walk)
    rooms = [file for file in (paths.HANDLER / "visionserve").iterdir() if file.name[:2] != "__"]
    there = [f"{file.name}/" if file.is_dir() else file.name for file in rooms]
    assert sorted(named) == sorted([*there, "visionserve_handler.py"])


def test_each_code_of_an_error_is_listed() -> None:
    text = (paths.ROOT / "handler/README.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^## Errors\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    assert {code for found in openapi.codes().values() for code in found} <= set(
        re.findall(r"`(\w+)`", table)
    )


def test_each_alert_says_what_to_do_first() -> None:
    alerts = (paths.CONFIG / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    told = (paths.CONFIG / "OPERATE.md").read_text(encoding="utf-8")
    named = re.findall(r"- alert: (\w+)", alerts)
    assert named == re.findall(r"^\| (Visionserve\w+) \|", told, re.MULTILINE)


@pytest.mark.parametrize("readme", [*READMES, *OTHERS])
def test_commands_in_the_text_exist(readme: str) -> None:
    """Targets of make, commands with their options and subcommands, modules of Python."""
    targets = re.findall(r"^([\w-]+):", (paths.ROOT / "Makefile").read_text(), re.MULTILINE)
    for code in mentions(readme):
        program, *words = code.split()
        match program.rpartition("/")[2], words:
            case "make", _:
                assert {word for word in words if "=" not in word} <= set(targets), code
            case "visionserve", ["install", extra] if extra.islower():
                assert extra in environment.extras(), code
            case "visionserve", [name, *options] if not name.startswith("--"):
                source = (paths.TOOLS / "commands" / f"{name}.py").read_text()
                for before, word in itertools.pairwise(["", *options]):
                    if word.startswith("--") or (word.islower() and not before.startswith("--")):
                        assert f'"{word}"' in source, code
            case "python", ["-m", module]:
                assert importlib.util.find_spec(module), code
            case "python", [script]:
                assert (paths.ROOT / script).is_file(), code


def test_a_python_client(server: TorchServe, client: Client, tmp_path: Path) -> None:
    (code,) = blocks("README.md", "python")
    for old, new in (
        ("Bearer KEY", client.token("inference")["Authorization"]),
        ("http://127.0.0.1:8080", client.inference),
    ):
        assert old in code
        code = code.replace(old, new)
    shutil.copy(photos.greeting(), tmp_path / "cat.jpg")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    answer = client.predict(REAL, photos.greeting().read_bytes(), top_k=2).json()
    assert done.stdout == f"{answer['predictions']}\n", done.stderr
    for refused in (code.replace("Bearer ", "Bearer x"), code.replace("Top-K", "Top-Z")):
        done = subprocess.run([*command[:2], refused], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr


def test_docstrings_begin_with_what_runs(
    server: TorchServe, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(photos.greeting(), tmp_path / "cat.jpg")
    with zipfile.ZipFile(server.store / f"{REAL}.mar") as archive:
        archive.extractall(tmp_path / "unpacked")
    monkeypatch.chdir(tmp_path)
    here = {
        "http://127.0.0.1:8080": client.inference,
        "http://127.0.0.1:8081": client.management,
        ".torchserve/server": str(server.state),
    }
    for documented in (Classifier, Client):
        text = documented.__doc__ or ""
        for old, new in here.items():
            text = text.replace(old, new)
        names = vars(sys.modules[documented.__module__])
        example = doctest.DocTestParser().get_doctest(text, {**names}, documented.__name__, None, 0)
        said = io.StringIO()
        tried = doctest.DocTestRunner().run(example, out=said.write)
        assert tried.attempted >= 6 and tried.failed == 0, said.getvalue()


def test_the_grpc_client(server: TorchServe, client: Client, tmp_path: Path) -> None:
    """It runs in any folder, and tells an image's error."""
    (code,) = [code for code in blocks("handler/README.md", "python") if "grpc" in code]
    for old, new in (
        ("Bearer KEY", client.token("inference")["Authorization"]),
        ("/path/to/visionserve", str(paths.ROOT)),
        ("cat.jpg", str(tmp_path / "cat.jpg")),
        ("127.0.0.1:7070", f"127.0.0.1:{grpc_port(server)}"),
    ):
        assert old in code
        code = code.replace(old, new)
    command = [sys.executable, "-c", code]
    shutil.copy(photos.greeting(), tmp_path / "cat.jpg")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    answer = client.predict(REAL, photos.greeting().read_bytes()).json()
    assert done.stdout == f"{answer['predictions'][:1]}\n", done.stderr
    (tmp_path / "cat.jpg").write_bytes(b"x")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "") and "format" in done.stderr


def test_tritons_client(server: TorchServe, client: Client, proxy: Proxy, tmp_path: Path) -> None:
    (code,) = [code for code in blocks("handler/README.md", "python") if "triton" in code]
    site = site_of(server)
    proxy.start(site)
    assert "127.0.0.1:8080" in code
    shutil.copy(photos.greeting(), tmp_path / "cat.jpg")
    command = [sys.executable, "-c", code.replace("127.0.0.1:8080", site.listen)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    answer = client.predict(REAL, photos.greeting().read_bytes()).json()
    assert all(p["label"] in done.stdout for p in answer["predictions"]), done.stderr
