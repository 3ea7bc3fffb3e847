import base64
import csv
import gzip
import io
import itertools
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from graphlib import CycleError
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image, ImageEnhance
from selenium.common.exceptions import JavascriptException
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from tests.corpus import chunk, encode
from tests.drawn import draw
from tests.end_to_end.browser import Browser
from tests.end_to_end.test_readmes import blocks
from tests.helpers import RANDOM, REAL, TURNS, site_of, spend
from visionserve.page import WEB, Page, bundle
from visionserve.postprocessing import HINTS, NO_LABEL, UNFAMILIAR, WARNINGS
from visionserve_tools.archive.hashes import sha256_of
from visionserve_tools.archive.recipe import Recipe, build
from visionserve_tools.batch.formats import record
from visionserve_tools.batch.rows import columns
from visionserve_tools.photos import greeting, packaged
from visionserve_tools.server.client import Client
from visionserve_tools.server.nginx import Proxy
from visionserve_tools.server.torchserve import TorchServe

CAT = greeting()
LIMIT = 5 * 1024 * 1024
LISTEN = """
    window.heard = [];
    window.titles = new Set();
    window.lines = new Set();
    window.railed = false;
    new MutationObserver((changes) => {
      for (const { target } of changes) {
        if (target.id === "status") heard.push([performance.now(), target.textContent]);
        if (target.id === "progress") lines.add(target.textContent);
        railed ||= document.getElementById("progress-bar")?.checkVisibility();
      }
      titles.add(document.title);
    }).observe(document, { childList: true, subtree: true });"""


LEAVE = """
    const event = new Event("beforeunload", { cancelable: true });
    return !window.dispatchEvent(event)"""
A_CARD_A_FRAME = """
    let time = 0;
    performance.now = () => (time += 10);
    window.requestAnimationFrame = (draw) => setTimeout(draw, 200);"""
# The next image that the browser reads for a script is read once `go` is called.
HOLD = """
    const read = createImageBitmap;
    window.createImageBitmap = (...given) => new Promise((done) => {
      window.createImageBitmap = read;
      window.go = () => done(read(...given));
    });"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("browser"))
    try:
        yield browser
    finally:
        browser.close()


@pytest.fixture
def page(chromium: Browser, client: Client) -> Iterator[Browser]:
    """The page of the real model; whatever a test leaves on the console fails it."""
    chromium.forget()
    chromium.send(client.token("inference"))
    show(chromium, client, REAL)
    yield chromium
    assert chromium.console() == []


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text("not an image")
    return path


@pytest.fixture
def large(tmp_path: Path) -> dict[str, Path]:
    """Files that are too large: one that the browser reads, and one that it does not."""
    images = {"read": tmp_path / "cat.png", "unread": tmp_path / "cat.tiff"}
    for path, data in {"read": CAT.read_bytes(), "unread": b"II*\0"}.items():
        images[path].write_bytes(data + bytes(LIMIT))
    return images


def show(page: Browser, client: Client, model: str) -> None:
    page.driver.get(f"{client.inference}/predictions/{model}")


def choose_model(page: Browser, name: str) -> None:
    page.driver.find_element("xpath", f"//*[@id='models']/button[.='{name}']").click()


def saved_csv(page: Browser) -> list[list[str]]:
    return list(csv.reader(page.saved("csv").splitlines()))


def labels(client: Client, model: str, path: Path, tta: str) -> list[str]:
    answer = client.predict(model, path.read_bytes(), tta=tta).json()
    return [prediction["label"] for prediction in answer["predictions"]]


def test_first_look(page: Browser) -> None:
    assert page.text("h1") == "What is in the picture?"
    assert page.text("#limits").endswith("up to 5.2 MB each"), "5 MiB, in the unit that it names."
    assert page.texts("footer dd") == [REAL, "1.0", "openvino fp32"]
    assert page.texts("#token-panel") == [], "Nobody asks for a token."
    assert Select(page.one("#tta")).first_selected_option.text == "Whole image"
    assert not page.one("#results").is_displayed()
    assert len(page.run("return document.querySelector('#examples img').src")) > 10_000
    assert page.faults() == []


def test_pick_shows_labelled_bars(page: Browser, client: Client) -> None:
    page.pick(CAT)
    page.settle()
    answer = client.predict(REAL, CAT.read_bytes()).json()
    assert page.texts(".label") == [entry["label"] for entry in answer["predictions"]]
    shown = [f"{entry['probability']:.1%}" for entry in answer["predictions"]]
    assert page.texts(".percent") == shown
    widths = page.run(
        "return [...document.querySelectorAll('.bar > span')].map((bar) => bar.style.width)"
    )
    assert [f"{float(width.rstrip('%')):.1f}%" for width in widths] == shown
    width = "return document.querySelector('.picture img').naturalWidth"
    page.until(lambda: page.run(width) == 451)
    assert re.fullmatch(rf"{REAL} 1\.0 · Whole image · [\d,]+ ms", page.text(".details"))
    assert page.run("return document.getElementById('status').textContent").startswith(
        f"chelsea.png: {answer['predictions'][0]['label']}, {shown[0]}"
    )
    assert page.faults() == []


def test_the_readmes_script(page: Browser, client: Client) -> None:
    (code,) = blocks("README.md", "js")
    assert "http://127.0.0.1:8000" in code
    code = code.replace("http://127.0.0.1:8000", client.inference)
    give = """
        const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
        return classify(new File([bytes], "cat.png", { type: "image/png" }))"""
    data = CAT.read_bytes()
    found = page.run(code + give, base64.b64encode(data).decode())
    assert found == client.predict(REAL, data, top_k=2).json()["predictions"]
    with pytest.raises(JavascriptException, match="format"):
        page.run(code + give, base64.b64encode(b"x").decode())
    page.until(lambda: page.console() == ["415"])


@pytest.mark.parametrize("width, height", [(360, 640), (390, 844), (412, 740)])
def test_on_a_phone_the_answer_comes_into_view(
    page: Browser, tmp_path: Path, width: int, height: int
) -> None:
    tall = tmp_path / "tall.jpg"
    with Image.open(CAT) as cat:
        cat.convert("RGB").resize((900, 1600)).save(tall)
    page.resize(width, height)
    for image in (CAT, tall):
        page.pick(image)
        page.settle()
        page.until(lambda: pictures(page) == 1)
        page.until(lambda: in_view(page, ".label", ".bar") == [])
        shown, reserved, most = page.run(
            """const { naturalWidth, naturalHeight } = document.querySelector(".picture img");
               const { width, height } = document.querySelector(".picture").getBoundingClientRect();
               return [naturalHeight / naturalWidth, height / width, 400 / width]"""
        )
        assert reserved == pytest.approx(min(shown, most), rel=0.02)
        page.one("#clear").click()
    page.pick(*packaged()[:4])
    page.settle(4)
    page.run("scrollTo(0, 0)")
    page.slow(0.5)  # The card grows once it has its answer.
    page.pick(CAT)
    page.settle(5)
    page.until(lambda: in_view(page, ".card:last-child") == [])
    page.pick(CAT)
    page.until(lambda: page.run("return document.querySelectorAll('.card').length") == 6)
    page.run("scrollTo(0, 0)")
    page.settle(6)
    assert page.run("return scrollY") == 0
    assert page.texts("#options") == []
    assert page.text("#options-toggle") == f"{REAL} · Whole image"
    page.one("#options-toggle").click()
    assert len(page.texts("#models button")) == 2
    assert page.axe() == []


def in_view(page: Browser, *selectors: str) -> list[str]:
    """The first elements that do not lie in the window as a whole, with their places."""
    outside: list[str] = page.run(
        """return [...arguments].flatMap((selector) => {
             const { top, bottom, left, right } =
               document.querySelector(selector).getBoundingClientRect();
             const isIn = top >= 0 && left >= 0 && bottom <= innerHeight && right <= innerWidth;
             const place = `${selector}: ${top} to ${bottom} of ${innerHeight}`;
             return isIn && bottom > top ? [] : [place];
           })""",
        *selectors,
    )
    return outside


def test_what_it_can_recognise(page: Browser, client: Client) -> None:
    assert page.text("#about summary").startswith("It knows 1,000 kinds of things, and always")
    assert page.run("return performance.getEntriesByType('resource').length") == 0
    page.one("#about summary").click()
    page.until(lambda: page.text("#classes-found") == "1,000 of 1,000")
    search = page.one("#class-search")
    search.send_keys("tabby")
    assert page.texts("#classes li") == ["tabby 虎斑猫"]
    assert page.one("#classes li").get_attribute("title") == "tabby · n02123045"
    search.clear()
    search.send_keys("埃及猫")
    assert page.texts("#classes li") == ["Egyptian cat 埃及猫"]
    card = client.card(REAL)
    shown = page.text("#model-card")
    assert card["weights"]["sha256"][:12] in shown and "up to 5.2 MB and 24 million pixels" in shown
    assert "same best name as the original network for 100.0% of" in shown
    assert "middle of the picture" in page.text("#about")
    assert page.faults() == []
    page.one("#language").click()
    assert page.texts("#classes li") == ["埃及猫 Egyptian cat"]
    choose_model(page, RANDOM)
    page.until(lambda: "resnet18" in page.text("#model-card"))
    for header in ("card", "classes"):
        answer = requests.get(
            f"{client.inference}/predictions/{REAL}",
            headers={"X-Classify-Describe": header} | client.token("inference"),
            timeout=60,
        ).json()
        if header == "card":
            assert answer.items() >= card.items(), "But for what is null, which TorchServe drops."
        else:
            assert len(answer["classes"]) == 1000
            assert answer["classes"][281] == {
                **{"label": "tabby", "names": {"zh": "虎斑猫"}, "wordnet_id": "n02123045"}
            }


def test_only_a_guess_carries_the_warning(page: Browser, client: Client) -> None:
    images = [CAT, packaged()[2]]
    answers = [client.predict(REAL, path.read_bytes()).json() for path in images]
    assert [answer["confident"] for answer in answers] == [False, True]
    page.pick(*images)
    page.settle(2)
    cards = [card.text for card in page.all(".card")]
    assert ["Low confidence" in card for card in cards] == [True, False]


def test_drop_and_paste(page: Browser) -> None:
    for count, event in enumerate(("drop", "paste"), 1):
        page.transfer(CAT, event)
        page.settle(count)
        assert page.texts(".name") == ["chelsea.png"] * count
        assert page.texts(".label")[::3] == ["Egyptian cat"] * count


def test_camera(page: Browser) -> None:
    page.one("#camera").click()
    page.until(lambda: page.one("#shoot").is_enabled())
    assert page.faults() == []
    page.one("#shoot").click()
    page.settle()
    assert page.texts(".name") == ["camera.jpg"]
    assert len(page.texts(".label")) == 3


def test_a_warning_says_what_is_wrong_with_the_picture(
    page: Browser, client: Client, tmp_path: Path
) -> None:
    dark = tmp_path / "dark.jpg"
    with Image.open(CAT) as cat:
        ImageEnhance.Brightness(cat.convert("RGB").reduce(6)).enhance(0.2).save(dark, quality=90)
    answer = client.predict(REAL, dark.read_bytes()).json()
    assert answer["hints"] == ["dark", "small"]
    page.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.pick(dark)
    page.settle()
    judged = "or a damaged picture." if answer["unfamiliar"] else "Take it as a guess."
    assert page.text(".warning").endswith(f"{judged} The picture is dark. The picture is small.")
    assert page.run("return document.getElementById('status').textContent").endswith(
        page.text(".warning")
    )
    page.one(".copy-json").click()
    page.until(lambda: page.run("return window.copied"))
    assert json.loads(page.run("return window.copied")) == answer
    head, row = saved_csv(page)
    assert row[head.index("hints")] == "dark small"
    page.one("#language").click()
    page.until(lambda: page.text(".warning").endswith("。图片太暗。图片尺寸太小。"))
    assert page.faults() == []


def test_an_unfamiliar_picture_has_a_stronger_warning(page: Browser, client: Client) -> None:
    """Of two pictures one is, as an archive with a threshold would say."""
    page.run(
        """const ask = fetch;
           window.fetch = async (...given) => {
             const text = await (await ask(...given)).text();
             const answer = { ...JSON.parse(text), unfamiliar: !window.isAsked, cached: true };
             window.isAsked = true;
             return new Response(JSON.stringify(answer));
           }"""
    )
    page.pick(packaged()[2])
    page.settle()
    page.pick(CAT)
    page.settle(2)
    assert page.texts(".warning") == [
        "Probably none of the model’s classes, or a damaged picture.",
        "Low confidence: the best match is under 50%. Take it as a guess.",
    ]
    colours = page.run(
        """return [...document.querySelectorAll(".warning")]
             .map((element) => getComputedStyle(element).backgroundColor)"""
    )
    assert colours[0] != colours[1]
    assert page.faults() == []
    Select(page.one("#show")).select_by_value("unfamiliar")
    assert page.texts(".name") == [packaged()[2].name]
    page.one("#compare").click()
    page.until(lambda: page.texts("tbody td:last-child") == ["from the cache"] * 2)
    page.one(".other .remove").click()
    page.one("#language").click()
    assert page.text(".warning") == "可能不属于模型的任何类别，或图片已损坏。"


def test_error_in_plain_words(page: Browser, notes: Path, tmp_path: Path) -> None:
    """What is too large is never sent, and what the server refuses is told."""
    large = tmp_path / "large.bmp"
    large.write_bytes(bytes(LIMIT + 1))
    page.pick(large)
    page.settle()
    reason = "This browser cannot read the image. Make it smaller with another program."
    assert page.text(".failure") == reason
    assert page.run("return performance.getEntriesByType('resource').length") == 0
    page.one("#clear").click()
    page.pick(notes)
    page.settle()
    reason = "The server does not read this format. Export the image as JPEG."
    assert page.text(".failure") == reason
    assert page.texts(".actions button") == ["Remove"], "Nothing could be better at a second try."
    page.until(lambda: page.console() == ["415"])
    assert page.faults() == []


def test_unreachable_server_is_asked_again(page: Browser, notes: Path, tmp_path: Path) -> None:
    changing, going = tmp_path / "changing.png", tmp_path / "going.png"
    for path in (changing, going):
        path.write_bytes(CAT.read_bytes())
    page.offline(True)
    page.pick(CAT, CAT, changing, going, notes)
    away = "The server is not running, or cannot be reached."
    page.until(lambda: page.text("#trouble") == away)
    page.until(lambda: re.fullmatch(r"It goes .+ Next try in \d+ s\.", page.text("#next-try")))
    page.until(lambda: page.texts(".state").count("Waiting…") == 5)
    assert page.run("return document.getElementById('status').textContent").startswith(
        f"{away} 0 of 5 done"
    )
    assert page.faults() == []
    os.utime(changing, (1, 1))
    going.unlink()
    page.console()
    page.offline(False)
    page.settle(5)
    assert page.text("#progress") == "5 of 5 done, 3 without an answer"
    assert page.texts(".label")[::3] == ["Egyptian cat"] * 2
    assert [text[:30] for text in page.texts(".failure")] == [
        "This file has changed since it",
        "This file is no longer there. ",
        "The server does not read this ",
    ]
    assert page.texts(".retry") == ["Retry"] * 2
    page.console()


def test_an_outage_is_told_once_until_it_is_over_or_a_person_stops_it(page: Browser) -> None:
    page.run(
        """const wait = setTimeout;
           const pace = (pause) => (pause === 30_000 ? pause : pause / 50);
           window.setTimeout = (action, pause) => wait(action, pace(pause))"""
    )
    page.offline(True)
    page.pick(CAT, *packaged()[2:7])
    page.until(lambda: page.text("#trouble"))
    page.driver.execute_async_script("setTimeout(arguments[0], 60_000)")
    assert page.texts(".failure") == [], "It goes on for longer than any restart takes."
    assert page.texts(".card .state") == ["Waiting…"] * 6
    page.offline(False)
    # A person may press it just when the page tries by itself, and hides it.
    page.run("document.getElementById('try-now').click()")
    page.until(lambda: page.text("#progress") == "6 of 6 done")
    assert page.texts("#trouble, #next-try, #trouble-actions button") == []

    page.one("#clear").click()
    page.offline(True)
    page.pick(CAT, *packaged()[2:7])
    page.until(lambda: page.text("#trouble"))
    page.one("#stop-trying").click()
    page.settle(6)
    assert {text[:31] for text in page.texts(".failure")} == {
        "The server cannot be reached. Ch"[:31]
    }
    page.console()
    assert page.run("return document.querySelector('.retry').ariaLabel") == "Retry: chelsea.png"
    page.offline(False)
    retry = page.one("#retry-failed")
    page.run("for (let click = 0; click < 2; click += 1) arguments[0].click()", retry)
    page.until(lambda: page.text("#progress") == "6 of 6 done")
    assert page.texts(".label")[0] == "Egyptian cat"
    assert not page.texts(".failure")

    page.one("#clear").click()
    page.offline(True)
    page.pick(CAT)
    page.until(lambda: page.text("#trouble"))
    page.run(
        """window.fetch = () => new Promise((_, fail) => {
               window.end = () => fail(new TypeError("no network"));
           });"""
    )
    page.until(lambda: page.run("return typeof window.end") == "function")
    page.one("#stop-trying").click()
    page.run("window.end()")
    page.settle()
    assert page.text(".failure").startswith("The server cannot be reached.")
    page.console()
    page.offline(False)


def test_silent_server_is_left_after_30_s(page: Browser) -> None:
    page.run(
        """window.wait = setTimeout;
           window.setTimeout = (action, pause) => wait(action, pause === 30_000 ? 300 : pause)"""
    )
    page.slow(20)
    page.pick(CAT)
    page.settle()
    assert page.text(".failure").startswith("The server took longer than 30 s")
    page.run("window.setTimeout = wait")
    page.offline(False)
    page.one(".retry").click()
    page.until(lambda: page.text(".label"))
    assert page.texts(".label")[0] == "Egyptian cat"


def test_busy_and_stopped_nginx_are_asked_again(
    chromium: Browser, server: TorchServe, proxy: Proxy
) -> None:
    site = site_of(server, rate="20r/m")
    proxy.start(site)
    chromium.forget()
    port = site.listen.rpartition(":")[2]
    chromium.driver.get(f"http://elsewhere.test:{port}/")
    chromium.offline(True)
    chromium.pick(CAT)
    chromium.until(lambda: chromium.text("#trouble") == "No network: this device is offline.")
    chromium.offline(False)
    chromium.settle()
    chromium.console()
    chromium.driver.get(f"http://{site.listen}/")
    spend(site)
    chromium.pick(CAT)
    chromium.until(lambda: chromium.text("#trouble").startswith("The server is busy."))
    chromium.settle()
    assert chromium.texts(".label")[0] == "Egyptian cat"
    chromium.until(lambda: set(chromium.console()) == {"429"})
    proxy.stop()
    chromium.pick(packaged()[2])
    down = "The server is not running, or cannot be reached."
    chromium.until(lambda: chromium.text("#trouble") == down)
    proxy.start(replace(site, rate="10000r/s"))
    chromium.settle(2)
    assert chromium.texts(".label")[3] == "espresso"
    chromium.console()


def test_what_is_removed_can_come_back_until_the_next_choice(page: Browser) -> None:
    page.pick(CAT, *packaged()[2:4])
    page.settle(3)
    names, found = page.texts(".name"), page.texts(".label")
    page.one(".card:nth-child(2) .remove").click()
    assert page.texts(".name") == [names[0], names[2]]
    assert page.driver.switch_to.active_element == page.one(".card:nth-child(2)")
    assert page.text("#notice").startswith("Images removed: 1.")
    page.one("#notice button").click()
    page.until(lambda: page.texts(".name") == names)
    page.one("#clear").click()
    assert not page.one("#results").is_displayed()
    assert page.driver.switch_to.active_element == page.one("#choose")
    page.until(lambda: records(page) == 0)
    page.one("#notice button").click()
    page.settle(3)
    assert page.texts(".name") == names and page.texts(".label") == found
    assert page.run("return performance.getEntriesByType('resource').length") <= 3
    page.until(lambda: records(page) == 3)
    page.one("#clear").click()
    page.pick(CAT)
    page.settle()
    assert page.texts(".name, #notice") == names[:1]


def test_clear_while_images_are_added(page: Browser) -> None:
    page.pick(*[CAT] * 600)
    press = """const [done] = arguments;
               const look = () => {
                 const { length } = document.querySelectorAll(".card");
                 if (length === 0) return setTimeout(look);
                 document.getElementById("clear").click();
                 done(length);
               };
               look();"""
    assert 0 < page.driver.execute_async_script(press) < 600
    page.driver.execute_async_script("setTimeout(arguments[0], 500)")
    assert page.all(".card") == []
    assert not page.one("#results").is_displayed()


@pytest.mark.parametrize("kind", ["read", "unread"])
def test_clear_while_a_jpeg_is_made(page: Browser, large: dict[str, Path], kind: str) -> None:
    """Whether the browser can read the image or not, nothing of it comes back."""
    page.run(HOLD)
    page.pick(large[kind])
    page.until(lambda: page.texts(".state") == ["Making a JPEG…"])
    page.one("#clear").click()
    page.run("go()")
    page.pick(CAT, packaged()[2])
    page.settle(2)
    page.until(lambda: records(page) >= 2)
    page.driver.refresh()
    page.settle(2)
    assert page.texts(".name") == [CAT.name, packaged()[2].name]


def test_clear_while_kept_results_come_back(page: Browser) -> None:
    page.pick(*[CAT] * 6)
    page.settle(6)
    page.until(lambda: records(page) == 6)
    with page.at_load(A_CARD_A_FRAME):
        page.driver.refresh()
    page.until(lambda: page.texts("#clear"))
    page.one("#clear").click()
    page.until(lambda: records(page) == 0)
    page.driver.execute_async_script("setTimeout(arguments[0], 500)")
    assert not page.text("#notice").startswith("Results kept")
    assert page.all(".card") == []


def test_images_chosen_before_the_kept_results_are_read(page: Browser) -> None:
    page.pick(CAT)
    page.until(lambda: records(page) == 1)
    with page.at_load(
        """indexedDB.open("visionserve", 1).onsuccess = ({ target: { result } }) => {
             const store = result.transaction("pictures", "readwrite").objectStore("pictures");
             const hold = () => window.isFree || (store.get(["", 0]).onsuccess = hold);
             hold();
           }"""
    ):
        page.driver.refresh()
    page.pick(packaged()[2])
    page.driver.execute_async_script("setTimeout(arguments[0], 500)")
    page.run("window.isFree = true")
    page.settle(2)
    assert page.texts(".name") == [CAT.name, packaged()[2].name]
    page.until(lambda: records(page) == 2)


def test_a_database_that_never_answers_holds_up_nothing_for_long(page: Browser) -> None:
    with page.at_load(
        """IDBFactory.prototype.open = () => ({});
           const wait = setTimeout;
           window.setTimeout = (action, pause, ...given) =>
             wait(action, pause === 5000 ? 500 : pause, ...given)"""
    ):
        page.driver.refresh()
    page.pick(CAT)
    page.settle()
    assert page.texts(".label")[0] == "Egyptian cat"
    page.one("#clear").click()
    assert not page.one("#results").is_displayed()


def test_several_images_and_their_csv(page: Browser, client: Client, tmp_path: Path) -> None:
    formula = tmp_path / '=cmd, "x".txt'
    formula.write_text("not an image")
    pictures = [CAT, *packaged()[2:7]]
    page.pick(*pictures)
    page.settle(6)
    page.pick(formula)
    page.settle(7)
    assert page.text("#progress") == "7 of 7 done, 1 without an answer"
    page.until(lambda: page.console() == ["415"])
    assert page.faults() == []

    head, *rows = saved_csv(page)
    assert head == list(columns(3))
    for path, row in zip(pictures, rows[:-1], strict=True):
        answer = client.predict(REAL, path.read_bytes()).json()
        cells = dict(zip(head, row, strict=True))
        assert (cells["path"], cells["error"]) == (path.name, "")
        assert cells["confident"] == str(answer["confident"]).lower()
        for name in ("model", "version", "tta"):
            assert cells[name] == answer[name]
        for rank, entry in enumerate(answer["predictions"], 1):
            assert cells[f"label_{rank}"] == entry["label"]
            assert cells[f"class_id_{rank}"] == str(entry["class_id"])
            expected = pytest.approx(entry["probability"], abs=1e-4)
            assert float(cells[f"probability_{rank}"]) == expected
    failed = dict(zip(head, rows[-1], strict=True))
    assert failed["path"] == '\'=cmd, "x".txt'
    assert failed["error"].startswith("unsupported_format: ")
    assert failed["label_1"] == failed["confident"] == ""


def test_a_csv_field_of_the_page_and_of_classify(chromium: Browser) -> None:
    fields: dict[str | float | bool | None, str] = {
        "cat": '"cat"',
        "": '""',
        None: '""',
        True: '"true"',
        285: "285",
        0.35: "0.35",
        -2: "-2",
        'say "cheese", please': '"say ""cheese"", please"',
        "two\nlines": '"two\nlines"',
        "a;=1+1;.jpg": '"a;\'=1+1;.jpg"',
        'a;"=1+1': '"a;\'""=1+1"',
        "a; -1;b": '"a;\' -1;b"',
        "a\n=1\t@x": "\"a\n'=1\t'@x\"",
        "a-b; c=d": '"a-b; c=d"',
        "=1+1": '"\'=1+1"',
        '=HYPERLINK("x")': '"\'=HYPERLINK(""x"")"',
        **{f"{first}x": f'"\'{first}x"' for first in "+-@\t\r\n＝＋－＠"},
        "'=1": '"\'=1"',
        "高山;雪景": '"高山;雪景"',
    }
    chromium.forget()
    found = chromium.driver.execute_async_script(
        """const [module, values, done] = arguments;
           import(`data:text/javascript;base64,${module}`)
             .then(({ cell }) => done(values.map(cell)))""",
        base64.b64encode((WEB / "csv.js").read_bytes()).decode(),
        list(fields),
    )
    assert found == list(fields.values())
    assert [record([value, 0]) for value in fields] == [f"{f},0\r\n" for f in fields.values()]
    for value, separator in itertools.product(fields, ",;\t"):
        line = record(["cat", value, value]) if isinstance(value, str) else ""
        cells = itertools.chain(*csv.reader(line.splitlines(keepends=True), delimiter=separator))
        runs = re.compile(r"\s*[=+\-@＝＋－＠]")
        assert not any(map(runs.match, cells)), "A spreadsheet runs no part as a formula."


def test_images_travel_together_in_two_requests_at_a_time(page: Browser, notes: Path) -> None:
    page.run("performance.now = () => Date.now() / 100")  # As many travel as with a quick server.
    page.slow(0.1)  # But each travels long enough to meet the other.
    page.pick(*[notes] * 20, CAT, *[notes] * 19)
    page.settle(40)
    assert page.text("#progress") == "40 of 40 done, 39 without an answer"
    assert page.texts(".label")[0] == "Egyptian cat", "A fault stays in its place."
    assert "in one request" in page.text(".details")
    spans = page.run(
        """return performance.getEntriesByType("resource")
                             .map(({ startTime, responseEnd }) => [startTime, responseEnd])"""
    )
    events = sorted([(end, -1) for _, end in spans] + [(start, 1) for start, _ in spans])
    in_flight = [sum(step for _, step in events[: index + 1]) for index in range(len(events))]
    assert max(in_flight) == 2
    assert len(spans) < 40
    page.console()


def test_tta_choice(page: Browser, client: Client) -> None:
    page.pick(CAT)
    page.settle()
    Select(page.one("#tta")).select_by_visible_text("Ten crops")
    page.until(lambda: "Ten crops" in page.text(".details"))
    assert page.texts(".label") == labels(client, REAL, CAT, "ten_crop")


def test_model_choice_keeps_the_images(page: Browser, client: Client) -> None:
    assert page.texts("#models button") == [REAL, RANDOM]
    assert page.text("#models [aria-pressed=true]") == REAL
    page.pick(CAT)
    page.settle()
    before = page.texts(".label, .details")
    page.one("#models [aria-pressed=true]").click()
    assert page.texts(".label, .details") == before
    choose_model(page, RANDOM)
    page.until(lambda: page.texts(".label") == labels(client, RANDOM, CAT, "dense"))
    assert page.text("#models [aria-pressed=true]") == RANDOM
    assert page.texts("footer dd") == [RANDOM, "1.0", "pytorch fp32"]
    assert page.driver.current_url.endswith(f"/predictions/{RANDOM}")
    requests = "return performance.getEntriesByType('resource').length"
    asked = page.run(requests)
    choose_model(page, REAL)
    page.until(lambda: page.texts(".label, .details") == before)
    assert page.run(requests) == asked, "What is known is not asked again."


def test_token_field(page: Browser, client: Client) -> None:
    page.send({})
    page.pick(CAT, CAT)
    page.settle(2)
    refusal = "The server asks for an API token, and none was entered."
    assert page.texts(".failure, #trouble") == [refusal] * 3
    field = page.one("#token")
    assert page.driver.switch_to.active_element == field
    assert field.get_attribute("type") == "password"
    assert page.faults() == []
    field.send_keys("wrong")
    field.submit()
    wrong = "The server refuses this API token. It is mistyped, or no longer valid."
    page.until(lambda: page.texts(".failure, #trouble") == [wrong] * 3)
    page.one("#enter-token").click()
    assert page.driver.switch_to.active_element == field
    field.clear()

    page.until(lambda: "400" in page.console())
    page.slow(1)
    enter_token(page, client)
    assert page.text("#progress") == "0 of 2 done"
    assert page.texts("#download") == []
    page.until(lambda: page.text("#progress") == "2 of 2 done")
    assert page.texts(".label")[::3] == ["Egyptian cat"] * 2
    page.console()


def test_a_refusal_from_before_the_token_is_no_refusal_of_it(page: Browser, client: Client) -> None:
    page.send({})
    page.run(
        """const ask = fetch;
           let asked = 0;
           window.fetch = async (...given) => {
             asked += 1;
             const isHeld = asked === 2;
             const response = await ask(...given);
             if (isHeld) await new Promise((done) => { window.go = done; });
             return response;
           }"""
    )
    page.pick(CAT, packaged()[2])
    page.until(lambda: page.texts(".failure") and page.run("return Boolean(window.go)"))
    enter_token(page, client)
    page.until(lambda: "".join(page.texts(".label")))
    page.run("go()")
    page.settle(2)
    assert page.texts(".failure") == []
    assert page.texts(".label")[::3] == ["Egyptian cat", "espresso"]
    page.console()


def enter_token(page: Browser, client: Client) -> None:
    field = page.one("#token")
    field.send_keys(client.token("inference")["Authorization"].removeprefix("Bearer "))
    field.submit()


def test_languages(page: Browser, client: Client, notes: Path) -> None:
    assert page.run("return document.documentElement.lang") == "en"
    page.pick(CAT, notes)
    page.settle(2)
    page.one("#language").click()
    assert page.run("return document.documentElement.lang") == "zh-CN"
    assert page.text("h1") == "图片里是什么？"
    refusal = "服务器不支持这种格式，请将图片导出为 JPEG。"
    page.until(lambda: page.text(".failure") == refusal)
    assert "整张图片" in page.text(".details")
    page.until(lambda: page.console() == ["415"])
    assert page.faults() == []
    chinese = client.predict(REAL, CAT.read_bytes(), language="zh").json()["predictions"]
    page.until(lambda: page.texts(".label") == [entry["name"] for entry in chinese])
    page.one("#counts summary").click()
    assert page.texts("#counts button")[0].startswith("埃及猫")
    page.one("#counts button").click()
    assert page.text("#shown") == "显示 1/2：埃及猫。"
    assert saved_csv(page)[1][1] == chinese[0]["name"]
    assert page.run("return performance.getEntriesByType('resource').length") == 2
    page.one("#show-all").click()
    page.one("#language").click()
    page.until(lambda: page.texts(".label") == [entry["label"] for entry in chinese])
    page.one("#language").click()

    page.driver.refresh()
    assert page.text("h1") == "图片里是什么？"
    page.one("#language").click()
    assert page.text("h1") == "What is in the picture?"


def test_where_the_model_looked(page: Browser, client: Client, tmp_path: Path) -> None:
    """A cat on a plain, wide picture that the camera stored turned."""
    with Image.open(CAT) as cat:
        wide = Image.new("RGB", (1000, 400), (128, 128, 128))
        wide.paste(cat.resize((400, 400)), (600, 0))
    path = tmp_path / "wide.jpg"
    turned = Image.Exif()
    turned[0x0112] = 6
    wide.transpose(Image.Transpose.ROTATE_90).save(path, quality=95, exif=turned)
    Select(page.one("#tta")).select_by_value("dense")
    page.pick(path)
    page.settle()
    assert page.texts("canvas, .label input") == []
    page.one(".where").click()
    page.until(lambda: page.texts("canvas"))
    drawn = canvas(page)
    assert drawn.size == (640, 256)
    heat = 2 * np.asarray(drawn, float) - np.asarray(wide.resize(drawn.size), float)
    red = heat[..., 0].reshape(8, 32, 20, 32).mean((1, 3))
    assert np.unravel_index(red.argmax(), red.shape)[1] >= 12, "The hottest place is on the cat."
    assert red[:, :8].mean() < red[:, 12:].mean() / 2
    assert difference(client, path, drawn, seen(client, path)) < 4, "As the server draws it."
    assert page.faults() == []

    names = page.texts(".label")
    assert told(page, names[0])
    page.one(".where").send_keys(Keys.SHIFT, Keys.TAB)
    for name in names[1:]:
        page.driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
        page.until(partial(told, page, name))
        assert page.driver.switch_to.active_element.accessible_name == name
        before, drawn = drawn, canvas(page)
        assert before.tobytes() != drawn.tobytes()
    assert page.run("return performance.getEntriesByType('resource').length") == 2
    assert "inside the frame" not in page.text(".where-note")
    page.one(".where").click()
    assert page.texts("canvas, .label input, .where-note") == []

    Select(page.one("#tta")).select_by_value("none")
    page.until(lambda: "One crop" in page.text(".details"))
    page.one(".where").click()
    page.until(lambda: page.text(".where-note").endswith("It saw only what is inside the frame."))
    rows = np.asarray(canvas(page), float).mean(-1)[64:192]
    white = [column for column in range(640) if rows[:, column].min() > 200]
    middle, side = 320, round(400 * 224 / 256 * 0.64)
    assert white, "The edge of the square is drawn."
    assert min(white) == pytest.approx(middle - side / 2, abs=6)
    assert max(white) == pytest.approx(middle + side / 2, abs=6)


def test_the_map_lies_on_the_picture_that_the_model_saw(
    page: Browser, client: Client, tmp_path: Path
) -> None:
    """However a format says how it lies, and whether the browser turns it or not."""
    with Image.open(CAT) as cat:
        whole = cat.convert("RGB")
    paths = []
    for orientation, turn in TURNS.items():
        stored = whole.transpose(turn)
        exif = Image.Exif()
        exif[0x0112] = orientation
        for format in ("JPEG", "WEBP", "PNG", "AVIF"):
            if format != "JPEG" and orientation not in (5, 8):
                continue
            told = exif.tobytes() if format == "AVIF" else exif
            data = encode(stored, format, exif=told, quality=95)
            if orientation == 5 and format == "PNG":
                raw = exif.tobytes()
                text = f"\nexif\n{len(raw):8}\n{raw.hex()}\n".encode()
                plain = encode(stored, "PNG")
                data = plain[:33] + chunk(b"tEXt", b"Raw profile type exif\0" + text) + plain[33:]
            paths.append(tmp_path / f"{orientation}.{format.lower()}")
            paths[-1].write_bytes(data)
    Select(page.one("#tta")).select_by_value("dense")
    page.pick(*paths)
    page.settle(len(paths))
    page.run("for (const one of document.querySelectorAll('.where')) one.click()")
    page.until(lambda: len(page.all("canvas")) == len(paths))
    drawn = page.run(
        "return [...document.querySelectorAll('.card')].map("
        "(card) => [card.querySelector('.name').textContent,"
        " card.querySelector('canvas').toDataURL()])"
    )
    wrong = {}
    box = seen(client, paths[0])
    for path, (name, url) in zip(paths, drawn, strict=True):
        assert path.name == name
        ours = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")
        apart = difference(client, path, ours, box)
        if apart >= 4 or ours.size != (451, 300):
            wrong[name] = (ours.size, apart)
    assert wrong == {}


def seen(client: Client, path: Path) -> list[float]:
    """The part of a photograph that its map covers: left, top, right and bottom."""
    explained = client.predict(REAL, path.read_bytes(), tta="dense", explain=True).json()
    box: list[float] = explained["predictions"][0]["explanation"]["box"]
    return box


def difference(client: Client, path: Path, drawn: Image.Image, box: list[float]) -> float:
    """The mean difference, in levels, of a drawn map and the server's own, which has no frame."""
    answer = requests.post(
        f"{client.inference}/explanations/{REAL}",
        path.read_bytes(),
        headers={"Content-Type": "image/x", "Accept": "image/png", "X-Classify-TTA": "dense"}
        | client.token("inference"),
        timeout=60,
    )
    with Image.open(io.BytesIO(answer.content)) as image:
        theirs = np.asarray(image.convert("RGB").resize(drawn.size), float)
        scale = drawn.width / image.width
    left, top, right, bottom = (round(scale * edge) for edge in box)
    is_frame = np.zeros(theirs.shape[:2], bool)
    is_frame[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = True
    is_frame[top + 7 : bottom - 7, left + 7 : right - 7] = False
    return float(np.abs(theirs - np.asarray(drawn, float))[~is_frame].mean())


def test_a_map_that_comes_too_late_is_not_shown(page: Browser) -> None:
    page.pick(CAT)
    page.settle()
    page.slow(1)
    for _ in range(2):
        page.one(".where").click()
    asked = "return performance.getEntriesByType('resource').length"
    page.until(lambda: page.run(asked) == 2)
    assert page.texts("canvas, .where-note") == []
    page.one(".where").click()
    page.until(lambda: page.texts("canvas"))
    assert len(page.all("canvas")) == 1
    page.offline(False)


def test_no_map_of_a_photograph_that_the_browser_cannot_show(page: Browser, tmp_path: Path) -> None:
    tiff = tmp_path / "cat.tiff"
    with Image.open(CAT) as cat:
        cat.save(tiff)
    page.pick(CAT, tiff)
    page.settle(2)
    page.until(lambda: page.texts(".where") == ["Where?"])
    assert page.texts(".label")[::3] == ["Egyptian cat"] * 2
    assert page.run("return document.querySelectorAll('.placeholder').length") == 1


def told(page: Browser, name: str) -> bool:
    return f"“{name}”" in page.text(".where-note")


def canvas(page: Browser) -> Image.Image:
    """What the map's canvas shows."""
    data = page.run("return document.querySelector('.picture canvas').toDataURL()")
    return Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))).convert("RGB")


def test_two_classes_with_long_names_of_their_own(
    page: Browser, server: TorchServe, client: Client, exact_config: Path, tmp_path: Path
) -> None:
    """Names are shown and saved, in both languages; labels stay, in answers and tensors."""
    network = "shufflenet_v2_x0_5"
    weights, labels, named = (tmp_path / name for name in ("weights.pt", "labels.txt", "map.json"))
    draw(weights, network, classes=2, seed=4)  # It prefers one class by 2 %.
    labels.write_text("alp\nvalley\n")
    names = {"en": {"alp": "alp, high mountain"}, "zh": {"alp": "高山, 雪山", "valley": "山谷"}}
    named.write_text(json.dumps({"names": names}))
    of_these = {"architecture": network, "weights_sha256": sha256_of(weights), "about": ""}
    fitted = json.dumps({**of_these, "temperatures": {}, "plausible": {"dense": 0.5}})
    (tmp_path / "fitted.json").write_text(fitted)
    recipe = Recipe(
        *(network, "land", "1.0", exact_config, weights, labels, named),
        temperatures=tmp_path / "fitted.json",
    )
    build(recipe, server.store)
    server.register("land.mar")
    try:
        show(page, client, "land")
        page.pick(CAT)
        page.settle()
        answer = client.predict("land", CAT.read_bytes()).json()
        order = [entry["label"] for entry in answer["predictions"]]
        assert sorted(order) == ["alp", "valley"]
        whole = [entry["name"] for entry in answer["predictions"]]
        assert whole == [names["en"].get(label, label) for label in order]
        assert page.texts(".label") == [label.split(",")[0] for label in whole]
        assert [one.get_attribute("title") for one in page.all(".label")] == whole
        assert page.texts(".percent") == [f"{p['probability']:.1%}" for p in answer["predictions"]]
        assert answer["plausible"] == 1
        assert page.texts(".faded .label") == page.texts(".label")[1:], "The second is no name."
        head, row = saved_csv(page)
        assert page.text("#about summary").startswith("It knows 2 kinds of things, and always")
        page.one("#about summary").click()
        page.until(
            lambda: page.texts("#classes li") == ["alp, high mountain 高山, 雪山", "valley 山谷"]
        )
        page.one("#about summary").click()
        assert head == list(columns(2))
        assert row[1] == whole[0] and row[head.index("plausible")] == "1"
        page.one(".where").click()
        page.until(lambda: page.texts("canvas"))
        assert len(page.texts(".label input")) == 2
        chinese = client.predict("land", CAT.read_bytes(), language="zh").json()["predictions"]
        assert [entry["label"] for entry in chinese] == order
        assert [entry["name"] for entry in chinese] == [names["zh"][label] for label in order]
        page.one("#language").click()
        shown = [names["zh"][label].split(",")[0] for label in order]
        page.until(lambda: page.texts(".label") == shown)
        page.one("#language").click()
        assert page.faults() == []
    finally:
        client.unregister("land")


def test_the_browser_s_language_comes_first(page: Browser) -> None:
    page.cdp("Emulation.setUserAgentOverride", userAgent="", acceptLanguage="zh-TW")
    page.driver.refresh()
    assert page.text("#choose") == "选择图片"


def test_languages_say_the_same_things() -> None:
    en, zh = (
        re.findall(r'^  "?([\w.]+)"?:\s+"(.*)",$', (WEB / name).read_text("utf-8"), re.MULTILINE)
        for name in ("en.js", "zh.js")
    )
    assert [key for key, _ in en] == [key for key, _ in zh]
    blanks = [[sorted(re.findall(r"\{\w+\}", text)) for _, text in side] for side in (en, zh)]
    assert blanks[0] == blanks[1]


def test_keyboard(page: Browser) -> None:
    focused = [page.tab() for _ in range(13)]
    assert focused.pop(1).text.endswith("What can it recognise?")
    names = ["中文", "Choose images", "Choose folder", "Use the camera"]
    assert [element.text for element in focused[:4]] == names
    assert [element.accessible_name for element in focused[4:7]] == [
        "Try the cat",
        "Try the cup of coffee",
        "Try the rocket",
    ]
    assert [element.text for element in focused[7:9]] == [REAL, RANDOM]
    assert focused[9] == page.one("#tta")
    assert [element.text for element in focused[10:]] == ["Compare with another", "Copy link"]
    style = page.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert style == "solid"


def test_policy_is_sent_and_obeyed(page: Browser, client: Client) -> None:
    response = requests.get(
        f"{client.inference}/predictions/{REAL}",
        headers={"Accept": "text/html"} | client.token("inference"),
        timeout=30,
    )
    policy = response.headers["content-security-policy"]
    assert policy == Page().content_security_policy
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    page.run(
        """
        const script = document.createElement("script");
        script.textContent = "window.injected = true";
        document.body.append(script);
        """
    )
    assert page.run("return window.injected") is None
    page.until(lambda: ["Content Security Policy" in entry for entry in page.console()] == [True])


def test_facts_cannot_end_their_block() -> None:
    facts = {"model": "</script><script>alert(1)</script><!--", "version": "猫"}
    html = Page().render(facts, [facts]).decode()
    block = re.search(r'<script type="application/json" id="facts">(.*?)</script>', html)
    assert block is not None
    texts = {"warning": WARNINGS["en"], "unfamiliar": UNFAMILIAR["en"], "noLabel": NO_LABEL["en"]}
    assert json.loads(block[1]) == {**facts, "models": [facts], **texts, "hints": HINTS}


def test_size() -> None:
    assert len(gzip.compress(Page().render({"model": "m", "version": "1"}, []))) < 250_000


def test_modules_are_joined_behind_their_imports() -> None:
    modules = {
        "main.js": 'import { one } from "./one.js";\n\none();\n',
        "one.js": "/** One. */\nexport function one() {}\n",
    }
    assert bundle(modules) == "/** One. */\nfunction one() {}\n\none();\n"
    with pytest.raises(CycleError):
        bundle(modules | {"one.js": 'import { main } from "./main.js";\n'})


def test_a_reload_keeps_the_answers(page: Browser) -> None:
    page.pick(CAT)
    page.until(lambda: records(page) == 1)
    page.run(
        """const wait = setTimeout;
           window.setTimeout = (action, pause) => (pause === 500 ? 1 : wait(action, pause))"""
    )
    page.pick(packaged()[2])
    page.settle(2)
    before = page.texts(".name, .label, .percent, .details")
    assert page.texts(".where") == ["Where?"] * 2
    page.until(lambda: pictures(page) == 2)
    page.driver.refresh()
    page.settle(2)
    notice = page.text("#notice")
    assert notice.startswith("Results kept from before the page was loaded: 2.")
    assert notice.endswith("For “Where?” and other models, choose the files again.")
    assert page.texts(".where") == []
    assert page.texts(".name, .label, .percent, .details") == before
    page.until(lambda: pictures(page) == 2)
    assert page.run("return performance.getEntriesByType('resource').length") == 0
    assert page.faults() == []
    choose_model(page, RANDOM)
    page.until(lambda: page.texts(".failure"))
    assert page.texts(".failure")[0].startswith("Only the earlier answers of this image are kept.")

    page.pick(CAT, packaged()[2])
    page.until(lambda: page.texts(".where") == ["Where?"] * 2)
    assert page.texts(".name") == [CAT.name, packaged()[2].name], "Their cards have their files."
    assert page.texts("#notice, .failure, #other-tabs") == []
    page.driver.refresh()
    page.settle(2)
    page.run("sessionStorage.removeItem('visionserve-tab')")
    page.driver.refresh()
    page.until(lambda: page.text("#other-tabs").startswith("This browser keeps results of other"))
    page.one("#forget-others").click()
    page.until(lambda: records(page) == 0)
    assert page.texts("#other-tabs, .card") == []
    page.pick(CAT)
    page.until(lambda: records(page) == 1)
    page.one("#clear").click()
    page.until(lambda: records(page) == 0)
    page.driver.refresh()
    assert not page.one("#results").is_displayed()


def records(page: Browser) -> int:
    """How many images the browser keeps."""
    count: int = page.driver.execute_async_script(
        """indexedDB.open("visionserve", 1).onsuccess = ({ target: { result } }) => {
             result.transaction("pictures").objectStore("pictures").count().onsuccess =
               ({ target }) => { arguments[0](target.result); result.close(); };
           }"""
    )
    return count


def pictures(page: Browser) -> int:
    """How many thumbnails or photographs are shown."""
    shown: int = page.run(
        """return [...document.querySelectorAll(".picture img")]
             .filter(({ naturalWidth }) => naturalWidth > 0).length"""
    )
    return shown


def test_a_reload_in_the_middle_asks_first(page: Browser) -> None:
    page.offline(True)
    page.pick(CAT)
    page.until(lambda: page.texts(".state"))
    assert page.run(LEAVE), "A driver answers the question itself, so that it cannot be seen."
    page.offline(False)
    page.settle()
    assert not page.run(LEAVE)
    page.console()


def test_folder(page: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "trip"
    (folder / "day 2").mkdir(parents=True)
    for path in (folder / "b.png", folder / "day 2" / "a.png"):
        path.write_bytes(CAT.read_bytes())
    (folder / "notes.txt").write_text("not an image")
    for way in ("choose", "drop"):
        if way == "choose":
            page.one("#folder-picker").send_keys(str(folder))
        else:
            page.drop(folder)
        page.settle(2)
        assert page.texts(".name") == ["trip/b.png", "trip/day 2/a.png"]
        assert page.text("#notice") == "Files left out, as they are no images: 1."
        page.one("#clear").click()


def test_an_address_is_not_loaded(page: Browser) -> None:
    shown = page.run(
        """const transfer = new DataTransfer();
           transfer.setData("text/uri-list", "https://example.org/cat.jpg");
           return ["dragover", "drop"].map((type) => {
             document.body.dispatchEvent(new DragEvent(
               type, { bubbles: true, cancelable: true, dataTransfer: transfer }));
             const sign = document.getElementById("drop");
             const { top, bottom } = sign.getBoundingClientRect();
             return sign.checkVisibility() && top >= 0 && bottom <= innerHeight;
           })"""
    )
    assert shown == [True, False], "It may be dropped, and was."
    page.until(lambda: page.text("#notice").startswith("This page loads nothing from elsewhere."))
    assert not page.one("#results").is_displayed()


def test_too_large_photographs_are_made_smaller(
    page: Browser, large: dict[str, Path], tmp_path: Path
) -> None:
    """Without being asked, and their cards say so; what the browser cannot read is told."""
    heavy, wide = tmp_path / "large.bmp", tmp_path / "wide.png"
    with Image.open(CAT) as cat:
        cat.resize((3000, 2000)).save(heavy)
        cat.convert("P").resize((6100, 4000)).save(wide)
    page.pick(heavy, wide, large["unread"])
    page.until(lambda: page.texts(".label")[::3] == ["Egyptian cat"] * 2)
    page.settle(3)
    assert page.text(".failure").startswith("This browser cannot read the image. Make it smaller")
    page.until(lambda: page.console() == ["413"])
    for note, size in zip(page.texts(".note"), ("2048 × 1365", "2048 × 1343"), strict=True):
        smaller = rf"Too large for the server, so sent smaller: {size} pixels, \d\d\d? kB\."
        assert re.fullmatch(smaller, note)
    assert page.texts(".retry") == []
    assert page.faults() == []


def test_avif_and_heic_are_sent_as_they_are_unless_a_profile_leaves_them_out(
    page: Browser, tmp_path: Path
) -> None:
    cat, phone = tmp_path / "cat.avif", tmp_path / "phone.heic"
    with Image.open(CAT) as image:
        for path, format in ((cat, "AVIF"), (phone, "HEIC")):
            path.write_bytes(encode(image.convert("RGB"), format, quality=90))
    page.pick(cat, phone)
    page.settle(2)
    assert page.texts(".label")[::3] == ["Egyptian cat"] * 2 and not page.texts(".note")
    assert "AVIF, or HEIC, up to 5.2 MB each" in page.text("#limits")
    page.one("#clear").click()
    with page.at_load(
        """document.addEventListener("readystatechange", () => {
             const facts = document.getElementById("facts");
             facts.textContent = facts.textContent.replace(', "AVIF", "HEIC"', "");
           }, { once: true })"""
    ):
        page.driver.refresh()
    page.pick(cat, phone)
    page.settle(2)
    assert page.texts(".label")[0] == "Egyptian cat"
    (note,) = page.texts(".note")
    assert note.startswith("Sent as a JPEG of 451 × 300 pixels, ")
    assert page.text(".failure").endswith("Save the image as JPEG.")
    assert page.texts(".retry") == [], "Another try would be in vain."


def test_another_model_is_chosen_while_a_jpeg_is_made(
    page: Browser, client: Client, large: dict[str, Path]
) -> None:
    page.run(HOLD)
    page.pick(large["read"])
    page.until(lambda: page.texts(".state") == ["Making a JPEG…"])
    choose_model(page, RANDOM)
    page.until(lambda: page.texts("dd")[0] == RANDOM)
    assert page.texts(".state") == ["Making a JPEG…"]
    assert page.run(LEAVE), "The image would be lost."
    page.run("go()")
    page.settle()
    assert page.texts(".failure") == []
    assert page.text(".details").startswith(f"{RANDOM} 1.0")
    choose_model(page, REAL)
    page.until(lambda: page.texts(".label")[0] == "Egyptian cat")


def test_examples(page: Browser) -> None:
    for button in page.driver.find_elements("css selector", "#examples button"):
        page.run("arguments[0].click()", button)
    page.settle(3)
    assert page.texts(".name") == ["cat.jpg", "coffee.jpg", "rocket.jpg"]
    assert page.texts(".label")[::3] == ["Egyptian cat", "espresso", "missile"]


def test_json_and_curl_of_a_card(page: Browser, client: Client) -> None:
    page.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.pick(CAT)
    page.settle()
    page.one(".copy-json").click()
    page.until(lambda: page.text(".copy-json") == "Copied.")
    assert page.run("return document.getElementById('status').textContent") == "Copied."
    page.until(lambda: page.text(".copy-json") == "Copy JSON")
    answer = client.predict(REAL, CAT.read_bytes()).json()
    assert json.loads(page.run("return window.copied")) == answer
    page.one(".copy-curl").click()
    page.until(lambda: page.run("return window.copied").startswith("curl "))
    command = page.run("return window.copied").replace("'chelsea.png'", shlex.quote(str(CAT)))
    token = client.token("inference").get("Authorization", "")
    run = subprocess.run(
        ["bash", "-c", command.replace("curl ", f"curl -s -H 'Authorization: {token}' ")],
        capture_output=True,
        check=True,
    )
    assert json.loads(run.stdout) == answer


def test_two_models_side_by_side(page: Browser, client: Client) -> None:
    images = [CAT, *packaged()[3:5]]
    page.pick(*images)
    page.settle(3)
    page.one("#compare").click()
    page.until(lambda: len(list(filter(None, page.texts(".percent")))) == 18)
    answers = [
        [client.predict(name, path.read_bytes()).json() for path in images]
        for name in (REAL, RANDOM)
    ]
    best = [[answer["predictions"][0] for answer in of] for of in answers]
    shown = page.texts(".label")
    assert shown[::3] == [entry["label"] for pair in zip(*best, strict=True) for entry in pair]
    assert page.texts(".setup")[:2] == [f"{REAL} · Whole image", f"{RANDOM} · Whole image"]
    agreed = sum(one["label"] == other["label"] for one, other in zip(*best, strict=True))
    assert len(page.texts(".disagreement")) == 3 - agreed > 0
    assert page.text("#agreement") == f"All agree on {agreed} of 3 images ({agreed / 3:.1%})."
    rows = [page.texts(f"tbody tr:nth-child({row}) :is(th, td)") for row in (1, 2)]
    for row, of, same in zip(rows, best, ("–", f"{agreed / 3:.1%}"), strict=True):
        mean = sum(entry["probability"] for entry in of) / 3
        assert row[1:4] == ["3", same, f"{mean:.1%}"]
        assert re.fullmatch(r"[\d,]+ ms", row[4])
    assert page.faults() == []

    head, *saved = saved_csv(page)
    assert head == list(columns(3))
    assert [(row[0], row[1]) for row in saved] == [
        (path.name, of[index]["label"]) for index, path in enumerate(images) for of in best
    ]
    Select(page.one("#show")).select_by_value("disagreement")
    page.until(lambda: len(page.texts(".card")) == 3 - agreed)

    page.driver.refresh()
    page.settle(3)
    assert page.texts(".label")[::3] == shown[::3], "A reload keeps the comparison."
    page.one("#compare").click()
    page.resize(768, 900)
    page.until(lambda: len(page.all(".card:first-child .column")) == 3)
    tops, under = page.run(
        """const top = (element) => Math.round(element.getBoundingClientRect().top);
           const [card] = document.querySelectorAll(".card");
           const tops = [...card.querySelectorAll(".column")].map(top);
           return [tops, tops[0] > card.querySelector(".picture").getBoundingClientRect().bottom]"""
    )
    assert len(set(tops)) == 1 and under, "Three columns side by side, below the thumbnail."
    page.resize(360, 740)
    assert page.text(".sideways").startswith("Move the table sideways")
    assert page.run("const { style } = document.querySelector('.scroll'); return !style.overflow")
    page.resize(1200, 800)
    page.all(".other .remove")[1].click()
    page.one("#language").click()
    setups = page.texts("#comparison tbody th")
    assert setups == [f"{name} · 整张图片" for name in (REAL, RANDOM)]
    assert page.texts("#comparison thead th")[1] == "已完成"
    names = [
        client.predict(name, CAT.read_bytes(), language="zh").json()["predictions"][0]["name"]
        for name in (REAL, RANDOM)
    ]
    page.until(lambda: page.texts(".label")[:6:3] == names)
    assert page.faults() == []
    page.one("#language").click()
    page.one(".other .remove").click()
    page.until(lambda: page.texts(".setup") == [])
    assert page.texts(".label")[::3] == [entry["label"] for entry in best[0]]


def test_two_versions_of_a_model_side_by_side(
    page: Browser, server: TorchServe, client: Client, newer: Path
) -> None:
    server.register(newer.name)
    try:
        show(page, client, RANDOM)
        assert page.texts("#models button") == [REAL, f"{RANDOM} 1.0", f"{RANDOM} 2.0"]
        page.pick(CAT)
        page.one("#compare").click()
        Select(page.one("#others .model")).select_by_visible_text(f"{RANDOM} 2.0")
        page.until(lambda: len(list(filter(None, page.texts(".percent")))) == 6)
        versions = ("1.0", "2.0")
        assert page.texts(".setup") == [f"{RANDOM} {version} · Whole image" for version in versions]
        answers = [
            client.predict(RANDOM, CAT.read_bytes(), version=version).json()["predictions"]
            for version in versions
        ]
        assert page.texts(".label") == [entry["label"] for of in answers for entry in of]
        assert page.texts(".percent") == [
            f"{entry['probability']:.1%}" for of in answers for entry in of
        ]
        assert page.texts(".disagreement") == ["The answers disagree."]
        head, *rows = saved_csv(page)
        assert [row[head.index("version")] for row in rows] == list(versions)
        assert page.faults() == []
    finally:
        client.unregister(RANDOM, "2.0")


def test_filter_sort_and_counts(page: Browser, notes: Path) -> None:
    images = [*packaged()[:4], CAT, notes]
    page.pick(*images)
    page.settle(6)
    names = page.texts(".name")
    page.one("#counts summary").click()
    counted = page.texts("#counts button")
    assert counted[0].split("\n")[0].startswith("Egyptian cat")
    page.one("#counts button").click()
    assert page.texts(".name") == ["chelsea.png", "chelsea.png"]
    assert page.text("#shown") == "Showing 2 of 6: Egyptian cat."
    assert page.faults() == []
    page.one("#show-all").click()
    Select(page.one("#sort")).select_by_value("sure")
    shares = [float(text.rstrip("%")) for text in page.texts(".percent")[::3]]
    assert shares == sorted(shares, reverse=True)
    assert page.texts(".name")[-1] == "notes.txt"
    Select(page.one("#sort")).select_by_value("added")
    assert page.texts(".name") == names
    Select(page.one("#show")).select_by_value("failed")
    assert page.texts(".name") == ["notes.txt"]
    Select(page.one("#show")).select_by_value("unsure")
    assert len(page.texts(".warning")) == len(page.texts(".name")) > 0
    page.one("#show-all").click()
    page.one("#name-search").send_keys("Chelsea")
    assert page.texts(".name") == ["chelsea.png"] * 2
    page.one("#name-search").clear()
    page.one("#name-search").send_keys("x", Keys.BACK_SPACE)
    page.one("#compact").click()
    heights = page.run(
        """return [...document.querySelectorAll(".card")]
                    .map((card) => card.getBoundingClientRect().top)"""
    )
    assert len(set(heights)) < 3, "Many in a row."
    assert len(page.texts(".compact .label")) == 5, "The best of each that has an answer."
    assert page.texts(".compact .actions") == []
    assert page.faults() == []
    page.console()


def test_rare_labels_are_counted_on_request(page: Browser) -> None:
    page.run(
        """const ask = fetch;
           let count = 0;
           const rename = (answer) => {
             count += 1;
             return { ...answer, predictions: answer.predictions.map((prediction, index) => (
               index ? prediction : { ...prediction, label: `label ${count}` })) };
           };
           window.fetch = async (...given) => {
             const content = JSON.parse(await (await ask(...given)).text());
             const named = Array.isArray(content) ? content.map(rename) : rename(content);
             return new Response(JSON.stringify(named));
           }"""
    )
    page.pick(*[CAT] * 15)
    page.settle(15)
    page.one("#counts summary").click()
    page.until(lambda: page.text("#more-labels") == "Show 3 more labels")
    assert len(page.texts("#counts li")) == 12
    page.one("#more-labels").click()
    assert len(page.texts("#counts li")) == 15
    assert page.driver.switch_to.active_element == page.all("#counts li button")[12]


def test_a_report_and_data_for_a_team(page: Browser, tmp_path: Path) -> None:
    """Safe against names as formulas and as HTML; and the report needs no network."""
    hostile = tmp_path / "<img src=x onerror=alert(1)>.png"
    hostile.write_bytes(CAT.read_bytes())
    page.pick(hostile, packaged()[2])
    page.settle(2)
    page.until(lambda: pictures(page) == 2)
    labels = page.texts(".label")
    first, second = json.loads(page.saved("json"))
    assert (first["path"], second["path"]) == (hostile.name, packaged()[2].name)
    assert [entry["label"] for entry in second["predictions"]] == labels[3:]
    assert page.faults() == []
    report = tmp_path / "report.html"
    report.write_text(page.saved("html"), "utf-8")
    page.driver.get(report.as_uri())
    assert page.texts("h2") == [hostile.name, packaged()[2].name]
    assert page.texts("p span:first-child") == labels
    page.until(lambda: page.run("return [...document.images].every((one) => one.naturalWidth)"))
    assert page.run("return document.images.length") == 2
    widths = page.run("return [...document.querySelectorAll('i')].map((bar) => bar.style.width)")
    assert len(set(widths)) > 1
    assert page.run("return performance.getEntriesByType('resource').length") in (0, 2)
    assert page.axe() == []


def test_a_link_shares_options_and_an_example(page: Browser) -> None:
    page.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    Select(page.one("#tta")).select_by_value("none")
    page.one("#compare").click()
    page.one("#examples button").click()
    page.settle()
    page.one("#copy-link").click()
    page.until(lambda: page.text("#copy-link") == "Copied.")
    link = page.run("return window.copied")
    page.one("#clear").click()
    page.until(lambda: records(page) == 0)
    page.run("sessionStorage.clear()")
    page.driver.get("about:blank")
    page.driver.get(link)
    page.settle()
    assert page.texts(".name") == ["cat.jpg"]
    assert page.texts(".setup") == [f"{REAL} · One crop", f"{RANDOM} · One crop"]
    assert "#" not in page.driver.current_url
    show_with = link.split("#")[0] + "#tta=nonsense&with=[&example=nothing"
    page.driver.get("about:blank")
    page.driver.get(show_with)
    assert page.text("h1") == "What is in the picture?"


def test_the_focus_stays_where_it_is(page: Browser) -> None:
    """Where cards change their order, and where the one that was retried would be hidden."""
    page.pick(packaged()[2], CAT)
    page.settle(2)
    Select(page.one("#sort")).select_by_value("unsure")
    assert page.texts(".name") == [CAT.name, packaged()[2].name]
    button = page.all(".copy-json")[1]
    page.slow(1)
    page.pick(packaged()[3])
    page.run("arguments[0].focus()", button)
    page.settle(3)
    page.until(lambda: page.text("#progress") == "3 of 3 done")
    assert page.driver.switch_to.active_element == button
    Select(page.one("#sort")).select_by_value("added")

    page.offline(True)
    page.pick(packaged()[4])
    page.until(lambda: page.text("#trouble"))
    page.one("#stop-trying").click()
    page.settle(4)
    page.offline(False)
    Select(page.one("#show")).select_by_value("failed")
    (name,) = page.texts(".name")
    page.one(".card:not([hidden]) .retry").click()
    page.until(lambda: page.text("#progress") == "4 of 4 done")
    assert page.texts(".name") == [name]
    assert page.driver.switch_to.active_element == page.one(".card:not([hidden])")
    page.console()


def test_long_runs_are_spoken_now_and_then(page: Browser) -> None:
    page.slow(0.2)  # A quick server would be done before the time that is left is told.
    page.run(LISTEN)
    begun = page.run("return performance.now()")
    page.pick(*[CAT] * 40)
    page.settle(40)
    *passing, (_, last) = page.run("return heard")
    told = page.run("return [...lines]")
    assert any(re.fullmatch(r"\d+ of 40 done About \d+ seconds left\.", line) for line in told)
    assert page.run("return railed") and not page.texts("#progress-bar")
    assert last == "40 of 40 done"
    assert passing[-1][0] - begun >= 4990 * (len(passing) - 1)
    titles = page.run("return [...titles]")
    assert any(re.fullmatch(r"\d+/40 – visionserve", title) for title in titles)
    assert page.driver.title == "visionserve"


def test_a_run_is_done_only_when_its_last_image_is(page: Browser) -> None:
    """Cards come a few per frame; those that are there can all be done before the next frame."""
    page.pick(CAT)
    page.settle()
    page.one("#clear").click()
    page.run(LISTEN)
    page.run(A_CARD_A_FRAME)
    page.pick(*[CAT] * 5)
    page.settle(5)
    heard = [text for _, text in page.run("return heard")]
    assert {text.split(" ", 1)[1] for text in heard} == {"of 5 done"}
    with page.at_load(LISTEN + A_CARD_A_FRAME):
        page.driver.refresh()
    page.settle(5)
    heard = [text for _, text in page.run("return heard")]
    assert {text.split(" ", 1)[1] for text in heard} == {"of 5 done"}


def test_print_and_forced_colours(page: Browser) -> None:
    page.pick(CAT, CAT)
    page.settle(2)
    page.cdp("Emulation.setEmulatedMedia", media="print")
    assert not page.texts("button")
    assert page.texts(".percent") and page.texts(".name")
    bar = "return getComputedStyle(document.querySelector('.bar > span'))"
    assert page.run(f"{bar}.printColorAdjust") == "exact"
    lefts = page.run(
        """return [...document.querySelectorAll(".card:first-child .bar")]
                    .map((bar) => bar.getBoundingClientRect().left)"""
    )
    assert len(lefts) == 3 and len(set(lefts)) == 1, "The bars stand in a column."
    card = "return getComputedStyle(document.querySelector('.card'))"
    assert page.run(f"{card}.breakInside") == "avoid"
    assert page.run(f"{card}.contentVisibility") == "visible"
    page.cdp(
        "Emulation.setEmulatedMedia",
        media="",
        features=[{"name": "forced-colors", "value": "active"}],
    )
    bars, track = (
        page.run(f"return getComputedStyle(document.querySelector('{part}')).backgroundColor")
        for part in (".bar > span", ".bar")
    )
    assert bars != track, "Forced colours paint both alike where nobody sees to it."
    current = page.run(
        """return [...document.querySelectorAll("#models button")]
                    .map((pill) => getComputedStyle(pill).borderTopWidth)"""
    )
    assert current[0] != current[1]
    assert page.axe() == []


def test_all_bars_stand_out(page: Browser) -> None:
    page.pick(CAT)
    page.settle()
    tracks = set()
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        track, *bars = page.run(
            """const color = (part) =>
                 getComputedStyle(part).backgroundColor.match(/\\d+/g).map(Number);
               return [document.querySelector(".bar"), ...document.querySelectorAll(".bar > span")]
                 .map(color)"""
        )
        tracks.add(tuple(track))
        assert len(bars) == 3
        assert all(contrast(bar, track) >= 3 for bar in bars), scheme
    assert len(tracks) == 2


def contrast(one: list[int], other: list[int]) -> float:
    """WCAG 2.2's contrast ratio of two sRGB colours."""

    def luminance(color: list[int]) -> float:
        shares = [value / 255 for value in color[:3]]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.fixture(scope="module")
def cached(server: TorchServe, client: Client, fixed: Path) -> Iterator[str]:
    """A third model, which caches, for the tests from here on."""
    server.register(fixed.name)
    yield "fixed"
    client.unregister("fixed")


def test_cached_images_travel_together_behind_nginx(
    chromium: Browser, server: TorchServe, proxy: Proxy, cached: str, tmp_path: Path
) -> None:
    """150 of them stay below the rate that nginx allows by default, 20 in a second.

    How many wait when a request is begun is a matter of time: 10 to 14 requests were seen.
    """
    small = tmp_path / "small.jpg"
    with Image.open(CAT) as cat:
        cat.convert("RGB").save(small, quality=70)
    proxy.start(site := site_of(server, rate="20r/s"))
    chromium.forget()
    chromium.driver.get(f"http://{site.listen}/predictions/{cached}")
    chromium.pick(*[small] * 150)
    chromium.settle(150)
    asked = chromium.run("return performance.getEntriesByType('resource').length")
    assert asked <= 40
    assert chromium.console() == []


def test_views_that_a_model_lacks_are_not_offered(
    page: Browser, client: Client, cached: str
) -> None:
    """As a transformer lacks the dense form."""
    page.driver.refresh()
    views = Select(page.one("#tta"))
    assert views.first_selected_option.text == "Whole image"
    choose_model(page, cached)
    assert views.first_selected_option.text == "Five crops"
    dense = page.one("#tta [value=dense]")
    assert not dense.is_enabled()
    page.pick(CAT)
    page.settle()
    assert page.texts(".label") == labels(client, cached, CAT, "five_crop")
    choose_model(page, REAL)
    assert dense.is_enabled()
    assert page.faults() == []


def test_busy_server_is_asked_again(page: Browser, client: Client, cached: str) -> None:
    show(page, client, cached)
    client.scale(cached, 0)
    page.pick(CAT)
    page.until(lambda: page.text("#trouble").startswith("The server is busy."))
    client.scale(cached, 1)
    page.settle()
    assert page.texts(".warning")
    page.until(lambda: set(page.console()) == {"503"})
