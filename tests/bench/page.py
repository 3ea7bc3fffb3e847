"""Measure the web page in a real browser against `visionserve classify`; `make bench-page`."""

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.bench.results import Bar
from visionserve_tools import paths, photos
from visionserve_tools.archive.recipe import Recipe, build
from visionserve_tools.arguments import Parser, whole
from visionserve_tools.batch import server_engine
from visionserve_tools.report.circumstances import processor
from visionserve_tools.server.nginx import Proxy, Site, Upstream
from visionserve_tools.server.ports import free_port, free_ports
from visionserve_tools.server.torchserve import TorchServe

MODEL = "efficientnet_lite0"
FEW, MANY = 500, 2000
BEHIND = 300
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
BARE = "data:text/html,<input type=file multiple id=picker>"
# Frames count from the `change` event on; before it, the browser itself makes the list of files.
WATCH = """
window.listed = window.longest = 0;
let last = performance.now();
document.addEventListener("change", () => {
  window.listed = performance.now() - last;
  window.longest = 0;
  last = performance.now();
}, { capture: true });
const frame = (now) => {
  window.longest = Math.max(window.longest, now - last);
  last = Math.max(last, now);
  requestAnimationFrame(frame);
};
requestAnimationFrame(frame);
"""
DONE = "return document.querySelectorAll('.card[aria-busy=false]').length"
REFUSED = """return performance.getEntriesByType("resource")
    .filter(({ responseStatus }) => responseStatus === 429).length"""


class Tab:
    """The page in a headless Chromium."""

    def __init__(self, url: str) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for flag in FLAGS:
            options.add_argument(flag)
        service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
        self._driver = webdriver.Chrome(options=options, service=service)
        self._driver.set_script_timeout(600)
        self._browser = psutil.Process(service.process.pid)
        self.load(url)

    def load(self, url: str) -> None:
        """Open an address."""
        self._driver.get(url)
        self._driver.execute_script(WATCH)

    def close(self) -> None:
        """End the browser."""
        self._driver.quit()

    def choose(self, images: Sequence[Path]) -> float:
        """Choose images, and return the milliseconds that the browser stops to make their list."""
        picker = self._driver.find_element(By.ID, "picker")
        picker.send_keys("\n".join(map(str, images)))
        return self._measured("listed")

    def classify(self, images: Sequence[Path]) -> tuple[float, float, float]:
        """Choose images and wait for all answers.

        Returns:
            The seconds that all of it took, the milliseconds that `choose` returns, and the longest
            frame after that in milliseconds.
        """
        started = time.perf_counter()
        listed = self.choose(images)
        while self._driver.execute_script(DONE) < len(images):
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        return seconds, listed, self._measured("longest")

    def refused(self) -> int:
        """Return how many requests since the page was loaded nginx has refused as too many."""
        return int(self._driver.execute_script(REFUSED))

    def _measured(self, name: str) -> float:
        return float(self._driver.execute_script(f"return window.{name}"))

    def clear(self) -> None:
        """Press Clear."""
        self._driver.find_element(By.ID, "clear").click()

    def megabytes(self) -> float:
        """Return the tab's proportional set size after a garbage collection, in MB."""
        time.sleep(2)
        self._driver.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
        time.sleep(2)
        return float(self._process().memory_full_info().pss / 1e6)

    def _process(self) -> psutil.Process:
        """Return the tab's process: the renderer that is busiest while the tab runs a script."""
        found = [
            process
            for process in self._browser.children(recursive=True)
            if "--type=renderer" in process.cmdline()
        ]
        before = [process.cpu_times().user for process in found]
        self._driver.execute_script("for (const end = Date.now() + 1000; Date.now() < end; );")
        spent = [
            process.cpu_times().user - earlier
            for process, earlier in zip(found, before, strict=True)
        ]
        return found[spent.index(max(spent))]


def copies(folder: Path, count: int) -> list[Path]:
    """Fill a new folder with a number of photographs, by repeating the samples."""
    sources = photos.folder(paths.PHOTOGRAPHS) if paths.PHOTOGRAPHS.is_dir() else photos.packaged()
    folder.mkdir()
    made = []
    for index in range(count):
        source = sources[index % len(sources)]
        made.append(folder / f"{index:04}{source.suffix}")
        made[-1].hardlink_to(source) if same_disk(source, folder) else shutil.copy(source, made[-1])
    return made


def same_disk(one: Path, other: Path) -> bool:
    """Tell whether a file can be linked instead of copied."""
    return one.stat().st_dev == other.stat().st_dev


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure(server: TorchServe, images: Sequence[Path], rounds: int) -> list[Bar]:
    """Compare the page with `classify` in rounds, and then give the page all images at once."""
    client = server.client
    few = images[:FEW]

    def classify() -> None:
        for _ in server_engine.classify(client, MODEL, {}, few, 4, 8):
            pass

    classify()
    page = f"{client.inference}/predictions/{MODEL}"
    tab = Tab(BARE)
    try:
        bare = tab.choose(images)
        tab.load(page)
        ours, theirs = [], []
        for number in range(rounds):
            theirs.append(timed(classify))
            ours.append(tab.classify(few)[0])
            tab.clear()
            print(f"round {number + 1}: page {ours[-1]:.1f} s, classify {theirs[-1]:.1f} s")
        seconds, listed, longest = tab.classify(images)
        print(f"{len(images)} images: {seconds:.1f} s; before, the browser stops for their list,")
        print(f"{listed:.0f} ms here, {bare:.0f} ms in a page that has nothing but the field")
        full = tab.megabytes()
        tab.clear()
        cleared = tab.megabytes()
        tab.load(page)
        start = tab.megabytes()
    finally:
        tab.close()
    ratio = statistics.median(ours) / statistics.median(theirs)
    return [
        Bar(f"{FEW} cached images, page to classify", ratio, 4, at_least=False),
        Bar(f"longest frame of {len(images)} images", longest, 200, "ms", at_least=False),
        Bar(f"the tab with {len(images)} images", full, 350, "MB", at_least=False),
        Bar(
            f"the tab after Clear, to a page loaded anew in it, {start:.0f} MB",
            cleared / start,
            1.3,
            at_least=False,
        ),
    ]


def measure_behind(server: TorchServe, images: Sequence[Path], folder: Path) -> list[Bar]:
    """Give the page images behind nginx at the rate that it allows by default: new, then cached."""
    proxy = Proxy(folder / "nginx")
    site = Site(
        (Upstream(server.client.inference, server.state / "key_file.json"),),
        listen=f"127.0.0.1:{free_port()}",
        probes=f"127.0.0.1:{free_port()}",
        model=MODEL,
    )
    proxy.start(site)
    tab = Tab(BARE)
    try:
        tab.load(f"http://{site.listen}/")
        fresh = tab.classify(images)[0]
        print(f"{len(images)} new images behind nginx: {fresh:.1f} s, {tab.refused()} refused")
        tab.load(f"http://{site.listen}/")
        tab.clear()
        seconds = tab.classify(images)[0]
        refused = tab.refused()
    finally:
        tab.close()
        proxy.stop()
    return [
        Bar(f"{len(images)} cached images behind nginx", seconds, 4, "s", at_least=False),
        Bar("its requests that nginx refused", refused, 0, at_least=False),
    ]


def main() -> int:
    """Run the command."""
    parser = Parser(prog="python -m tests.bench.page", description=__doc__)
    parser.add_argument("--rounds", type=whole(1, 1000), default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = paths.CONFIG / "server" / "model-config.yaml"
        build(Recipe(MODEL, MODEL, "1.0", config), folder)
        server = TorchServe("local", folder / "server", folder, free_ports())
        server.start([f"{MODEL}={MODEL}.mar"])
        try:
            images = copies(folder / "images", MANY)
            bars = measure(server, images, args.rounds)
        finally:
            server.stop()
        server = TorchServe("server", folder / "behind", folder, free_ports())
        server.start([f"{MODEL}={MODEL}.mar"])
        try:
            bars += measure_behind(server, images[:BEHIND], folder)
        finally:
            server.stop()
    print(processor())
    for bar in bars:
        print(
            f"{bar.claim}: {bar.value:.1f} {bar.unit}, at most {bar.bound:g}, "
            f"{'reached' if bar.reached else 'missed'}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
