import dataclasses
import os
import shutil
import sys
import textwrap
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.bench import __main__ as bench
from tests.bench import pinned, report
from tests.bench.contenders import (
    ALL,
    CACHED,
    CLIENTS,
    DECODED,
    DROPPED_IN,
    EAGER,
    GROUPED,
    INT8,
    MIXED,
    MODEL,
    OURS,
    PILLOW,
    STOCK,
    Contender,
    running,
)
from tests.bench.load import one_by_one, send
from tests.bench.peers import pillow
from tests.bench.results import About, Bar, Figure, Results, bars, rate, repeated
from tests.bench.run import IMAGES, SIZES, photographs
from tests.helpers import REAL
from visionserve.metadata import Transforms
from visionserve.preprocessing import resize_fast
from visionserve_tools import paths, photos

ABOUT = About(
    processor="A processor",
    workers=2,
    packages={"torch": "2"},
    weights="random",
    images=64,
    image_kb=110.0,
    rounds=1,
    seconds=1,
    size_mb={INT8: 10.7, "eager fp32": 46.8, "eager, dynamic int8": 45.3},
)


def of_a_run() -> Results:
    """One round in which ours answers 300 requests/s, at four clients 240."""
    results = Results()
    for contender in ALL:
        results.add(Figure(contender.name, "start s"), 4.0)
        results.add(Figure(contender.name, "process 0 MB"), 100.0)
        results.add(Figure(contender.name, "process 1 MB"), 200.0)
        if contender.explains:
            results.add(Figure(contender.name, "explained p50 ms", clients=1), 40.0)
        for tta in contender.tta:
            for clients in contender.clients:
                results.add(Figure(contender.name, "p50 ms", tta, clients), 3.0)
                results.add(Figure(contender.name, "p99 ms", tta, clients), 9.0)
                results.add(Figure(contender.name, "client ms", tta, clients), 0.2)
                results.add(rate(contender.name, clients, tta), 50.0)
    for clients, value in zip(CLIENTS, (90.0, 300.0, 240.0, 300.0), strict=True):
        results.values[rate(OURS[INT8].name, clients)] = [value]
        results.values[rate(OURS[INT8].name, clients, "dense")] = [0.5 * value]
    results.add(Figure(OURS[INT8].name, "one worker MB"), 590.0)
    results.add(Figure(OURS[INT8].name, "further worker MB"), 300.0)
    results.values[Figure(STOCK.name, "explained p50 ms", clients=1)] = [500.0]
    results.add(Figure(DECODED, "pinned others ms"), 5.0)
    for name, per_second, spent in (
        *((DECODED, 200.0, None), (OURS[INT8].name, 180.0, 6.3), (CACHED.name, 900.0, 1.1)),
    ):
        results.add(Figure(name, "pinned requests/s"), per_second)
        if spent:
            results.add(Figure(name, "pinned first process ms"), 0.6)
            results.add(Figure(name, "pinned others ms"), spent - 0.6)
            results.add(Figure(name, "pinned server ms"), spent)
    for value in (100.0, 110.0, 105.0):
        results.add(repeated(OURS[INT8].name), value)
    results.add(rate(MODEL), 400.0)
    results.add(rate(DECODED), 300.0)
    results.add(rate(PILLOW), 250.0)
    results.add(Figure("eager fp32", "one image ms"), 30.0)
    results.add(Figure("openvino int8", "one image ms"), 10.0)
    results.add(Figure(GROUPED, "one image ms"), 10.0)
    results.add(Figure(MIXED, "one image ms"), 12.0)
    return results


def test_a_ratio_pairs_the_values_of_a_round() -> None:
    results = Results()
    for ours, theirs in ((100.0, 10.0), (50.0, 5.0), (10.0, 10.0)):
        results.add(rate("ours"), ours)
        results.add(rate("theirs"), theirs)
    assert results.median(rate("ours")) == 50
    assert results.ratio(rate("ours"), rate("theirs")) == 10


def test_the_lowest_ratio_from_two_clients_counts() -> None:
    held = {bar.claim: bar for bar in bars(of_a_run(), archive_mb=10.7)}
    assert held[f"rate, part of the {MODEL}"].value == pytest.approx(0.6)
    assert not held[f"rate, part of the {MODEL}"].reached
    assert held[f"rate, part of the {DECODED}"].reached
    for peer in (*EAGER, DROPPED_IN[1]):
        assert held[f"rate, to {peer.name}"].value == pytest.approx(4.8)


def test_sizes_may_be_mixed() -> None:
    held = {bar.claim: bar for bar in bars(of_a_run(), archive_mb=10.7)}
    bar = held["dense views of mixed sizes, to one size after the other"]
    assert bar.value == pytest.approx(1.2) and bar.bound == 1.15 and not bar.reached


def test_each_peer_has_its_bound() -> None:
    held = {bar.claim: bar.bound for bar in bars(of_a_run(), archive_mb=10.7)}
    bounds = {claim: bound for claim, bound in held.items() if claim.startswith("rate, to ")}
    assert bounds == {
        **{f"rate, to {peer.name}": 2.5 for peer in EAGER},
        f"rate, to {STOCK.name}": 4,
        "rate, to Flask + gunicorn, openvino int8": 1,
    }


def test_a_worker_with_a_core_to_itself_is_held_against_the_bare_chain() -> None:
    """0.9 of it, 1.3 ms of frontend and worker beside its 5 ms, and 1.1 ms of a cache hit."""
    results = of_a_run()
    pinned = [bar for bar in bars(results, archive_mb=10.7) if bar.claim.startswith("pinned")]
    assert [bar.value for bar in pinned] == pytest.approx([0.9, 1.3, 1.1])
    assert [bar.bound for bar in pinned] == [0.95, 1.2, 1.0]
    assert not any(bar.reached for bar in pinned)
    text = report.markdown(results, ABOUT, pinned)
    assert f"| {OURS[INT8].name} | 180.00 | 0.60 | 5.70 |" in text
    of_one_core = Results(
        {one: held for one, held in results.values.items() if "pinned" not in one.metric}
    )
    claims = [bar.claim for bar in bars(of_one_core, archive_mb=10.7)]
    assert not any(claim.startswith("pinned") for claim in claims)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (640, 200), (200, 640)])
def test_pillow_shows_the_same_centre(size: tuple[int, int]) -> None:
    """Bilinear, on noise, where a shift would show."""
    noise = np.random.default_rng(0).integers(0, 256, (*reversed(size), 3), dtype=np.uint8)
    views = [
        resize(Image.fromarray(noise), Transforms(), True).astype(int)
        for resize in (pillow.resize_fast, resize_fast)
    ]
    assert views[0].shape == views[1].shape == (224, 224, 3)
    assert np.abs(views[0] - views[1]).max() <= 3


def test_bars_are_bounds_from_below_or_above() -> None:
    held = {bar.claim: bar.reached for bar in bars(of_a_run(), archive_mb=12.5)}
    assert held["frontend and one worker"] and held["from start to first answer"]
    assert not held["each further worker"] and not held["archive"]
    assert held["rate with dense TTA, to the rate without TTA"]
    assert held["an explained answer, to Integrated Gradients"]


def test_the_tables_show_every_contender_and_bar() -> None:
    results = of_a_run()
    held = bars(results, archive_mb=10.7)
    text = report.markdown(results, ABOUT, held)
    assert "| ours, openvino int8 | none | 90.0 (3.0 / 9.0) | 300.0 (3.0 / 9.0) |" in text
    assert f"| {CACHED.name} | none | 50.0 (3.0 / 9.0) |  |  |  |" in text
    assert "| 4.0 s | 300 MB | 100 + 200 | 10.7 MB |" in text
    for bar in held:
        assert f"| {bar.claim} | {bar.value:.2f} {bar.unit} |" in text
    assert "at most 250 MB | not reached |" in text
    assert "repeated 3 times, differed by up to 10%" in text
    assert f"| {STOCK.name} | 500.0 ms | 3.0 ms |" in text
    assert "| 12.50 x | at least 10 x | ok |" in text
    assert all(contender.name in text for contender in ALL)


def test_a_bar_is_reached_at_its_bound() -> None:
    assert Bar("", 1.0, 1.0).reached
    assert Bar("", 1.0, 1.0, at_least=False).reached


def test_the_chart_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report.chart(of_a_run(), tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as image:
        assert image.format == "PNG"


def test_a_pipe_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "MODEL_STORE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "--quick"])
    for name in ("bench-quick.json", "bench-quick.png", "bench-profile.svg"):
        os.mkfifo(pipe := tmp_path / name)
        assert bench.main() == 1
        assert capsys.readouterr().err == f"{pipe}: is no regular file: remove it.\n"
        pipe.unlink()


def test_photographs_are_spread_over_a_folder(tmp_path: Path) -> None:
    for number in range(2 * IMAGES):
        (tmp_path / f"{number:03}.jpg").touch()
    chosen = photographs(tmp_path, tmp_path)
    assert [path.stem for path in chosen] == [f"{number:03}" for number in range(0, 2 * IMAGES, 2)]


def test_packaged_photographs_become_small_jpeg_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "PHOTOGRAPHS", tmp_path / "absent")
    chosen = photographs(None, tmp_path)
    assert len(chosen) == len(photos.packaged())
    seen = set()
    for path in chosen:
        with Image.open(path) as image:
            assert image.format == "JPEG"
            seen.add(image.size)
    assert seen == {*SIZES}


SERVER = """
    import signal, subprocess, sys, time
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    if sys.argv[1] == "child":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            expected = open(sys.argv[2], "rb").read() in body
            time.sleep(0.02)  # A load is to take no core.
            self.send_response(200 if expected else 422)
            self.send_header("Content-Length", "0")
            self.end_headers()

    if "stubborn" in sys.argv:
        subprocess.Popen([sys.executable, __file__, "child"])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def contender(tmp_path: Path) -> Contender:
    """A server that accepts one image alone."""
    script = tmp_path / "server.py"
    script.write_text(textwrap.dedent(SERVER))
    command = f"{{bin}}/python {script} {{port}} {photos.greeting()}"
    return Contender("of one image", "none", command, "image")


def test_a_server_is_timed_weighed_and_ended_with_its_children(
    contender: Contender, tmp_path: Path
) -> None:
    """The child ignores SIGTERM."""
    stubborn = dataclasses.replace(contender, command=f"{contender.command} stubborn")
    with running(stubborn, tmp_path, photos.greeting(), workers=1) as server:
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
        assert server.seconds > 0
        assert len(server.pss()) == len(family) == 2
    assert not any(_runs(process) for process in family)


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is absent")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core alone")
def test_a_pinned_server_is_loaded_from_the_other_cores(
    contender: Contender, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it is started by goes back to all cores. A worker of TorchServe stays on its own one."""
    cores, results = os.sched_getaffinity(0), Results()
    for seconds in ("WARM_UP", "LEAST"):
        monkeypatch.setattr(pinned, seconds, 1)
    pinned.measure(contender, tmp_path, [photos.greeting()], 0, results)
    assert os.sched_getaffinity(0) == cores and pinned.CORE not in os.environ
    found = {figure.metric: results.median(figure) for figure in results.values}
    assert found["pinned requests/s"] > 0 and found["pinned first process ms"] > 0
    assert found["pinned server ms"] >= found["pinned first process ms"]
    core, *others = sorted(cores)
    ours, cat = Contender("ours", REAL), photos.greeting()
    with pinned.on({*others}), running(ours, store, cat, 1) as server:
        pinned.settle(server, core, {*others})
        assert one_by_one(server.url, [cat], 3) > 0
        frontend = psutil.Process(server.pid)
        (worker,) = frontend.children()
        for process, own in ((frontend, {*others}), (worker, {core})):
            found_on = [os.sched_getaffinity(thread.id) for thread in process.threads()]
            assert found_on and all(one == own for one in found_on)


def test_a_server_that_ends_at_once_shows_its_log(tmp_path: Path) -> None:
    contender = Contender("broken", "none", "{bin}/python -m no_such_module", "image")
    with (
        pytest.raises(RuntimeError, match="No module named no_such_module"),
        running(contender, tmp_path, photos.greeting(), workers=1),
    ):
        pass


def test_single_requests_are_timed_and_errors_refused(contender: Contender, tmp_path: Path) -> None:
    other = next(path for path in photos.packaged() if path != photos.greeting())
    with running(contender, tmp_path, photos.greeting(), workers=1) as server:
        assert one_by_one(server.url, [photos.greeting()], 3) > 0
        with pytest.raises(RuntimeError, match="422"):
            one_by_one(server.url, [photos.greeting(), other], 3)


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is absent")
def test_load_sends_the_images_and_refuses_errors(contender: Contender, tmp_path: Path) -> None:
    other = next(path for path in photos.packaged() if path != photos.greeting())
    with running(contender, tmp_path, photos.greeting(), workers=1) as server:
        for field in ("-", "image"):
            found = send(server.url, field, "none", 2, 1, [photos.greeting()])
            assert found.rate > 0
            assert 0 < found.p50_ms <= found.p99_ms
        with pytest.raises(RuntimeError, match="requests failed"):
            send(server.url, "-", "none", 2, 1, [photos.greeting(), other])
