"""A headless Chromium that looks at the page as a person does."""

import base64
import importlib.resources
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

AXE = (importlib.resources.files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
WAIT = 40
DESK, PHONE = (1200, 800), (360, 740)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--lang=en-US"),
    "--host-resolver-rules=MAP elsewhere.test 127.0.0.1",
    # A page that is loaded keeps its process, and none is begun for the next one, which takes half
    # of the processor time of a page.
    "--disable-features=SpareRendererForSitePerProcess,ProactivelySwapBrowsingInstance,BackForwardCache",
)


class Browser:
    """Chromium with one tab.

    Args:
        folder: an empty folder for its profile and downloads.
    """

    def __init__(self, folder: Path) -> None:
        chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if not chromium or not driver:
            pytest.fail("The page's tests need Chromium: apt-get install chromium chromium-driver")
        self.downloads = folder / "downloads"
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
            options.add_argument(flag)
        options.add_experimental_option(
            "prefs", {"download.default_directory": str(self.downloads)}
        )
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(executable_path=driver)
        self.driver = webdriver.Chrome(options=options, service=service)
        self.cdp("Network.enable")

    def close(self) -> None:
        self.driver.quit()

    def cdp(self, command: str, **parameters: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.driver.execute_cdp_cmd(command, parameters)
        return answer

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    @contextmanager
    def at_load(self, script: str) -> Iterator[None]:
        """Run a script before those of each page that is loaded."""
        added = self.cdp("Page.addScriptToEvaluateOnNewDocument", source=script)
        yield
        self.cdp("Page.removeScriptToEvaluateOnNewDocument", **added)

    def forget(self) -> None:
        """Become a browser that has seen nothing: no storage, no log, a desk's light screen."""
        self.driver.get("about:blank")
        self.offline(False)
        self.cdp("Storage.clearDataForOrigin", origin="*", storageTypes="all")
        self.cdp("Emulation.setUserAgentOverride", userAgent="", acceptLanguage="en-US")
        self.resize(*DESK)
        self.cdp("Emulation.setEmulatedMedia", media="")
        self.prefer("light")
        self.console()

    def send(self, headers: dict[str, str]) -> None:
        """Add headers to every request from now on."""
        self.cdp("Network.setExtraHTTPHeaders", headers=headers)

    def resize(self, width: int, height: int) -> None:
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )

    def prefer(self, scheme: str) -> None:
        """Set the person's colour scheme; motion stays reduced, so that colours are final."""
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        self.cdp(
            "Emulation.setEmulatedMedia",
            features=[{"name": name, "value": value} for name, value in features.items()],
        )

    def offline(self, is_offline: bool) -> None:
        self._network(offline=is_offline, latency=0)

    def slow(self, seconds: float) -> None:
        """Hold back each answer from now on."""
        self._network(offline=False, latency=1000 * seconds)

    def _network(self, **conditions: float) -> None:
        unlimited = {"downloadThroughput": -1, "uploadThroughput": -1}
        self.cdp("Network.emulateNetworkConditions", **conditions, **unlimited)

    def console(self) -> list[str]:
        """Take what the console has said since the last call; a refusal as its HTTP status."""
        entries = [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]
        statuses = [re.search(r"responded with a status of (\d+)", entry) for entry in entries]
        return [
            found[1] if found else entry for found, entry in zip(statuses, entries, strict=True)
        ]

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """The visible texts of the elements, in order."""
        found: list[str] = self.run(
            """return [...document.querySelectorAll(arguments[0])]
                        .filter((element) => element.checkVisibility())
                        .map((element) => (element.innerText || element.textContent).trim())""",
            selector,
        )
        return found

    def text(self, selector: str) -> str:
        return "".join(self.texts(selector))

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition. It is asked ever more seldom, as each time costs 5 ms."""
        deadline, pause = time.monotonic() + WAIT, 0.02
        while True:
            with suppress(NoSuchElementException):
                if condition():
                    return
            if time.monotonic() > deadline:
                pytest.fail(f"The page is not as it should be after {WAIT} s.")
            time.sleep(pause)
            pause = min(1.5 * pause, 0.2)

    def settle(self, count: int = 1) -> None:
        """Wait until the page shows so many images, each with an answer or an error.

        Cards out of sight are not laid out until they come near: all are checked, seen or not.
        """
        self.until(
            lambda: (
                self.run("return document.querySelectorAll('.card[aria-busy=false]').length")
                == count
            )
        )

    def pick(self, *paths: Path) -> None:
        """Choose files in the file dialog."""
        self.one("#picker").send_keys("\n".join(map(str, paths)))

    def saved(self, kind: str) -> str:
        """Download the results, and return the file's text.

        Chromium reserves a download's name with an empty file, and moves the whole one over it.
        """
        file = self.downloads / f"classifications.{kind}"
        file.unlink(missing_ok=True)
        self.one("#download summary").click()
        self.one(f"#download [value={kind}]").click()
        self.until(lambda: file.exists() and file.stat().st_size)
        return file.read_bytes().decode("utf-8-sig")

    def transfer(self, path: Path, event: str) -> None:
        """Drop or paste a file."""
        self.run(
            """
            const [data, name, event] = arguments;
            const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt());
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name));
            const place = document.getElementById("sources");
            const init = { bubbles: true, cancelable: true };
            if (event === "paste") {
              place.dispatchEvent(new ClipboardEvent(event, { ...init, clipboardData: transfer }));
            } else for (const type of ["dragover", event]) {
              place.dispatchEvent(new DragEvent(type, { ...init, dataTransfer: transfer }));
            }
            """,
            base64.b64encode(path.read_bytes()).decode(),
            path.name,
            event,
        )

    def drop(self, path: Path) -> None:
        """Drop a file or folder of the disk."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for event in ("dragEnter", "dragOver", "drop"):
            self.cdp("Input.dispatchDragEvent", type=event, x=600, y=300, data=data)

    def tab(self) -> WebElement:
        """Press the tab key and return what has the focus."""
        self.driver.switch_to.active_element.send_keys(Keys.TAB)
        return self.driver.switch_to.active_element

    def faults(self) -> list[str]:
        """What axe-core finds on a dark phone and a light desk; whether the phone's is too wide."""
        self.resize(*PHONE)
        self.prefer("dark")
        faults = [f"dark phone: {fault}" for fault in self.axe()]
        overflow = self.run(
            """const { scrollWidth, clientWidth } = document.documentElement;
               return scrollWidth - clientWidth"""
        )
        self.resize(*DESK)
        self.prefer("light")
        faults += [f"light desk: {fault}" for fault in self.axe()]
        return [*faults, f"A phone scrolls {overflow} pixels sideways."] if overflow else faults

    def axe(self) -> list[str]:
        """What axe-core finds on the page as it is."""
        if not self.run("return Boolean(window.axe)"):
            self.run(AXE)
        found = self.driver.execute_async_script(
            """axe.run({ resultTypes: ["violations"] })
                  .then(({ violations }) => arguments[0](violations))"""
        )
        return [f"{fault['id']}: {node['html']}" for fault in found for node in fault["nodes"]]
