"""Pictures that a real TorchServe keeps with their answers, and reports of these."""

import base64
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest
import requests
from PIL import Image, ImageCms, ImageOps
from PIL.ExifTags import GPS, IFD, Base
from PIL.PngImagePlugin import PngInfo
from selenium.webdriver.common.keys import Keys

from tests.end_to_end.browser import Browser
from tests.end_to_end.test_observability import metrics_address
from tests.helpers import REAL, TURNS, encode, packed, site_of, write_config
from visionserve import sample_store
from visionserve.sample_store import Sample
from visionserve.sampling import PAUSE
from visionserve_tools import photos
from visionserve_tools.commands import samples
from visionserve_tools.server.nginx import Proxy
from visionserve_tools.server.torchserve import TorchServe

NAME = "sampled"
MARGIN = 0.1
T = TypeVar("T")
CAT = Image.open(photos.greeting()).convert("RGB")
SECRET = "Lindenstrasse 7"
# The markers of a JPEG that has nothing but pixels, by ITU-T T.81, and JFIF's APP0.
JFIF = {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
PIXELS_ONLY = {0xE0, 0xDB, 0xC0, 0xC4, 0xDA}


class Sampled:
    """A model whose samples are on, with two workers, in a server that has others."""

    def __init__(self, server: TorchServe, directory: Path) -> None:
        self.server, self.client, self.directory = server, server.client, directory

    def ask(self, data: bytes, **options: Any) -> dict[str, Any]:
        response = self.client.predict(NAME, data, **options)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def keep(self, data: bytes) -> Sample:
        """Ask so that the answer is at its threshold, and wait until the picture is kept."""
        best = self.ask(data, threshold=0)["predictions"][0]["probability"]
        return self.sample(self.ask(data, threshold=best)["sample"])

    def sample(self, id: str) -> Sample:
        return until(lambda: {one.id: one for one in self.samples()}.get(id))

    def samples(self) -> list[Sample]:
        return sample_store.read(self.directory) if self.directory.exists() else []

    def report(self, base: str | None = None, **body: Any) -> tuple[int, dict[str, Any]]:
        """Send a report, through nginx if its address is given, and without a token then."""
        headers = {} if base else self.client.token("inference")
        url = f"{base or self.client.inference}/predictions/{body.pop('model', NAME)}"
        response = requests.post(url, json=body, headers=headers, timeout=60)
        told: dict[str, Any] = response.json()
        return response.status_code, told

    def counted(self, fate: str) -> float:
        text = requests.get(f"{metrics_address(self.server)}/metrics", timeout=10).text
        lines = [line for line in text.splitlines() if line.startswith("vision_samples_total{")]
        own = [line for line in lines if f'"{NAME}"' in line and f'"{fate}"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in own)


def until(look: Callable[[], T | None], seconds: float = 15) -> T:
    """Look until there is something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def id_of(data: bytes) -> str:
    return sha256(data).hexdigest()[:16]


@pytest.fixture(scope="module")
def disk(server: TorchServe) -> Iterator[Path]:
    """A small disk in the server's folder where mounting is permitted, otherwise a folder."""
    folder = server.state / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    is_mounted = not os.geteuid() and not subprocess.run(mount, capture_output=True).returncode
    yield folder
    if is_mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def sampled(
    server: TorchServe, store: Path, disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sampled]:
    config = write_config(
        tmp_path_factory.mktemp(NAME),
        cache={"size_mb": 8, "directory": NAME},
        defaults={"tta": "none"},
        samples={"directory": f"{disk.name}/samples", "uncertain": MARGIN, "unfamiliar": True},
    )
    packed(store / f"{REAL}.mar", config, NAME, server.admitted / f"{NAME}.mar")
    server.client.register(f"{NAME}.mar", workers=2)
    yield Sampled(server, disk / "samples")
    server.client.unregister(NAME)


def photograph(size: tuple[int, int], orientation: int, seed: int = 0) -> bytes:
    """A JPEG as a telephone writes it, with the place in it, a comment and a profile."""
    upright = CAT.resize(size)
    upright.paste(tuple(seed * prime % 256 for prime in (37, 91, 151)), (0, 0, 32, 32))
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    exif[Base.ImageDescription] = SECRET
    exif.get_ifd(IFD.GPSInfo)[GPS.GPSLatitude] = (52.0, 30.0, 17.25)
    exif.get_ifd(IFD.GPSInfo)[GPS.GPSAreaInformation] = SECRET.encode()
    stored = upright.transpose(TURNS[orientation]) if orientation > 1 else upright
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    more = {"comment": SECRET, "xmp": SECRET.encode(), "icc_profile": profile}
    return encode(stored, "JPEG", quality=95, exif=exif, **more)


def markers(jpeg: bytes) -> set[int]:
    """The markers of a JPEG up to its pixels."""
    assert jpeg.startswith(b"\xff\xd8") and jpeg.endswith(b"\xff\xd9")
    found, position = set[int](), 2
    while 0xDA not in found:
        assert jpeg[position] == 0xFF
        found.add(jpeg[position + 1])
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4])
    return found


def test_a_kept_picture_has_only_its_pixels(sampled: Sampled) -> None:
    """Pillow's own turn is the measure; a small picture keeps its size, a large one has 512."""
    sizes = [(1600, 1200), (1200, 1600), (400, 300), (300, 400), *[(1000, 700)] * 4]
    sent = [photograph(size, orientation) for orientation, size in enumerate(sizes, 1)]
    notes = PngInfo()
    notes.add_text("Comment", SECRET)
    clear = CAT.resize((1400, 700)).convert("RGBA")
    clear.putalpha(0)
    sent.append(encode(clear, pnginfo=notes))
    assert all(SECRET.encode() in data for data in sent)
    for data in sent:
        jpeg = sampled.keep(data).picture.read_bytes()
        assert markers(jpeg) <= PIXELS_ONLY and SECRET.encode() not in jpeg
        kept = Image.open(io.BytesIO(jpeg))
        assert kept.mode == "RGB" and not kept.getexif() and set(kept.info) <= JFIF
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if upright.mode == "RGBA":
            upright = Image.new("RGBA", upright.size, "white")
        longest = min(512, max(upright.size))
        assert max(kept.size) == longest and len(jpeg) < 200_000
        expected = np.asarray(upright.convert("RGB").resize(kept.size, Image.Resampling.BILINEAR))
        assert np.abs(np.asarray(kept, float) - expected).mean() < 4
    for path in [sampled.directory, *sampled.directory.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_a_picture_is_kept_for_a_reason_and_once(sampled: Sampled) -> None:
    near, sure = (photograph((500, 400), 1, seed) for seed in (1, 2))
    best = sampled.ask(near, threshold=0)["predictions"][0]["probability"]
    sampled.ask(sure, threshold=max(0, best - 2 * MARGIN))
    before = {one.id for one in sampled.samples()}
    answer = sampled.ask(near, threshold=best - MARGIN / 2, language="zh", features=True)
    kept = sampled.sample(id_of(near))
    assert kept.about["kept"] == ["uncertain"] and kept.report is None
    assert answer["sample"] == kept.id and answer["predictions"][0]["name"]
    for name in ("model", "version", "tta", "confident", "unfamiliar"):
        assert kept.about[name] == answer[name]
    told = [
        {key: one[key] for key in ("label", "class_id", "probability")}
        for one in answer["predictions"]
    ]
    assert kept.about["predictions"] == told and "features" not in kept.about
    again = sampled.ask(near, threshold=best - MARGIN / 2, language="zh", features=True)
    assert again == answer | {"cached": True}

    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    odd = encode(Image.fromarray(noise))
    assert sampled.ask(odd, threshold=1)["unfamiliar"]
    assert sampled.sample(id_of(odd)).about["kept"] == ["unfamiliar"]
    assert {one.id for one in sampled.samples()} - before == {id_of(near), id_of(odd)}

    headers = sampled.client.token("inference") | {"X-Visionserve-Probe": "1"}
    probe = encode(Image.fromarray(noise[::-1]))
    url = f"{sampled.client.inference}/predictions/{NAME}"
    assert "sample" not in requests.post(url, data=probe, headers=headers, timeout=60).json()
    assert sampled.client.predict(NAME, b"nonsense").status_code == 415
    time.sleep(0.5)
    assert len([*sampled.directory.rglob(f"{id_of(near)}.jpg")]) == 1
    assert not [*sampled.directory.rglob(f"{id_of(probe)}.*")]
    assert "sample" not in sampled.client.predict(REAL, near).json()


def test_a_report_lies_beside_its_sample(sampled: Sampled, proxy: Proxy) -> None:
    data, other = photograph((500, 400), 1, 10), photograph((500, 400), 1, 11)
    id = sampled.keep(data).id
    for label, labels in (("tabby", ["tabby"]), (None, [])):
        reply = sampled.report(report={"id": id, "label": label})
        assert reply == (200, {"sample": id, "reported": labels})
        report = sampled.sample(id).report
        assert report and report["labels"] == labels and report["time"].endswith("Z")
    refused: list[tuple[dict[str, Any], tuple[int, str]]] = [
        ({"report": {"id": id, "label": "no such label"}}, (400, "invalid_report")),
        ({"report": {"id": id, "label": ["tabby"]}}, (400, "invalid_report")),
        ({"report": {"id": id}}, (400, "invalid_report")),
        ({"report": {"id": f"../{id[3:]}", "label": "tabby"}}, (400, "invalid_report")),
        ({"report": {"label": "tabby"}}, (400, "invalid_report")),
        ({"report": "tabby"}, (400, "invalid_report")),
        ({"report": {"id": id_of(other), "label": "tabby"}}, (404, "unknown_sample")),
        ({"report": {"id": id, "label": "tabby"}, "model": REAL}, (409, "samples_off")),
    ]
    site = site_of(sampled.server)
    proxy.start(site)
    nginx = f"http://{site.listen}"
    for body, expected in refused:
        for base in (None, nginx):
            status, told = sampled.report(base, **body)
            assert (status, told["error"]["code"]) == expected, body
    assert sampled.report(nginx, report={"id": id, "label": None})[0] == 200

    # Sent again, it is kept, although its answer is in the cache.
    text = base64.b64encode(other).decode()
    assert sampled.ask(other, threshold=0) and sampled.ask(other, threshold=0)["cached"]
    body = {"id": id_of(other), "label": "tiger cat"}
    assert sampled.report(report=body | {"id": id}, data=text)[0] == 400
    assert sampled.report(report=body, data="eA==")[0] in (400, 415)
    assert sampled.report(report=body)[0] == 404
    status, told = sampled.report(report=body, data=text)
    assert (status, told["reported"]) == (200, ["tiger cat"])
    kept = sampled.sample(id_of(other))
    assert kept.about["kept"][-1] == "reported" and kept.report and kept.report["labels"]


def test_a_wrong_answer_is_reported_on_the_page(sampled: Sampled, tmp_path: Path) -> None:
    """A picture that is kept, and one that is not, which is sent again with the report."""
    kept, other = tmp_path / "kept.jpg", tmp_path / "other.jpg"
    kept.write_bytes(photograph((500, 400), 1, 80))
    other.write_bytes(encode(Image.open(photos.packaged()[2]).convert("RGB"), "JPEG"))
    sampled.keep(kept.read_bytes())
    with closing(Browser(tmp_path)) as page:
        page.forget()
        page.send(sampled.client.token("inference"))
        page.driver.get(f"{sampled.client.inference}/predictions/{NAME}")
        for path, answer, labels in (
            (kept, "tiger cat", ["tiger cat"]),
            (other, "None of these", []),
        ):
            page.pick(path)
            page.settle()
            is_kept = id_of(path.read_bytes()) in {one.id for one in sampled.samples()}
            assert is_kept == (path == kept)
            page.one(".wrong").click()
            assert path == other or page.faults() == []
            field = page.one(".wrong-form input")
            field.send_keys("no such label", Keys.ENTER)
            assert page.run("return !arguments[0].validity.valid", field)
            field.clear()
            field.send_keys(answer, Keys.ENTER)
            page.until(lambda: page.texts(".wrong-form .told") == ["Thank you. It is kept."])
            report = sampled.sample(id_of(path.read_bytes())).report
            assert report and report["labels"] == labels
            page.one(".wrong").click()
            assert not page.all(".wrong-form")
            page.one("#clear").click()
        assert [entry for entry in page.console() if entry != "404"] == []
        page.driver.get(f"{sampled.client.inference}/predictions/{REAL}")
        page.pick(kept)
        page.settle()
        assert not page.one(".wrong").is_displayed()


def test_samples_are_listed_exported_and_cleared(
    sampled: Sampled,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They are cleared while workers write, too."""

    def command(*words: str) -> tuple[int, str, str]:
        directory = ["--directory", str(sampled.directory)]
        monkeypatch.setattr(sys, "argv", ["visionserve samples", *words, *directory])
        return samples.main(), *capsys.readouterr()

    id = sampled.keep(photograph((500, 400), 1, 20)).id
    sampled.report(report={"id": id, "label": "tabby"})
    assert command("list")[1].count("\n") == len(sampled.samples())
    found = command("list", "--only", "reported", "--since", "1d", "--model", NAME)[1]
    (line,) = (line for line in found.splitlines() if id in line)
    assert line.endswith("; reported: tabby")
    assert not command("list", "--since", "2999-01-01")[1]
    assert command("export", str(tmp_path / "out"))[0] == 0
    assert (tmp_path / "out" / "tabby" / f"{id}.jpg").exists()

    def send(seed: int) -> None:
        picture = photograph((300, 200), 1, 300 + seed)
        best = sampled.ask(picture, threshold=0)["predictions"][0]["probability"]
        sampled.ask(picture, threshold=best)

    with ThreadPoolExecutor(2) as pool:
        sending = [pool.submit(send, seed) for seed in range(30)]
        while not all(one.done() for one in sending):
            assert command("clear")[0] == 0
        for one in sending:
            one.result()
    sampled.keep(photograph((300, 200), 1, 400))
    assert command("clear")[0] == 0 and not sampled.samples()
    assert command("export", str(tmp_path / "no"))[::2] == (1, "There are no such samples.\n")


def test_a_full_disk_costs_no_answer(sampled: Sampled, disk: Path) -> None:
    if not disk.is_mount():
        pytest.skip("mounting a small disk is not permitted")
    kept = sampled.keep(photograph((500, 400), 1, 40))
    log = sampled.server.state / "logs" / "model_log.log"
    lines, dropped = log.read_text().count("Samples cannot be kept"), sampled.counted("dropped")
    with full(disk):
        sent = [photograph((500, 400), 1, seed) for seed in range(41, 47)]
        for data in sent:
            best = sampled.ask(data, threshold=0)["predictions"][0]["probability"]
            sampled.ask(data, threshold=best)
        until(lambda: sampled.counted("dropped") >= dropped + len(sent))
        status, told = sampled.report(report={"id": kept.id, "label": None})
        assert (status, told["error"]["code"]) == (507, "report_not_kept")
        assert {id_of(data) for data in sent}.isdisjoint(one.id for one in sampled.samples())
        assert not [*sampled.directory.rglob("*.part")]
    assert lines < log.read_text().count("Samples cannot be kept") <= lines + 2, "one a worker"
    time.sleep(PAUSE)
    sampled.keep(photograph((500, 400), 1, 47))
    assert sampled.report(report={"id": kept.id, "label": None})[0] == 200


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Fill a disk for the block."""
    filler = disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(4096))
        yield
    finally:
        filler.unlink()


WRITER = """
import sys
from pathlib import Path
from visionserve.sample_store import SampleStore
store, first = SampleStore(Path(sys.argv[1]), "m", "1.0", 10**9, 30), int(sys.argv[2])
print("ready", flush=True)
for number in range(first, first + 10_000):
    id = f"{number:016x}"
    store.put(id, id.encode() * 100_000, {"time": id * 100})
    store.report(id, {"labels": [id * 100]})
"""


def test_what_is_killed_while_it_writes_leaves_nothing_half(tmp_path: Path) -> None:
    for first in range(0, 30_000, 10_000):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "samples"), str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout and writer.stdout.readline() == b"ready\n"
            time.sleep(0.2 + first / 1e6)
            writer.kill()
    pictures = {path.stem: path.read_bytes() for path in tmp_path.rglob("*.jpg")}
    assert len(pictures) > 5
    assert all(data == id.encode() * 100_000 for id, data in pictures.items())
    for path in tmp_path.rglob("*.json"):
        assert path.name.partition(".")[0] in pictures and json.loads(path.read_bytes())


def test_a_killed_worker_leaves_nothing_half(sampled: Sampled) -> None:
    kept = sampled.keep(photograph((500, 400), 1, 50))
    before = kept.picture.stat().st_mtime_ns

    def send(seed: int) -> None:
        data = photograph((1000, 800), 1, 60 + seed)
        for threshold in (0.3, 0.4, 0.5):
            sampled.client.predict(NAME, data, threshold=threshold)

    with ThreadPoolExecutor(4) as pool:
        sending = [pool.submit(send, seed) for seed in range(20)]
        time.sleep(0.7)
        for worker in sampled.client.describe(NAME)[0]["workers"]:
            psutil.Process(worker["pid"]).kill()
        for one in sending:
            one.result()
    until(lambda: sampled.client.ready(), 60)
    sampled.keep(photograph((500, 400), 1, 200))
    for sample in sampled.samples():
        Image.open(sample.picture).load()
    until(lambda: not [*sampled.directory.rglob("*.part")])
    assert {path.stem for path in sampled.directory.rglob("*.jpg")} == {
        sample.id for sample in sampled.samples()
    }
    sampled.keep(photograph((500, 400), 1, 50))
    assert kept.picture.stat().st_mtime_ns == before
