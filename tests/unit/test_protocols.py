"""The Open Inference Protocol's bodies to requests, and outcomes to its answers."""

import base64
import io
import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tritonclient.http import InferResult

from visionserve import inputs, responses
from visionserve.answer import Answer
from visionserve.config import HandlerConfig, Options
from visionserve.errors import RequestError

JSON = {"content-type": "application/json"}
TEXT = base64.b64encode(b"x").decode()
CONFIG = HandlerConfig(max_images=4)
ANSWER: Answer = {
    "model": "m",
    "architecture": "resnet18",
    "version": "1",
    "tta": "none",
    "predictions": [
        {"label": "a", "class_id": 0, "probability": 0.7},
        {"label": "b", "class_id": 1, "probability": 0.2},
    ],
    "confident": True,
}
FAULT = RequestError(422, "corrupt_image", "The image is corrupt.")


def read(
    body: dict[str, Any], tail: bytes = b"", headers: dict[str, str] | None = None
) -> inputs.Request:
    data = json.dumps(body).encode()
    headers = headers or ({"inference-header-content-length": str(len(data))} if tail else JSON)
    return inputs.read({"body": bytearray(data + tail)}, headers, CONFIG)


def images(request: inputs.Request) -> list[bytes]:
    return [item.data for item in request.items]


def options(request: inputs.Request) -> Options:
    return request.items[0].options


def fault(request: inputs.Request, index: int = 0) -> RequestError:
    error = request.items[index].fault
    assert error
    return error


def tensor(**members: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES"} | members]}


@pytest.mark.parametrize(
    "instance", [{"data": TEXT}, {"b64": TEXT}, {"image_bytes": {"b64": TEXT}}, TEXT]
)
def test_v1_instances(instance: object) -> None:
    request = read({"instances": [instance], "top_k": 1})
    assert (images(request), options(request).top_k) == ([b"x"], 1)
    assert request.form.reply([ANSWER], request.many, "m", "1").body == {"predictions": [ANSWER]}


def test_v1_faults_stand_in_their_places() -> None:
    request = read({"instances": [{"b64": TEXT}, {"image": 7}]})
    assert fault(request, 1).code == "invalid_data"
    reply = request.form.reply([ANSWER, FAULT], request.many, "m", "1")
    assert reply.status[0] == 207
    assert reply.body == {"predictions": [ANSWER, FAULT.body()]}


@pytest.mark.parametrize("body", [{"instances": {}}, {"instances": []}, {"instances": [1], "x": 1}])
def test_v1_errors_are_the_protocols(body: dict[str, Any]) -> None:
    request = read(body)
    reply = request.form.reply([fault(request)], request.many, "m", "1")
    assert reply.status[0] == 400 and isinstance(reply.body["error"], str)


def test_v2_bytes_and_parameters() -> None:
    body = tensor(data=[TEXT, TEXT], shape=[2, 1]) | {"id": "7", "parameters": {"top_k": 2}}
    request = read(body)
    assert (images(request), options(request).top_k) == ([b"x", b"x"], 2)
    reply = request.form.reply([ANSWER, ANSWER], request.many, "m", "1.0")
    assert reply.status[0] == 200
    assert reply.body["id"] == "7"
    assert (reply.body["model_name"], reply.body["model_version"]) == ("m", "1.0")
    expected = {
        "label": ("BYTES", ["a", "b", "a", "b"]),
        "class_id": ("INT64", [0, 1, 0, 1]),
        "probability": ("FP32", [0.7, 0.2, 0.7, 0.2]),
    }
    assert {o["name"]: (o["datatype"], o["data"]) for o in reply.body["outputs"]} == expected
    assert all(output["shape"] == [2, 2] for output in reply.body["outputs"])


def test_v2_features_are_a_tensor_that_outputs_may_name() -> None:
    """The row of an error is filled with 0."""
    known: Answer = {**ANSWER, "features": [0.5, 2.0]}
    for asked in ({"parameters": {"features": True}}, {"outputs": [{"name": "features"}]}):
        request = read(tensor(data=[TEXT, TEXT], shape=[2]) | asked)
        assert options(request).features
        reply = request.form.reply([FAULT, known], request.many, "m", "1")
        of_name = {output["name"]: output for output in reply.body["outputs"]}
        expected = {"datatype": "FP32", "shape": [2, 2], "data": [0.0, 0.0, 0.5, 2.0]}
        assert of_name["features"] == {"name": "features"} | expected
    assert not options(read(tensor(data=[TEXT]))).features


def test_v2_strings_follow_the_json() -> None:
    strings = b"".join(len(s).to_bytes(4, "little") + s for s in (b"one", b"second"))
    request = read(tensor(shape=[2]), strings)
    assert images(request) == [b"one", b"second"]


@pytest.mark.parametrize(
    "data",
    [["a" * 300_000, *[""] * 900], [0.5] * 12, [True] * 12, [256] * 12, [-1] * 12, ["1"] * 12],
)
def test_v2_pixels_are_whole_numbers(data: list[Any]) -> None:
    """NumPy would make room for the longest string in the place of each of them, a gigabyte."""
    tracemalloc.start()
    request = read(tensor(shape=[2, 2, 3], datatype="UINT8", data=data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fault(request).code == "invalid_data" and peak < 10_000_000


@pytest.mark.parametrize("shape", [[2], [0], [2_000_000], [2, 1_000_000]])
def test_v2_strings_are_counted_before_they_are_split(shape: list[int]) -> None:
    """8 MB of zeros are two million empty strings, each an object of its own."""
    tail = bytes(8_000_000)
    tracemalloc.start()
    request = read(tensor(shape=shape), tail)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    expected = "too_many_images" if math.prod(shape) > 4 else "invalid_data"
    assert fault(request).code == expected and peak < 4 * len(tail)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("shape", [(40, 30, 3), (1, 40, 30, 3), (4, 40, 3, 3)])
def test_v2_pixels_are_images(shape: tuple[int, ...], binary: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    given = tensor(shape=list(shape), datatype="UINT8")
    if not binary:
        given["inputs"][0]["data"] = pixels.ravel().tolist()
    request = read(given, pixels.tobytes() if binary else b"")
    decoded = [np.asarray(Image.open(io.BytesIO(image))) for image in images(request)]
    assert np.array_equal(decoded, pixels.reshape(-1, *shape[-3:]))


def test_v2_pixels_of_too_many_images_are_refused() -> None:
    request = read(tensor(shape=[5, 1, 1, 3], datatype="UINT8"), bytes(15))
    assert fault(request).code == "too_many_images"


def test_hugging_faces_form() -> None:
    """The bodies that `huggingface_hub`'s client sends, and the lists that it reads."""
    request = read({"inputs": TEXT, "parameters": {"top_k": 2}})
    assert (images(request), options(request).top_k) == ([b"x"], 2)
    labels = [{"label": "a", "score": 0.7}, {"label": "b", "score": 0.2}]
    assert request.form.reply([ANSWER], request.many, "m", "1").body == labels
    request = read({"inputs": [TEXT, TEXT]})
    reply = request.form.reply([ANSWER, FAULT], request.many, "m", "1")
    told = {"error": "corrupt_image: The image is corrupt."}
    assert (reply.status[0], reply.body) == (207, [labels, told])
    for body in ({"parameters": {"topk": 2}}, {"parameters": 2}, {"top_k": 2}):
        request = read({"inputs": TEXT} | body)
        assert fault(request).status == 400
        reply = request.form.reply([fault(request)], request.many, "m", "1")
        assert reply.status[0] == 400 and isinstance(reply.body["error"], str)


def test_v2_a_fault_in_a_list_is_told_beside_the_answers() -> None:
    request = read(tensor(data=[TEXT, "&"], shape=[2]))
    reply = request.form.reply([ANSWER, fault(request, 1)], request.many, "m", "1")
    outputs = {output["name"]: output for output in reply.body["outputs"]}
    assert reply.status[0] == 200
    assert outputs["class_id"]["data"] == [0, 1, -1, -1]
    assert outputs["error"]["shape"] == [2]
    assert outputs["error"]["data"][0] == ""
    assert outputs["error"]["data"][1].startswith("invalid_base64: ")


def test_v2_a_client_chooses_outputs() -> None:
    request = read(tensor(data=[TEXT]) | {"outputs": [{"name": "confident"}, {"name": "name"}]})
    outputs = request.form.reply([ANSWER], request.many, "m", "1").body["outputs"]
    assert [(o["name"], o["data"]) for o in outputs] == [
        ("confident", [True]),
        ("name", ["a", "b"]),
    ]
    request = read(tensor(data=[TEXT]) | {"outputs": [{"name": "hints"}, {"name": "plausible"}]})
    warned: Answer = {**ANSWER, "hints": ["dark", "blurred"], "plausible": 1}
    for answer, expected in ((ANSWER, ["[]", -1]), (warned, ['["dark", "blurred"]', 1])):
        outputs = request.form.reply([answer], request.many, "m", "1").body["outputs"]
        assert [data for o in outputs for data in o["data"]] == expected
    request = read(tensor(data=[TEXT]) | {"outputs": [{"name": "unfamiliar"}]})
    told: Answer = {**ANSWER, "unfamiliar": True}
    (output,) = request.form.reply([told], request.many, "m", "1").body["outputs"]
    assert (output["datatype"], output["data"]) == ("BOOL", [True])
    untold = request.form.reply([ANSWER], request.many, "m", "1")
    assert untold.status[0] == 400 and "has no threshold" in untold.body["error"]


@pytest.mark.parametrize("chosen", [False, True])
def test_v2_outputs_are_binary_as_tritons_client_reads_them(chosen: bool) -> None:
    """Those that are not asked for by name, too, and beside them one that is to be JSON."""
    known: Answer = {**ANSWER, "features": [0.5, 2.0]}
    plain = {"name": "probability", "parameters": {"binary_data": False}}
    asked: dict[str, Any] = {"parameters": {"binary_data_output": True, "features": True}}
    names = ["label", "class_id", "confident"]
    asked |= {"outputs": [*({"name": name} for name in names), plain]} if chosen else {}
    request = read(tensor(data=[TEXT, TEXT], shape=[2]) | asked)
    response = responses.respond(request, [known, FAULT], "m", "1")
    length = response.headers["inference-header-content-length"]
    assert response.content_type == "application/octet-stream"
    result = InferResult.from_response_body(response.body, header_length=int(length))
    found = {output["name"]: output for output in result.get_response()["outputs"]}
    assert ("data" in found["probability"]) == chosen
    assert sum("data" in output for output in found.values()) == chosen
    assert result.as_numpy("label").tolist() == [[b"a", b"b"], [b"", b""]]
    assert result.as_numpy("class_id").tolist() == [[0, 1], [-1, -1]]
    expected = np.array([[0.7, 0.2], [0, 0]])
    assert np.allclose(result.as_numpy("probability"), expected)
    assert result.as_numpy("features").tolist() == [[0.5, 2], [0, 0]]
    assert result.as_numpy("error").tolist() == [b"", b"corrupt_image: The image is corrupt."]
    if chosen:
        assert result.as_numpy("confident").tolist() == [True, False]


def test_v2_one_output_is_binary() -> None:
    outputs = [{"name": "name", "parameters": {"binary_data": True}}, {"name": "class_id"}]
    chinese: Answer = {**ANSWER, "predictions": [{**ANSWER["predictions"][0], "name": "猫"}]}
    request = read(tensor(data=[TEXT]) | {"outputs": outputs})
    response = responses.respond(request, [chinese], "m", "1")
    length = int(response.headers["inference-header-content-length"])
    of_name, of_class = json.loads(response.body[:length])["outputs"]
    assert of_name["parameters"] == {"binary_data_size": 7} and of_class["data"] == [0]
    assert response.body[length:] == b"\x03\0\0\0" + "猫".encode()


def test_v2_an_image_without_json_gets_binary_outputs() -> None:
    headers = {"inference-header-content-length": "0", "x-classify-top-k": "2"}
    request = inputs.read({"body": b"{image"}, headers, CONFIG)
    assert (images(request), options(request).top_k) == ([b"{image"], 2)
    response = responses.respond(request, [ANSWER], "m", "1")
    length = int(response.headers["inference-header-content-length"])
    result = InferResult.from_response_body(response.body, header_length=length)
    assert result.as_numpy("label").tolist() == [[b"a", b"b"]]


@pytest.mark.parametrize("media_type", [None, "application/octet-stream", "text/plain"])
def test_json_is_told_by_its_brace(media_type: str | None) -> None:
    """Triton's client names no type, curl and browsers name others."""
    headers = {"content-type": media_type} if media_type else {}
    body = b"\r\n " + json.dumps(tensor(data=[TEXT])).encode()
    assert images(inputs.read({"body": body}, headers, CONFIG)) == [b"x"]
    assert images(inputs.read({"body": b"{"}, {"content-type": "image/png"}, CONFIG)) == [b"{"]


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": []},
        {"inputs": [7]},
        tensor(),
        tensor(data="x"),
        tensor(data=[TEXT], shape=[2]),
        tensor(data=[TEXT], shape=[-1]),
        tensor(data=[TEXT], shape=["1"]),
        tensor(data=[TEXT], shape=[1] * 9),
        tensor(data=[TEXT], shape=[10**4000]),
        tensor(data=[1.0], datatype="FP32"),
        tensor(data=[0, 0, 256], shape=[1, 1, 3], datatype="UINT8"),
        tensor(data=[0, 0, -1], shape=[1, 1, 3], datatype="UINT8"),
        tensor(data=[0, 0, 1.5], shape=[1, 1, 3], datatype="UINT8"),
        tensor(data=[0, 0, "7"], shape=[1, 1, 3], datatype="UINT8"),
        tensor(data=[0, 0], shape=[1, 1, 3], datatype="UINT8"),
        tensor(data=[], shape=[0, 1, 3], datatype="UINT8"),
        tensor(data=[], shape=[0, 1, 1, 3], datatype="UINT8"),
        tensor(data=[0] * 4, shape=[1, 1, 1, 4], datatype="UINT8"),
        tensor(data=[[0], 0, [0, 1]], shape=[1, 1, 3], datatype="UINT8"),
        tensor(data=[TEXT]) | {"parameters": [1]},
        tensor(data=[TEXT]) | {"parameters": {"colour": 1}},
        tensor(data=[TEXT]) | {"outputs": [{"name": "heat"}]},
        tensor(data=[TEXT]) | {"outputs": 7},
        tensor(data=[TEXT]) | {"outputs": ["label"]},
        tensor(data=[TEXT]) | {"outputs": [{"name": "label", "parameters": 7}]},
        tensor(data=[TEXT]) | {"outputs": [{"name": "label", "parameters": {"binary_data": 1}}]},
        tensor(data=[TEXT]) | {"outputs": [{"name": "label", "parameters": {"classification": 2}}]},
        tensor(data=[TEXT]) | {"parameters": {"binary_data_output": "yes"}},
    ],
)
def test_v2_errors_are_the_protocols(body: dict[str, Any]) -> None:
    request = read(body)
    reply = request.form.reply([fault(request)], request.many, "m", "1")
    assert reply.status[0] == 400 and len(reply.body["error"]) < 300


@pytest.mark.parametrize("length", ["x", "-1", "100000", "", "9" * 5000])
def test_a_wrong_length_of_the_json_is_refused(length: str) -> None:
    request = read(tensor(), headers={"inference-header-content-length": length})
    assert fault(request).code == "invalid_data"


def test_binary_data_that_end_amid_a_string_are_refused() -> None:
    request = read(tensor(), b"\x05\0\0\0abc")
    assert fault(request).code == "invalid_data"


def test_json_is_bounded_before_it_is_parsed() -> None:
    for body in (b"[" + b"[]," * 2000 + b"[]]", b"[" + b"1," * 3_000_000 + b"1]"):
        request = inputs.read({"body": body}, JSON, CONFIG)
        assert len(request.items) == 1 and fault(request).code == "invalid_json"


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB,zh;q=0.5", "en"),
        ("fr,zh;q=0.2,en;q=0.4", "en"),
        ("fr", "en"),
        ("zh;q=0", "en"),
        ("zh; q=0.9", "zh"),
        ("en;q=0.5 ,\tZH-tw ; Q=0.6", "zh"),
        ("zh ; q=0.3 , en", "en"),
        ("zh;q=x, , ;", "en"),
        ("", "en"),
    ],
)
def test_the_language_that_a_client_likes_best(accepted: str, language: str) -> None:
    row = {"data": bytearray(b"x")}
    request = inputs.read(row, {"accept-language": accepted}, CONFIG)
    assert options(request).language == language


def test_an_option_goes_before_accept_language() -> None:
    headers = {"accept-language": "zh", "x-classify-language": "en"}
    request = inputs.read({"data": bytearray(b"x")}, headers, CONFIG)
    assert options(request).language == "en"
