"""What an operator sees of a real TorchServe: metrics, logs, alerts and the dashboard."""

import json
import os
import re
import subprocess
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import yaml
from PIL import Image

from tests.helpers import RANDOM, REAL, encode, site_of, write_config
from visionserve.config import TTA
from visionserve.metadata import Familiarity, Proportion, Threshold
from visionserve_tools import paths, photos
from visionserve_tools.archive.calibrated import Fitted
from visionserve_tools.archive.recipe import Recipe, build
from visionserve_tools.archive.rewrite import rewrite
from visionserve_tools.archive.weights import resolve
from visionserve_tools.server.canary import Canary
from visionserve_tools.server.client import Client
from visionserve_tools.server.nginx import Proxy, Site
from visionserve_tools.server.ports import free_port
from visionserve_tools.server.properties import read_properties
from visionserve_tools.server.torchserve import TorchServe

PROMETHEUS = paths.CONFIG / "prometheus"
DASHBOARD = paths.CONFIG / "grafana" / "dashboard.json"
CAT = photos.greeting().read_bytes()
CAT_PIXELS = 451 * 300
OBSERVED = "observed"
STAGES = ("validate", "decode", "preprocess", "infer", "postprocess")
CPU_HAS_NONE = ("GPUMemoryUsed", "GPUUtilization")
TAKES_DAYS = ('max by (ModelName, Property) (visionserve:drift{ModelName=~".+"})',)
SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')
BOUNDS = "0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 5 10 +Inf"
LABELS = ("Outcome", "Property", "Stage", "Bucket", "le")

Samples = Counter[tuple[str, ...]]


def solid(number: int) -> bytes:
    """An image of 40 x 30 pixels, another for each number."""
    return encode(Image.new("RGB", (40, 30), (number, 0, 0)))


def metrics_address(server: TorchServe) -> str:
    return read_properties(server.state / "config.properties")["metrics_address"]


def scrape(server: TorchServe) -> Samples:
    """What is said of the observed model and of the host: name and further labels, to value."""
    text = requests.get(f"{metrics_address(server)}/metrics", timeout=10).text
    samples: Samples = Counter()
    for name, labels, value in SAMPLE.findall(text):
        pairs = dict(LABEL.findall(labels))
        model = pairs.get("ModelName", pairs.get("model_name", OBSERVED))
        if model == OBSERVED:
            kept = [pairs[label] for label in LABELS if label in pairs]
            samples[name, *kept] = float(value)  # type: ignore[assignment]
    return samples


@pytest.fixture(scope="module")
def observed(server: TorchServe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The server's classifier again, which caches, and finds requests slow and pictures odd.

    Its self-check fails, as if it had been built for another processor.
    """
    folder = tmp_path_factory.mktemp(OBSERVED)
    config = write_config(
        folder,
        cache={"size_mb": 8, "directory": OBSERVED},
        defaults={"tta": "none"},
        slow_request_ms=0,
        self_check="warn",
    )
    share = Proportion(value=0, low=0, high=1)
    thresholds: dict[TTA, Threshold] = {
        "none": Threshold(score=1e6, false_alarms=share, caught=share)
    }
    fitted = Fitted(
        architecture=REAL,
        weights_sha256=resolve(REAL).sha256,
        about="",
        temperatures={},
        familiarity=Familiarity(
            method="react+ash", numbers="float", thresholds=thresholds, about="by hand"
        ),
    )
    file = folder / "fitted.json"
    file.write_text(fitted.model_dump_json())
    recipe = Recipe(REAL, OBSERVED, "1.0", config, temperatures=file)
    build(recipe, server.store)
    archive = server.store / f"{OBSERVED}.mar"
    with zipfile.ZipFile(archive) as packed:
        metadata = json.loads(packed.read("metadata.json"))
    metadata["self_check"]["difference"] = -1
    rewrite(archive, {"metadata.json": json.dumps(metadata).encode()}, "", None)
    server.register(archive.name, workers=2)
    client = server.client
    yield client
    client.unregister(OBSERVED)


class Sent:
    """Requests, and what the metrics must say of them."""

    def __init__(self, client: Client) -> None:
        self.url = f"{client.inference}/predictions/{OBSERVED}"
        self.token = client.token("inference")
        self.expected: Samples = Counter()
        self.codes: dict[str, tuple[str, ...]] = {}
        self.seconds = 0.0

    def send(self, *codes: str, headers: dict[str, str] | None = None, **request: Any) -> Any:
        """Send a request whose images are answered with these codes; return the answer."""
        started = time.perf_counter()
        response = requests.post(
            self.url, headers=self.token | (headers or {}), timeout=60, **request
        )
        self.seconds += time.perf_counter() - started
        body = response.json()
        answers = body if isinstance(body, list) else [body]
        assert codes == tuple(
            answer["error"]["code"] if "error" in answer else "ok" for answer in answers
        )
        self.expected["ts_inference_requests_total",] += 1
        self.expected["Requests4XX",] += 400 <= response.status_code < 500
        for code in codes:
            self.expected["vision_answers_total", code] += 1
        for answer in answers:
            if answer.get("unfamiliar"):
                self.expected["vision_unfamiliar_total",] += 1
                # They are plain and dark, and `observed` finds each unfamiliar.
                class_id = answer["predictions"][0]["class_id"]
                buckets = {"luminance": 0, "sharpness": 0, "unfamiliar": 1, "class": class_id // 50}
                for name, bucket in buckets.items():
                    self.expected["vision_pictures_total", name, str(bucket)] += 1
        self.expected["vision_request_seconds_bucket", "+Inf"] += 1
        self.codes[response.headers["x-request-id"]] = codes
        return body

    def image(self, data: bytes, pixels: int, ran: int) -> None:
        """Expect an image that was read, with the pixels and the number of stages that it met."""
        self.expected["vision_image_bytes_total",] += len(data)
        self.expected["vision_image_pixels_total",] += pixels
        for stage in STAGES[:ran]:
            self.expected["vision_stage_runs_total", stage] += 1
            self.expected["vision_stage_seconds_bucket", stage, "+Inf"] += 1


def settle(read: Callable[[], Any], expected: Any) -> None:
    """Wait until the counters, which are handed over each second, are what they must be."""
    deadline = time.monotonic() + 10
    while (found := read()) != expected and time.monotonic() < deadline:
        time.sleep(0.2)
    assert found == expected


@pytest.fixture(scope="module")
def sent(observed: Client, server: TorchServe) -> tuple[Sent, Samples]:
    """One request of every kind, and by how much the samples rose from it."""
    before = scrape(server)
    sent = Sent(observed)

    def raw(code: str, data: bytes, pixels: int, ran: int, **options: object) -> Any:
        sent.image(data, pixels, ran)
        headers = {f"X-Classify-{name}": str(value) for name, value in options.items()}
        return sent.send(
            code, data=data, headers={"Content-Type": "application/octet-stream"} | headers
        )

    for number in range(3):
        assert raw("ok", solid(number), 1200, 5, Threshold=0)["confident"]
    for number in range(2):
        assert not raw("ok", solid(number), 1200, 5, Threshold=1)["confident"]
        assert raw("ok", solid(number), 0, 0, Threshold=1)["cached"]
    sent.expected["vision_low_confidence_total",] += 4
    sent.expected["vision_cache_hits_total",] += 2
    assert sent.expected["vision_unfamiliar_total",] == 7

    raw("unsupported_format", b"nonsense", 0, 1)
    raw("image_too_large", CAT + bytes(5 * 1024 * 1024), 0, 1)
    raw("too_many_pixels", encode(Image.new("1", (8000, 8000))), 0, 1)
    raw("extreme_aspect_ratio", encode(Image.new("1", (6000, 1))), 0, 1)
    raw("truncated_image", CAT[: len(CAT) // 2], CAT_PIXELS, 2)
    raw("corrupt_image", CAT[:40] + bytes(len(CAT)), 0, 1)
    raw("invalid_option", solid(0), 0, 0, **{"Top-K": 1001})
    sent.send("invalid_option", data=CAT, headers={"X-Classify-TTA": "x"})
    sent.send("empty_request", data=b"")
    sent.send("invalid_json", data=b"{", headers={"Content-Type": "application/json"})
    sent.send("invalid_base64", json={"data": "%"})
    sent.send("invalid_data", "invalid_data", json={"data": [1, 2]})
    sent.send("too_many_images", json={"data": [""] * 33})

    images = [solid(10), b"nonsense", solid(11), b""]
    for data, pixels, ran in zip(images, (1200, 0, 1200, 0), (5, 1, 5, 1), strict=True):
        sent.image(data, pixels, ran)
    sent.send(
        *("ok", "unsupported_format", "ok", "empty_image"),
        files=[("data", ("image", data, "image/png")) for data in images],
        data={"threshold": "0"},
    )
    probe = sent.token | {"X-Visionserve-Probe": "1"}
    answer = requests.post(sent.url, data=solid(0), headers=probe, timeout=60).json()
    assert answer["predictions"] and "cached" not in answer
    sent.expected["ts_inference_requests_total",] += 1
    page = requests.get(sent.url, headers=sent.token | {"Accept": "text/html"}, timeout=60)
    assert page.headers["content-type"].startswith("text/html")
    sent.expected["ts_inference_requests_total",] += 1

    def rise() -> Samples:
        now = scrape(server)
        return Counter({key: now[key] - before[key] for key in now if now[key] != before[key]})

    def counted() -> Samples:
        rose = rise()
        return Counter({key: rose[key] for key in sent.expected})

    settle(counted, sent.expected)
    return sent, rise()


def test_counts_are_what_was_sent(sent: tuple[Sent, Samples]) -> None:
    """Nothing is counted beside what was sent."""
    requests, rose = sent
    names = {
        "vision_answers_total",
        "vision_stage_runs_total",
        "vision_cache_hits_total",
        "vision_low_confidence_total",
        "vision_unfamiliar_total",
        "vision_pictures_total",
        "vision_image_bytes_total",
        "vision_image_pixels_total",
        "Requests4XX",
        "Requests5XX",
        "ts_inference_requests_total",
    }
    histograms = {"vision_stage_seconds_bucket", "vision_request_seconds_bucket"}
    assert {
        key: value
        for key, value in rose.items()
        if key[0] in names or (key[0] in histograms and key[-1] == "+Inf")
    } == requests.expected


def test_times_are_within_the_clients(sent: tuple[Sent, Samples]) -> None:
    """Two images that shared a forward pass count it twice."""
    requests, rose = sent
    seconds = {stage: rose["vision_stage_seconds_total", stage] for stage in STAGES}
    assert all(spent > 0 for spent in seconds.values())
    assert sum(seconds.values()) < 2 * requests.seconds
    queued, answered = (
        rose[f"ts_{name}_latency_microseconds",] / 1e6 for name in ("queue", "inference")
    )
    assert 0 < queued < answered < 2 * requests.seconds
    for stage, spent in seconds.items():
        counts = [rose["vision_stage_seconds_bucket", stage, bound] for bound in BOUNDS.split()]
        assert counts == sorted(counts), "cumulative"
        # Each run took its bucket's lower bound at least, and its upper one at most.
        bounds = [0, *map(float, BOUNDS.split())]
        runs = list(zip(np.diff([0, *counts]), bounds[:-1], bounds[1:], strict=True))
        least = sum(count * low for count, low, _ in runs)
        assert least <= spent <= sum(count * high for count, _, high in runs if count)
    whole = (rose["vision_request_seconds_bucket", bound] for bound in ("10", "+Inf"))
    assert len({*whole}) == 1


def test_two_workers_count_together(observed: Client, server: TorchServe) -> None:
    assert len(observed.describe(OBSERVED)[0]["workers"]) == 2
    before = scrape(server)
    images = [solid(number) for number in range(100, 124)]
    with ThreadPoolExecutor(4) as pool:
        responses = list(pool.map(lambda data: observed.predict(OBSERVED, data), images))
    assert all(response.ok for response in responses)

    def rise() -> list[float]:
        now = scrape(server)
        keys = [("vision_answers_total", "ok"), ("vision_image_bytes_total",)]
        return [now[key] - before[key] for key in keys]

    settle(rise, [len(images), sum(map(len, images))])


def test_an_alerts_counter_starts_at_zero(observed: Client, server: TorchServe) -> None:
    """Prometheus sees no rise in a counter that is born at 1."""
    key = ("vision_answers_total", "internal_error")
    settle(lambda: scrape(server).get(key), 0)


@pytest.fixture(scope="module")
def lacking(observed: Client, server: TorchServe) -> tuple[Samples, Samples]:
    """The samples before and after a request that found no worker."""
    before = scrape(server)
    observed.scale(OBSERVED, 0)
    try:
        assert observed.predict(OBSERVED, CAT).status_code == 503
    finally:
        observed.scale(OBSERVED, 1)
    return before, scrape(server)


def test_a_lack_of_workers_is_a_5xx_and_no_answer(lacking: tuple[Samples, Samples]) -> None:
    before, after = lacking
    for name in ("Requests5XX", "ts_inference_requests_total"):
        assert after[name,] - before[name,] == 1
    assert after["vision_answers_total", "ok"] == before["vision_answers_total", "ok"]


def test_a_model_that_fails_its_self_check_is_told_beside_one_that_passes(
    observed: Client, server: TorchServe
) -> None:
    other = next(name for name in observed.models() if name != OBSERVED)

    def told() -> set[tuple[str, str, float]]:
        text = requests.get(f"{metrics_address(server)}/metrics", timeout=10).text
        return {
            (pairs["ModelName"], pairs["ModelVersion"], float(value))
            for name, labels, value in SAMPLE.findall(text)
            for pairs in [dict(LABEL.findall(labels))]
            if name == "vision_self_check_success" and pairs["ModelName"] in (OBSERVED, other)
        }

    settle(told, {(OBSERVED, "1.0", 0), (other, "1.0", 1)})
    assert not observed.card(OBSERVED)["self_check"]["passed"]
    assert observed.predict(OBSERVED, CAT).ok


def test_metrics_need_no_token(server: TorchServe) -> None:
    assert requests.get(f"{metrics_address(server)}/metrics", timeout=10).status_code == 200


def logged(server: TorchServe, identity: str) -> list[dict[str, Any]]:
    """The lines that request_log.log has of a request."""
    lines = (server.state / "logs" / "request_log.log").read_text().splitlines()
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [entry for entry in entries if entry["request_id"] == identity]


def test_a_failed_or_slow_request_is_one_line(
    sent: tuple[Sent, Samples], server: TorchServe
) -> None:
    requests, _ = sent
    for identity, codes in requests.codes.items():
        (line,) = logged(server, identity)
        assert set(line) == {
            *("time", "event", "reason", "request_id", "traceparent", "model", "version"),
            *("outcomes", "images", "bytes", "milliseconds", "stages"),
        }
        assert line["reason"] == ("slow" if set(codes) == {"ok"} else "failed")
        assert (line["event"], line["model"], line["version"]) == ("request", OBSERVED, "1.0")
        assert line["outcomes"] == Counter(codes)
        assert set(line["stages"]) <= set(STAGES)
        if codes == ("truncated_image",):
            assert (line["images"], line["bytes"]) == (1, len(CAT) // 2)
            assert set(line["stages"]) == {"validate", "decode"}
            assert 0 < line["stages"]["decode"] <= line["milliseconds"]


def test_a_quick_answer_is_no_line(client: Client, server: TorchServe) -> None:
    """The other models' requests are slow from one second in the worker on."""
    responses = (client.predict(RANDOM, CAT, tta="none") for _ in range(50))
    quick = next(r for r in responses if r.ok and r.elapsed.total_seconds() < 1)
    assert logged(server, quick.headers["x-request-id"]) == []


def test_no_log_holds_a_key_or_an_image(sent: tuple[Sent, Samples], server: TorchServe) -> None:
    requests.post(sent[0].url, headers={"Authorization": "Bearer " + "x" * 8}, timeout=60)
    keys = json.loads((server.state / "key_file.json").read_text())
    secrets = [keys[kind]["key"].encode() for kind in ("management", "inference", "API")]
    logs = [server.state / "console.log", *(server.state / "logs").rglob("*")]
    text = b"".join(path.read_bytes() for path in logs if path.is_file())
    assert f"POST /predictions/{OBSERVED}".encode() in text
    assert len(set(secrets)) == 3 and all(len(secret) >= 8 for secret in secrets)
    assert not [secret for secret in [*secrets, b"nonsense", CAT[:8]] if secret in text]


def promtool(*arguments: str | Path) -> str:
    seldom = os.environ | {"GOGC": "400"}  # Go's garbage, as in `test_drift`.
    command = ["promtool", *arguments]
    done = subprocess.run(command, env=seldom, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_its_configuration() -> None:
    assert "1 rule files found" in promtool("check", "config", PROMETHEUS / "prometheus.yml")


def rules() -> list[dict[str, str]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, str]:
    """Name to expression."""
    return {rule["alert"]: rule["expr"] for rule in rules() if "alert" in rule}


def test_alerts_fire_when_they_should_and_not_otherwise(tmp_path: Path) -> None:
    """Where a test lasts for days, every 10 minutes, as its samples come; others each minute."""
    whole = yaml.safe_load((PROMETHEUS / "alerts.test.yml").read_text())

    def lasts_days(test: dict[str, Any]) -> bool:
        return any("d" in check["eval_time"] for check in test["alert_rule_test"])

    for are_long, pace in ((False, whole["evaluation_interval"]), (True, "10m")):
        file = {
            "rule_files": [str(PROMETHEUS / "alerts.yml")],
            "evaluation_interval": pace,
            "tests": [test for test in whole["tests"] if lasts_days(test) == are_long],
        }
        (tmp_path / f"{pace}.yml").write_text(yaml.safe_dump(file))
    promtool("test", "rules", *sorted(tmp_path.iterdir()))
    checks = [check for test in whole["tests"] for check in test["alert_rule_test"]]
    for alert in alerts():
        fires = {bool(check.get("exp_alerts")) for check in checks if check["alertname"] == alert}
        assert fires == {True, False}, alert


def expressions() -> list[str]:
    """The dashboard's, for every model and a window of 5 s."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [
        target["expr"].replace("$model", ".+").replace("$__rate_interval", "5s")
        for panel in panels
        for target in panel["targets"]
    ]


def test_the_dashboard_hangs_together() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == [
        "datasource",
        "model",
    ]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels}
    assert len(cells) == len(panels) and all(x + 8 <= 24 for x, _ in cells)
    for panel in panels:
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(s == {"type": "prometheus", "uid": "${datasource}"} for s in sources)
    assert "$" not in "".join(expressions())


def test_every_metric_asked_for_is_declared() -> None:
    declared = yaml.safe_load((paths.CONFIG / "metrics.yaml").read_text())
    names = {
        metric["name"]
        for section in ("ts_metrics", "model_metrics")
        for of_type in declared[section].values()
        for metric in of_type
    }
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = " ".join([*expressions(), *(rule["expr"] for rule in rules())])
    asked = re.sub(r"\{.*?\}|\[.*?\]|\b(by|on|without|ignoring|group_left) ?\(.*?\)", "", asked)
    words = set(re.findall(r"\b[A-Za-z_][\w:]+(?! *\()\b", asked))
    found = words - {*("up", "and", "or"), "offset"} - recorded
    of_nginx = {name for name in found if name.startswith("visionserve_gate_")}
    written = set(
        re.findall(r"visionserve_gate_\w+", (paths.CONFIG / "nginx/gate.lua").read_text())
    )
    assert found - of_nginx <= names and len(found) > 15
    assert of_nginx <= written and len(of_nginx) > 3


@pytest.fixture(scope="module")
def gate(
    server: TorchServe, observed: Client, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """An nginx that sends all clients of the observed model to a version."""
    proxy = Proxy(tmp_path_factory.mktemp("gate") / "nginx")
    site = replace(site_of(server), canaries=(Canary(OBSERVED, "1.0", 100),))
    proxy.start(site)
    yield site
    proxy.stop()


@pytest.fixture(scope="module")
def prometheus(
    server: TorchServe, gate: Site, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A real Prometheus with the repository's configuration, but for address and pace."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    target = metrics_address(server).removeprefix("http://")
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    config["scrape_configs"][1]["static_configs"] = [{"targets": [gate.probes]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "alerts.yml").write_text(
        re.sub("interval: .*", "interval: 1s", (PROMETHEUS / "alerts.yml").read_text())
    )
    address = f"127.0.0.1:{free_port()}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                *("prometheus", f"--config.file={folder / 'prometheus.yml'}"),
                *(f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"),
            ],
            stdout=log,
            stderr=log,
        )
    yield f"http://{address}/api/v1"
    process.terminate()
    process.wait(10)


def test_a_real_prometheus_fills_every_panel_and_evaluates_every_alert(
    prometheus: str, observed: Client, gate: Site, lacking: tuple[Samples, Samples]
) -> None:
    def ask(path: str, **parameters: str) -> Any:
        try:
            response = requests.get(f"{prometheus}/{path}", params=parameters, timeout=10)
        except requests.ConnectionError:
            return None
        return response.json().get("data") if response.ok else None  # 503 while it starts

    def empty() -> list[str]:
        """Keep requests coming, and name the expressions without a value."""
        for number in range(3):
            observed.predict(OBSERVED, solid(200 + number))
            observed.predict(OBSERVED, b"nonsense")
        requests.post(f"http://{gate.listen}/predictions/{OBSERVED}", data=b"x", timeout=60)
        answers = {query: ask("query", query=query) for query in expressions()}
        return [query for query, answer in answers.items() if not answer or not answer["result"]]

    settle(empty, [*CPU_HAS_NONE, *TAKES_DAYS])

    def health() -> dict[str, str]:
        groups = ask("rules")["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}

    settle(health, dict.fromkeys((rule.get("alert", rule.get("record")) for rule in rules()), "ok"))
