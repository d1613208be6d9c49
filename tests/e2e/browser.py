"""Chromium as a reviewer uses it: keys, clicks, the look of pages and their accessibility."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import axe_playwright_python
import pytest
from selenium import webdriver
from selenium.common.exceptions import TimeoutException, WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

PHONE, DESKTOP = (390, 844), (1280, 900)
LIGHT, DARK = "light", "dark"

_WAIT_S = 30
_AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")
_SETTLED = """
    const field = document.querySelector("[autofocus]");
    return document.readyState === "complete" && (!field || document.activeElement === field);
"""
_LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


class Browser:
    """One window with its own profile."""

    def __init__(self, driver: webdriver.Chrome, base_url: str) -> None:
        self._driver = driver
        self._base_url = base_url

    def open(self, path: str) -> None:
        """Opens a page of the server."""
        self._driver.get(f"{self._base_url}{path}")

    @property
    def path(self) -> str:
        """The current path with its query."""
        return str(self._driver.current_url).removeprefix(self._base_url)

    @property
    def text(self) -> str:
        """The visible text of the page."""
        return self.one("body").text

    def one(self, selector: str) -> WebElement:
        """Returns the first element that matches a CSS selector."""
        return self._driver.find_element(By.CSS_SELECTOR, selector)

    def some(self, selector: str) -> list[WebElement]:
        """Returns all elements that match a CSS selector."""
        return self._driver.find_elements(By.CSS_SELECTOR, selector)

    def press(self, keys: str) -> None:
        """Types into the focused element.

        A page focuses its `autofocus` field when it is first drawn, after loading; keys pressed
        before that are lost.
        """
        self._wait(self._has_settled, "the page did not focus its field", _WAIT_S)
        webdriver.ActionChains(self._driver).send_keys(keys).perform()

    def _has_settled(self) -> bool:
        return bool(self._driver.execute_script(_SETTLED))

    def focused(self) -> WebElement:
        """The focused element."""
        return self._driver.switch_to.active_element

    def click(self, words: str) -> None:
        """Clicks the first link or button with that text."""
        escaped = json.dumps(words)
        xpath = f"//main//*[self::a or self::button][contains(normalize-space(.), {escaped})]"
        self._driver.find_element(By.XPATH, xpath).click()

    def fill(self, selector: str, text: str) -> None:
        """Replaces what a field holds."""
        field = self.one(selector)
        field.clear()
        field.send_keys(text)

    def wait_for(self, words: str, within_s: float = _WAIT_S) -> None:
        """Waits until the text is visible on the page."""
        self._wait(lambda: words in self.text, f"{words!r} did not appear", within_s)

    def wait_for_path(self, path: str) -> None:
        """Waits until the path begins with this."""
        self._wait(lambda: self.path.startswith(path), f"did not come to {path}", _WAIT_S)

    def _wait(self, condition: Callable[[], bool], message: str, within_s: float) -> None:
        # A page or a part of it may be replaced while it is read.
        wait = WebDriverWait(self._driver, within_s, ignored_exceptions=[WebDriverException])
        try:
            wait.until(lambda _: condition())
        except TimeoutException:
            pytest.fail(f"{message}; it is at {self.path}:\n{self.text}")

    def look(self, size: tuple[int, int], scheme: str) -> None:
        """Sets the screen size, in CSS pixels, and the preferred colour scheme."""
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
        mobile = {"mobile": size == PHONE}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics | mobile)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def overflow(self) -> int:
        """Returns by how many pixels the page is wider than the screen."""
        script = "return document.documentElement.scrollWidth - window.innerWidth"
        return int(self._driver.execute_script(script))

    def violations(self) -> list[str]:
        """Returns axe-core's accessibility violations of levels A and AA."""
        self._driver.execute_script(_AXE)
        run = "const done = arguments[1]; axe.run({runOnly: arguments[0]}).then(done)"
        results = self._driver.execute_async_script(run, _LEVELS)
        return [
            f"{rule['id']}: {rule['help']}: {[node['html'] for node in rule['nodes']]}"
            for rule in results["violations"]
        ]

    def complaints(self) -> list[str]:
        """Returns warnings and errors in the browser's console since the last call."""
        return [str(entry["message"]) for entry in self._driver.get_log("browser")]

    def picture(self, path: Path) -> None:
        """Saves a screenshot."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._driver.save_screenshot(str(path))

    def forget(self) -> None:
        """Deletes the cookies."""
        self._driver.delete_all_cookies()


@contextmanager
def browsing(base_url: str, profile: Path) -> Iterator[Browser]:
    """Opens a browser for one server. Skips the test without Chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = _program("chromium")
    for option in (*_OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(_program("chromedriver")))
    try:
        yield Browser(driver, base_url)
    finally:
        driver.quit()


def _program(name: str) -> str:
    path = which(name)
    if path is None:
        pytest.skip(
            f"{name} is not installed; as root `make test` installs it from Debian's packages"
        )
    return path
