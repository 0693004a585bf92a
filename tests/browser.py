"""A real browser: Chromium without a screen, driven by the WebDriver protocol over plain HTTP."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.daemon import HANG

DRIVER = "chromedriver"
CHROMIUM = "chromium"

_ARGUMENTS = (
    "--headless",
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def browser_is_missing() -> bool:
    """Whether Debian's chromium or chromium-driver is not installed."""
    return not (shutil.which(CHROMIUM) and shutil.which(DRIVER))


class Browser:
    """A window of the browser; every call waits until it is done."""

    def __init__(self, port: int, profile: Path) -> None:
        self._port = port
        arguments = [*_ARGUMENTS, f"--user-data-dir={profile}"]
        options = {"args": arguments, "binary": shutil.which(CHROMIUM)}
        capabilities = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._session = f"/session/{session['sessionId']}"

    def close(self) -> None:
        self._ask("DELETE", self._session)

    def show_as(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        """Be a screen of this size, in CSS pixels, for someone who likes it light or dark."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": True}
        self._tell_browser("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._tell_browser("Emulation.setEmulatedMedia", {"features": [scheme]})

    def open(self, url: str) -> None:
        self._ask("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str) -> Any:
        """What a script returns; it is the driver's, not the page's, and no policy forbids it."""
        body = {"script": script, "args": []}
        return self._ask("POST", f"{self._session}/execute/sync", body)

    def screenshot(self) -> bytes:
        """The whole page as a PNG."""
        shown = {"captureBeyondViewport": True}
        return base64.b64decode(self._tell_browser("Page.captureScreenshot", shown)["data"])

    def complaints(self) -> list[str]:
        """What stands in the console since this was asked last: errors, violations of policies."""
        return [entry["message"] for entry in self._log("browser")]

    def requests(self) -> list[str]:
        """What was asked for over the network, or elsewhere, since this was asked last."""
        messages = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._ask("POST", f"{self._session}/se/log", {"type": kind})
        return found

    def _tell_browser(self, command: str, parameters: dict[str, Any]) -> Any:
        body = {"cmd": command, "params": parameters}
        return self._ask("POST", f"{self._session}/goog/cdp/execute", body)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=HANG)
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            value = json.loads(answer.read())["value"]
        assert answer.status == 200, value
        return value


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile, and its end."""
    command = [DRIVER, "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout is not None
            # Read up to the one line that says where it listens.
            found = (re.search(r"on port (\d+)\.", line) for line in driver.stdout)
            port = next(int(match[1]) for match in found if match)
            browser = Browser(port, profile)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()
