"""A batch of TorchServe's rows to responses, on a runtime that is quick."""

import base64
import ctypes
import io
import itertools
import json
import pkgutil
import re
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import ts
import yaml
from PIL import Image
from ts.context import Context, RequestProcessor
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

from tests.helpers import encode
from tests.unit.test_classifier import Brightness, described
from visionserve import drawing, heap, inputs, workarounds
from visionserve.classifier import Classifier
from visionserve.config import HandlerConfig, ModelConfig
from visionserve_handler import VisionHandler
from visionserve_tools import paths, photos

CAT = photos.greeting().read_bytes()
MAP = {"explain": "True", "accept": "image/png"}
Response = tuple[int, str, bytes]


class Worker:
    """A handler and its context, as TorchServe's worker holds them."""

    def __init__(self, directory: Path) -> None:
        metrics = MetricsCacheYamlImpl(config_file_path=str(paths.CONFIG / "metrics.yaml"))
        metrics.initialize_cache()
        model = {"modelName": "m", "modelVersion": "1.0", "configFile": "config.yaml"}
        arithmetic = {"runtime": "pytorch", "precision": "fp16"}
        config = {"handler": {"defaults": {"top_k": 2}, **arithmetic}}
        (directory / "MAR-INF").mkdir()
        (directory / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"model": model}))
        (directory / "config.yaml").write_text(yaml.safe_dump(config))
        self._context = Context(
            *("m", str(directory), {"model": model}, 8, None, "0.12.0", True, metrics, config)
        )
        self._handler = VisionHandler()
        self._handler.initialize(self._context)

    def answer(self, *requests: tuple[Mapping[str, Any], dict[str, str]]) -> list[Response]:
        """Handle rows with their headers; return each one's status, content type and body."""
        self._context.request_ids = dict(enumerate("abcdefgh"))
        self._context.request_processor = [RequestProcessor(headers) for _, headers in requests]
        bodies = self._handler.handle([row for row, _ in requests], self._context)
        return [
            (
                self._context.get_response_status(index)[0],
                self._context.get_response_content_type(index) or "",
                body,
            )
            for index, body in enumerate(bodies)
        ]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    def load(
        directory: Path, config: ModelConfig, gpu_id: int | None, version: str, name: str
    ) -> Classifier:
        return Classifier(Brightness(), described(), config.handler, version, name)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Classifier, "from_archive", load)
        return Worker(tmp_path_factory.mktemp("worker"))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (50, 1), (2, 100)])
def test_a_map_of_the_smallest_image_is_drawn(worker: Worker, size: tuple[int, int]) -> None:
    """The centre crop of such an image may lie within a single pixel, or between two."""
    tiny = encode(Image.new("RGB", size))
    (response,) = worker.answer(({"body": tiny}, MAP))
    assert response[:2] == (200, "image/png")
    assert Image.open(io.BytesIO(response[2])).size == size


def test_a_map_that_cannot_be_drawn_is_an_error_of_its_request_alone(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(image: Image.Image, _: object) -> bytes:
        raise ValueError(f"images do not match, of {image.width} columns")

    monkeypatch.setattr(drawing, "overlay", fail)
    sound, failed = worker.answer(({"body": CAT}, {}), ({"body": CAT}, MAP))
    assert sound[0] == 200 and json.loads(sound[2])["predictions"]
    assert failed[:2] == (500, "application/json")
    error = json.loads(failed[2])["error"]
    assert error["code"] == "internal_error" and "match" not in error["message"]


FAULTS = (
    *(("visionserve.inputs.from_base64", MemoryError()), ("visionserve.inputs.Item", KeyError())),
    *(("visionserve.validation._by_pillow", AttributeError()), ("PIL.Image.open", MemoryError())),
    *(("visionserve.classifier.work", ValueError()), ("visionserve.classifier.memory", OSError())),
    *(("visionserve.formats.png._told", LookupError()), ("visionserve.tta.cut", TypeError())),
    ("visionserve.preprocessing._turn", ValueError()),
    ("visionserve.preprocessing._convert", ValueError()),
    ("visionserve.preprocessing.resize", SyntaxError()),
    ("visionserve.hints.measure", struct.error()),
    ("visionserve.postprocessing.most_probable", IndexError()),
    *(("visionserve.cache.Cache.get", TypeError()), ("visionserve.cache.Cache.put", TypeError())),
    ("visionserve.responses.respond", NotImplementedError()),
)


@pytest.mark.parametrize(("place", "fault"), FAULTS, ids=[place for place, _ in FAULTS])
def test_a_fault_of_ours_is_a_logged_500_of_its_image_alone(
    worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: str,
    fault: Exception,
) -> None:
    """Whatever is raised, also what Pillow raises of a file that is broken."""
    pictures = [encode(Image.effect_noise((40 + more, 40), 50), "PNG") for more in range(3)]
    bodies = [{"data": base64.b64encode(picture).decode()} for picture in pictures]
    batch: list[tuple[Mapping[str, Any], dict[str, str]]] = [(body, {}) for body in bodies]
    assert [status for status, *_ in worker.answer(*batch)] == [200] * 3
    calls = itertools.count()
    original = pkgutil.resolve_name(place)

    def fail(*arguments: Any, **named: Any) -> Any:
        if next(calls) == 1:
            raise fault
        return original(*arguments, **named)

    monkeypatch.setattr(place, fail)
    (first, *_), (status, _, text), (last, *_) = worker.answer(*batch)
    assert (first, status, last) == (200, 500, 200)
    assert json.loads(text)["error"]["code"] == "internal_error" and b"Traceback" not in text
    (logged,) = [record for record in caplog.records if record.exc_info]
    assert logged.levelname == "ERROR" and "Traceback" in caplog.text and "in fail" in caplog.text


def test_metrics_that_fail_cost_no_answer(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("visionserve.telemetry.Telemetry.observe", fail)
    assert [status for status, *_ in worker.answer(*[({"body": CAT}, {})] * 2)] == [200] * 2
    assert caplog.text.count("Traceback") == 2


def test_each_request_of_a_batch_has_its_own_response(worker: Worker) -> None:
    """A list with a fault in it, a browser's visit, a bad option and an image, in one batch."""
    texts = [base64.b64encode(CAT).decode(), "&"]
    several, page, refused, single = worker.answer(
        ({"body": {"data": texts}}, {"content-type": "application/json"}),
        ({"body": bytearray()}, {"accept": "text/html"}),
        ({"body": CAT}, {"x-classify-tta": "x"}),
        ({"body": CAT}, {}),
    )
    answer, error = json.loads(several[2])
    assert (several[0], error["error"]["code"]) == (207, "invalid_base64")
    assert page[:2] == (200, "text/html; charset=utf-8")
    # What the model computes in here, not what was asked for.
    assert b'"runtime": "pytorch fp32"' in page[2]
    assert (refused[0], json.loads(refused[2])["error"]["code"]) == (400, "invalid_option")
    assert single[0] == 200 and json.loads(single[2]) == answer


def test_a_client_that_asks_for_a_description_gets_its_answer(worker: Worker) -> None:
    """TorchServe's own request for one has no body; a client's header changes nothing."""
    asked = {"describe": "True"}
    rows: list[Mapping[str, Any]] = [{"body": CAT}, {}, {"body": CAT}]
    sound, described, claimed = worker.answer(*zip(rows, ({}, asked, asked), strict=True))
    assert json.loads(described[2])["architecture"] == "brightness"
    assert described[:2] == (200, "application/json")
    assert sound[0] == claimed[0] == 200 and json.loads(sound[2]) == json.loads(claimed[2])


TEXT = base64.b64encode(CAT).decode()
TENSOR = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [TEXT]}
INPUTS = f'"inputs": [{json.dumps(TENSOR)}]'
NO_IDS = ("NaN", "Infinity", "1e999", "null", "true", "[]", '{"a": NaN}', r'"\ud800"')
NO_JSON = (
    *(f'{{"id": {value}, {INPUTS}}}' for value in NO_IDS),
    rf'{{"outputs": [{{"name": "\uD800"}}], {INPUTS}}}',
    rf'{{"parameters": {{"\udfff": 1}}, {INPUTS}}}',
    r'{"data": "x", "\ud83d": 1}',
    r'{"data": "x", "tta": "\udc00"}',
    '{"data": "x", "threshold": NaN}',
    '{"data": "x", "threshold": 1e999}',
    '{"data": [NaN]}',
)


@pytest.mark.parametrize("body", NO_JSON)
def test_what_json_cannot_say_is_a_400(
    worker: Worker, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    request = ({"body": bytearray(body, "utf-8")}, {"content-type": "application/json"})
    (status, _, told), (other, *_) = worker.answer(request, ({"body": CAT}, {}))
    assert (status, other) == (400, 200) and json.loads(told)["error"]
    assert "Traceback" not in caplog.text


def test_a_request_that_cannot_be_read_is_an_error_of_itself_alone(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    row = {"body": bytearray(b"{}")}
    with monkeypatch.context() as patched:
        patched.setattr(json, "loads", fail)
        failed, sound = worker.answer(
            (row, {"content-type": "application/json"}), ({"body": CAT}, {})
        )
    assert (failed[0], sound[0]) == (500, 200) and "internal_error" in failed[2].decode()
    assert "Traceback" in caplog.text


def test_a_request_is_not_read_after_the_deadline() -> None:
    row, late = {"body": bytearray(CAT)}, time.monotonic() - 1
    (item,) = inputs.read(row, {}, HandlerConfig(), late).items
    assert item.fault and (item.fault.status, item.fault.code) == (503, "request_too_slow")


@pytest.mark.parametrize("ascii", [True, False])
def test_an_id_comes_back_as_it_was(worker: Worker, ascii: bool) -> None:
    for name in ("", "7", "\U0001f600 é", "\0"):
        body = json.dumps({"id": name, "inputs": [TENSOR]}, ensure_ascii=ascii).encode()
        row = {"body": bytearray(body)}
        ((status, _, answer),) = worker.answer((row, {"content-type": "application/json"}))
        assert (status, json.loads(answer)["id"]) == (200, name)


@pytest.mark.parametrize("outputs", [["x" * 7_000_000], [f"x{i}" for i in range(900)]])
def test_unknown_outputs_are_told_in_few_words(worker: Worker, outputs: list[str]) -> None:
    tensor = {"inputs": [TENSOR], "outputs": [{"name": name} for name in outputs]}
    row = {"body": bytearray(json.dumps(tensor).encode())}
    ((status, _, body),) = worker.answer((row, {"content-type": "application/json"}))
    assert status == 400 and len(body) < 1000


@pytest.mark.parametrize("count", [20, 100_000])
def test_a_form_of_many_parts_is_told_in_few_words(worker: Worker, count: int) -> None:
    fields: dict[str, Any] = {f"a{index}": bytearray(b"1") for index in range(count)}
    ((status, _, body),) = worker.answer((fields | {"data": CAT}, {}))
    assert status == 400 and len(body) < 1000
    assert json.loads(body)["error"]["code"] == "invalid_option"


def test_code_that_has_run_does_not_stay_in_memory() -> None:
    def kept() -> int:
        """Kilobytes of the files that this process may execute."""
        maps = re.split(r"^(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text(), flags=re.M)
        code = (one for one in maps if re.match(r"\S+ r-xp \S+ \S+ [1-9]", one))
        return sum(int(re.findall(r"^Rss: +(\d+)", one, re.M)[0]) for one in code)

    for begin, end in heap.CODE.findall(Path("/proc/self/maps").read_text())[:20]:
        ctypes.string_at(int(begin, 16), min(int(end, 16) - int(begin, 16), 4_000_000))
    before = kept()
    heap.leave_code()
    assert kept() < before / 2


def test_the_workarounds_are_for_the_torchserve_that_is_installed() -> None:
    """Read the modules of `visionserve.workarounds` again before this number is changed."""
    assert ts.__version__ == workarounds.VERSION
