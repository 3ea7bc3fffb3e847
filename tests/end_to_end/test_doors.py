"""The ways into the archive besides /predictions, on a real TorchServe, and through nginx."""

import base64
import gzip
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

import grpc
import jsonschema
import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies
from openapi_spec_validator import validate
from PIL import Image
from schemathesis import checks
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.helpers import RANDOM, REAL, encode, site_of
from visionserve.config import TTA
from visionserve.models import MODELS
from visionserve_tools import photos
from visionserve_tools.server.client import Client
from visionserve_tools.server.nginx import Proxy
from visionserve_tools.server.properties import read_properties
from visionserve_tools.server.torchserve import TorchServe

CAT = photos.greeting().read_bytes()
TEXT = base64.b64encode(CAT).decode()
JSON = {"Content-Type": "application/json"}
CONFORMANCE = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
TOO_LARGE = grpc.StatusCode.RESOURCE_EXHAUSTED


@dataclass(frozen=True)
class Entrance:
    """Where clients ask, with what, and at which address for the default model."""

    url: str
    headers: dict[str, str]
    invocations: str

    def post(self, path: str, **request: Any) -> requests.Response:
        headers = request.pop("headers", {}) | self.headers
        return requests.post(f"{self.url}{path}", headers=headers, timeout=60, **request)


@pytest.fixture(scope="module")
def nginx(server: TorchServe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entrance]:
    proxy, site = Proxy(tmp_path_factory.mktemp("doors") / "nginx"), site_of(server)
    proxy.start(site)
    yield Entrance(f"http://{site.listen}", {}, "/invocations")
    proxy.stop()


@pytest.fixture(params=["TorchServe", "nginx"])
def entrance(request: pytest.FixtureRequest, client: Client, nginx: Entrance) -> Entrance:
    if request.param == "nginx":
        return nginx
    token = client.token("inference")
    return Entrance(client.inference, token, f"/invocations?model_name={REAL}")


@pytest.fixture(scope="module")
def answer(client: Client) -> Any:
    return client.predict(REAL, CAT).json()


def test_v1_predict(entrance: Entrance, answer: Any) -> None:
    path = f"/v1/models/{REAL}:predict"
    response = entrance.post(path, json={"instances": [{"b64": TEXT}, {"b64": "&"}]})
    assert response.status_code == 207
    first, second = response.json()["predictions"]
    assert first == answer and second["error"]["code"] == "invalid_base64"


def test_v1_error(entrance: Entrance) -> None:
    response = entrance.post(f"/v1/models/{REAL}:predict", json={"instances": [{"b64": "eA=="}]})
    assert response.status_code == 415
    assert response.json()["error"].startswith("unsupported_format: ")


def test_invocations_answer_like_predictions(entrance: Entrance, answer: Any) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    assert entrance.post(entrance.invocations, data=CAT, headers=headers).json() == answer


def triton_client(entrance: Entrance) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(entrance.url.removeprefix("http://"))


def tensor(array: "np.ndarray[Any, Any]", binary: bool) -> triton.InferInput:
    name = np_to_triton_dtype(array.dtype)
    given = triton.InferInput("image", list(array.shape), name)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def agrees(result: triton.InferResult, answer: Any) -> None:
    predictions = answer["predictions"]
    labels = [
        [value.decode() if isinstance(value, bytes) else value for value in row]
        for row in result.as_numpy("label").tolist()
    ]
    assert labels == [[p["label"] for p in predictions]]
    assert result.as_numpy("class_id").tolist() == [[p["class_id"] for p in predictions]]
    expected = [[p["probability"] for p in predictions]]
    assert np.allclose(result.as_numpy("probability"), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["bytes", "pixels"])
def test_v2_with_tritons_own_client(entrance: Entrance, answer: Any, kind: str) -> None:
    pixels = np.asarray(Image.open(photos.greeting()).convert("RGB"))
    array = np.array([CAT], dtype=object) if kind == "bytes" else pixels
    names, client = ("label", "class_id", "probability", "features"), triton_client(entrance)
    for binary in (False, True):
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
        headers = dict(entrance.headers)
        given = [tensor(array, True)]
        result = client.infer(REAL, given, outputs=outputs, request_id="7", headers=headers)
        agrees(result, answer)
        assert result.as_numpy("features").shape == (1, 1280)
        assert result.get_response()["id"] == "7"
        assert result.get_response()["model_name"] == REAL
        assert all(("data" in result.get_output(name)) != binary for name in names)


def test_v2_plain_from_tritons_own_client(entrance: Entrance, answer: Any) -> None:
    """All is JSON, in a request that names no type; without a word of outputs, they are binary."""
    client, given = triton_client(entrance), tensor(np.array([TEXT], dtype=object), False)
    outputs = [triton.InferRequestedOutput("label", binary_data=False)]
    result = client.infer(REAL, [given], outputs=outputs, headers=dict(entrance.headers))
    assert result.get_output("label")["data"] == [p["label"] for p in answer["predictions"]]
    result = client.infer(REAL, [given], headers=dict(entrance.headers))
    agrees(result, answer)
    assert result.get_output("label")["parameters"]["binary_data_size"] > 12


def test_v2_pixels_in_json(entrance: Entrance) -> None:
    pixels = np.asarray(Image.open(photos.greeting()).convert("RGB").resize((300, 300)))
    body = {
        "inputs": [
            {
                "name": "image",
                "shape": list(pixels.shape),
                "datatype": "UINT8",
                "data": pixels.ravel().tolist(),
            }
        ],
        "parameters": {"top_k": 1, "tta": "none"},
    }
    (label, *_) = entrance.post(f"/v2/models/{REAL}/infer", json=body).json()["outputs"]
    assert label["shape"] == [1, 1] and "cat" in label["data"][0]


def test_v2_errors_reach_tritons_client(entrance: Entrance) -> None:
    array = np.array([b"x"], dtype=object)
    with pytest.raises(InferenceServerException, match="unsupported_format"):
        triton_client(entrance).infer(REAL, [tensor(array, True)], headers=dict(entrance.headers))


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "x", ""])
def test_a_length_that_is_none_is_the_requests_fault(client: Client, length: str) -> None:
    headers = client.token("inference") | {"Inference-Header-Content-Length": length}
    url = f"{client.inference}/v2/models/{REAL}/infer"
    response = requests.post(url, data=b"{}", headers=headers, timeout=60)
    assert response.status_code == 400 and "invalid_data" in str(response.json()["error"])


def test_nginx_leads_tritons_client_to_a_version(answer: Any, nginx: Entrance) -> None:
    """TorchServe itself has no address for it."""
    triton, given = triton_client(nginx), tensor(np.array([CAT], dtype=object), True)
    agrees(triton.infer(REAL, [given], model_version="1.0"), answer)


def test_nginx_tells_tritons_client_what_there_is(nginx: Entrance) -> None:
    client = triton_client(nginx)
    assert client.is_server_live() and client.is_server_ready()
    assert client.get_server_metadata()["name"] == "visionserve"
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    for version in ("", "1.0"):
        assert client.is_model_ready(REAL, version)
        found = client.get_model_metadata(REAL, version)
        assert (found["name"], found["versions"], found["platform"]) == (REAL, ["1.0"], "openvino")
        assert found["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
        types = {
            output["name"]: (output["datatype"], output["shape"]) for output in found["outputs"]
        }
        assert types["probability"] == ("FP32", [-1, -1]) and types["confident"] == ("BOOL", [-1])
        wanted = [triton.InferRequestedOutput(name) for name in types]
        given = tensor(np.array([CAT, CAT], dtype=object), True)
        result = client.infer(REAL, [given], version, outputs=wanted)
        for name, (datatype, shape) in types.items():
            got = result.get_output(name)
            assert (got["datatype"], len(got["shape"])) == (datatype, len(shape)), name
    assert not client.is_model_ready("absent") and not client.is_model_ready(REAL, "9.9")
    ready = requests.get(f"{nginx.url}/v1/models/{REAL}", timeout=60)
    assert ready.json() == {"name": REAL, "ready": True}


def test_answers_are_as_the_description_says(nginx: Entrance, answer: Any) -> None:
    described = requests.get(f"{nginx.url}/openapi.json", timeout=60).json()
    validate(described)
    components = {"components": described["components"]}
    image = {"Content-Type": "image/png"}
    explained = image | {"X-Classify-Features": "true", "X-Classify-Threshold": "1"}
    for path, place, request in (
        (f"/predictions/{REAL}", "/predictions/{model}", {"data": CAT, "headers": explained}),
        (
            f"/explanations/{REAL}/1.0",
            "/explanations/{model}/{version}",
            {"data": CAT, "headers": image},
        ),
        ("/invocations", "/invocations", {"files": [("data", CAT), ("data", b"x")]}),
        (f"/predictions/{REAL}", "/predictions/{model}", {"data": b"x", "headers": image}),
        (f"/predictions/{REAL}", "/predictions/{model}", {"json": {"report": {"label": None}}}),
        ("/predictions/absent", "/predictions/{model}", {"data": b"x", "headers": image}),
        ("/v1/models/absent:predict", "/v1/models/{model}:predict", {"json": {"instances": []}}),
        (f"/v2/models/{REAL}/infer", "/v2/models/{model}/infer", {"json": {"inputs": []}}),
    ):
        response = nginx.post(path, **request)
        reply = described["paths"][place]["post"]["responses"][str(response.status_code)]
        if "$ref" in reply:
            reply = described["components"]["responses"][reply["$ref"].rpartition("/")[2]]
        schema = reply["content"]["application/json"]["schema"]
        jsonschema.validate(response.json(), schema | components, jsonschema.Draft202012Validator)


def test_no_answer_is_undescribed(nginx: Entrance) -> None:
    """Whatever schemathesis makes of the description, to a model that there is and to others."""
    schema = schemathesis.openapi.from_url(f"{nginx.url}/openapi.json")
    statuses = set()
    for found in schema.get_all_operations():
        operation = found.ok()  # type: ignore[union-attr]

        @seed(1)
        @settings(
            max_examples=10 if operation.method == "post" else 2,
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(), image=strategies.sampled_from([CAT, b"x", None]))
        def check(case: Any, image: bytes | None) -> None:
            if image and "model" in case.path_parameters:
                case.path_parameters |= {"model": REAL}
            if image and case.media_type == "application/octet-stream":
                case.body = image
            answer = case.call_and_validate(checks=CONFORMANCE, timeout=60)
            statuses.add(answer.status_code)

        check()
    assert statuses >= {200, 400, 404, 415}, statuses


def test_every_error_of_the_protocol_is_one_string(nginx: Entrance) -> None:
    """Triton's client knows no other; what nginx, TorchServe and the handler say is told so."""
    client, given = triton_client(nginx), tensor(np.array([CAT], dtype=object), True)
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: client.infer("absent", [given]), "ModelNotFoundException: "),
        (lambda: client.infer(REAL, [given], model_version="9.9"), "ModelVersionNotFoundException"),
        (lambda: client.get_model_metadata("absent"), "ModelNotFoundException: "),
        (lambda: client.get_model_config(REAL), "not_found: There are "),
        (lambda: client.infer(REAL, [given], query_params={"a": 1}), "query_not_supported: "),
        (lambda: client.infer(REAL, [given], parameters={"tta": "x"}), "invalid_option: "),
    ]
    for call, told in calls:
        with pytest.raises(InferenceServerException, match=told):
            call()
    for path, request, told in (
        (f"/v2/models/{REAL}/infer", {"data": b"{", "headers": JSON}, "invalid_json: "),
        (f"/v2/models/{REAL}/infer", {"data": b"", "headers": JSON}, "invalid_json: "),
        (f"/v2/models/{REAL}/infer", {"data": bytes(8 << 20)}, "body_too_large: "),
        (f"/v2/models/{REAL}", {}, "method_not_allowed: "),
        ("/v1/models/absent:predict", {"json": {}}, "ModelNotFoundException: "),
        ("/v2/absent", {}, "not_found: "),
    ):
        response = nginx.post(path, **request)
        assert response.status_code >= 400
        assert response.headers["Content-Type"] == "application/json"
        assert response.json()["error"].startswith(told), response.text
    assert nginx.post("/absent").json()["error"]["code"] == "not_found"
    for method, path, allowed in (
        ("DELETE", f"/predictions/{REAL}", "GET, HEAD, POST, PUT"),
        ("POST", f"/v2/models/{REAL}/ready", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ):
        response = requests.request(method, f"{nginx.url}{path}", timeout=60)
        assert (response.status_code, response.headers["Allow"]) == (405, allowed)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_tritons_client_compresses(entrance: Entrance, answer: Any, coding: str) -> None:
    given = tensor(np.array([CAT], dtype=object), True)
    codings = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
    headers = dict(entrance.headers)
    agrees(triton_client(entrance).infer(REAL, [given], headers=headers, **codings), answer)


def test_a_compressed_body_is_read_or_refused_by_its_name(entrance: Entrance, answer: Any) -> None:
    path, image = f"/predictions/{REAL}", {"Content-Type": "image/png"}
    packed = gzip.compress(CAT)
    headers = image | {"Content-Encoding": "gzip"}
    assert entrance.post(path, data=packed, headers=headers).json() == answer
    for body, coding, expected in (
        (CAT, "br", (415, "unsupported_encoding")),
        (packed[:-9], "gzip", (400, "invalid_encoding")),
        (gzip.compress(bytes(50_000_000)), "gzip", (413, "body_too_large")),
    ):
        refused = entrance.post(path, data=body, headers=image | {"Content-Encoding": coding})
        assert (refused.status_code, refused.json()["error"]["code"]) == expected


def test_a_form_has_no_content_encoding(nginx: Entrance) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Encoding": "gzip"}
    refused = nginx.post(f"/predictions/{REAL}", data=gzip.compress(b"--b"), headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (415, "unsupported_encoding")


def test_v2_pixels_of_several_images(entrance: Entrance, answer: Any) -> None:
    pixels = np.asarray(Image.open(photos.greeting()).convert("RGB"))
    given = tensor(np.stack([pixels, pixels[:, ::-1]]), True)
    result = triton_client(entrance).infer(REAL, [given], headers=dict(entrance.headers))
    classes = result.as_numpy("class_id").tolist()
    assert len(classes) == 2
    assert classes[0] == [prediction["class_id"] for prediction in answer["predictions"]]


def test_hugging_faces_form(entrance: Entrance, answer: Any) -> None:
    body = {"inputs": TEXT, "parameters": {"top_k": 2}}
    expected = [{"label": p["label"], "score": p["probability"]} for p in answer["predictions"]]
    assert entrance.post(f"/predictions/{REAL}", json=body).json() == expected[:2]


@pytest.mark.parametrize("path", ["/v2", "/v2/health/ready", f"/v2/models/{REAL}", "/v1/models"])
def test_torchserve_has_no_metadata_of_the_protocols(client: Client, path: str) -> None:
    """As the README says: it answers some of them with `ts_open_inference_protocol=true` alone."""
    response = requests.get(
        f"{client.inference}{path}", headers=client.token("inference"), timeout=60
    )
    assert response.status_code == 404


def grpc_port(server: TorchServe) -> str:
    return read_properties(server.state / "config.properties")["grpc_inference_port"]


def predict_by_grpc(
    server: TorchServe, token: dict[str, str], fields: dict[str, bytes], model: str = REAL
) -> Any:
    protos, services = grpc.protos_and_services("config/inference.proto")
    metadata = [("protocol", "gRPC"), *((k.lower(), v) for k, v in token.items())]
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port(server)}") as channel:
        request = protos.PredictionsRequest(model_name=model, input=fields)
        stub = services.InferenceAPIsServiceStub(channel)
        answered = stub.Predictions(request, metadata=metadata)
    return json.loads(answered.prediction)


def test_grpc(server: TorchServe, client: Client, answer: Any) -> None:
    token = client.token("inference")
    assert predict_by_grpc(server, token, {"data": CAT}) == answer
    options = {"data": CAT, "top_k": b"1", "tta": b"none"}
    answered = predict_by_grpc(server, token, options | {"features": b"true"})
    assert len(answered["predictions"]) == 1 and len(answered["features"]) == 1280
    for wrong in ({}, client.token("management"), {"Authorization": "Bearer "}):
        with pytest.raises(grpc.RpcError) as refused:
            predict_by_grpc(server, wrong, {"data": CAT})
        assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_grpc_errors(server: TorchServe, client: Client, answer: Any) -> None:
    """The handler's are JSON under the status OK, as the README says; TorchServe has few others."""
    token = client.token("inference")
    assert predict_by_grpc(server, token, {"data": b"x"})["error"]["code"] == "unsupported_format"
    noise = np.random.default_rng(0).integers(0, 256, (1260, 1290, 3), dtype=np.uint8)
    large = encode(Image.fromarray(noise), "PNG", compress_level=0)
    assert 4_800_000 < len(large) < 5_000_000
    assert len(predict_by_grpc(server, token, {"data": large})["predictions"]) == 3
    for fields, model, status in (
        ({"data": CAT}, "absent", [grpc.StatusCode.INTERNAL]),
        # Whichever comes first: TorchServe's status, or the end of the stream.
        (*({"data": bytes(40_000_000)}, REAL), [TOO_LARGE, grpc.StatusCode.CANCELLED]),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            predict_by_grpc(server, token, fields, model)
        assert refused.value.code() in status
    assert predict_by_grpc(server, token, {"data": CAT}) == answer


def test_answers_in_the_readers_language(entrance: Entrance, answer: Any) -> None:
    headers = {"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.8", "X-Classify-Threshold": "1"}
    chinese = entrance.post(
        f"/predictions/{REAL}", data=CAT, headers=headers | {"Content-Type": "image/png"}
    ).json()
    names = [p.pop("name") for p in chinese["predictions"]]
    assert chinese["predictions"] == answer["predictions"]
    assert set(names) <= {"埃及猫", "虎斑猫", "虎纹猫"}
    assert chinese["warning"].startswith("最佳结果")


def test_explanations_tell_where(entrance: Entrance, answer: Any) -> None:
    """The cat fills the photograph's middle; a grey band beside it holds nothing."""
    cat = Image.open(photos.greeting()).convert("RGB").resize((400, 400))
    wide = Image.new("RGB", (1000, 400), (128, 128, 128))
    wide.paste(cat, (600, 0))
    image = {"data": ("wide.png", encode(wide), "image/png")}
    explained = entrance.post(f"/explanations/{REAL}", files=image, data={"tta": "dense"}).json()
    plain = entrance.post(f"/predictions/{REAL}", files=image, data={"tta": "dense"}).json()
    maps = [prediction.pop("explanation") for prediction in explained["predictions"]]
    assert explained == plain
    for found in maps:
        grid = np.array(found["grid"])
        left, top, right, bottom = found["box"]
        assert right - left > 900 and bottom - top > 300 and grid.shape[1] > 2 * grid.shape[0]
        column = np.unravel_index(grid.argmax(), grid.shape)[1]
        assert left + (column + 0.5) * (right - left) / grid.shape[1] > 600


def test_explanations_as_a_picture(entrance: Entrance) -> None:
    headers = {"Content-Type": "image/png", "Accept": "image/png", "X-Classify-TTA": "none"}
    path = f"/explanations/{REAL}"
    response = entrance.post(path, data=CAT, headers=headers)
    assert response.headers["Content-Type"] == "image/png"
    drawn, photograph = Image.open(io.BytesIO(response.content)), Image.open(photos.greeting())
    assert (drawn.format, drawn.size) == ("PNG", photograph.size)
    corner = (0, 0, 5, photograph.height)
    assert np.array_equal(np.asarray(drawn.crop(corner)), np.asarray(photograph.crop(corner)))
    assert not np.array_equal(np.asarray(drawn), np.asarray(photograph))
    bad = entrance.post(path, data=b"x", headers=headers)
    assert (bad.status_code, bad.json()["error"]["code"]) == (415, "unsupported_format")
    assert bad.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("door", [":explain", "/explain"])
def test_explanations_of_the_protocols(entrance: Entrance, door: str) -> None:
    if door == ":explain":
        path, body = f"/v1/models/{REAL}:explain", {"instances": [{"b64": TEXT}]}
    else:
        given: Any = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [TEXT]}
        path, body = f"/v2/models/{REAL}/explain", {"inputs": [given]}
    answered = entrance.post(path, json=body, headers={"X-Classify-TTA": "none"}).json()
    if "outputs" in answered:
        (text, *_) = next(o for o in answered["outputs"] if o["name"] == "explanation")["data"]
        found = json.loads(text)
    else:
        found = answered["predictions"][0]["predictions"][0]["explanation"]
    assert np.array(found["grid"]).shape == (7, 7) and len(found["box"]) == 4


def test_a_picture_is_of_one_explained_image(entrance: Entrance) -> None:
    for path, files in (
        (f"/predictions/{REAL}", [("data", CAT)]),
        (f"/explanations/{REAL}", [("data", CAT), ("data", CAT)]),
    ):
        response = entrance.post(path, files=files, data={"format": "png"})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_option")


def test_a_model_describes_itself(client: Client) -> None:
    found = client.card(REAL)
    assert (found["model"], found["version"], found["architecture"]) == (REAL, "1.0", REAL)
    assert (found["runtime"], found["precision"]) == ("openvino", "fp32")
    assert found["weights"]["sha256"] == MODELS[REAL].weights.sha256
    assert found["transforms"]["crop"] == 224 and found["classes"] == 1000
    assert found["languages"] == ["en", "zh"]
    top_k = found["options"]["top_k"]
    assert (top_k["default"], top_k["minimum"], top_k["maximum"]) == (3, 1, 1000)
    assert found["options"]["tta"]["enum"] == list(get_args(TTA))
    assert found["limits"] == {
        "max_image_bytes": 5 * 1024 * 1024,
        "max_image_pixels": 24_000_000,
        "max_jpeg_pixels": 50_000_000,
        "max_images": 32,
        "max_work": 2_400_000_000,
        "max_answer_bytes": 6_553_500,
        "deadline_seconds": 8,
    }
    assert found["proof"]["agreement"] == 1 and found["proof"]["views"] > 0
    assert found["familiarity"]["thresholds"].keys() <= {*get_args(TTA)}
    assert found["unfamiliar"].startswith("unfamiliar pictures are told by react+ash: ")
    assert client.card(RANDOM).get("familiarity") is None
    assert client.card(RANDOM)["unfamiliar"].startswith("nobody calibrated the model")
    assert found.get("comparison") is None and found["compared"].startswith("nobody")
