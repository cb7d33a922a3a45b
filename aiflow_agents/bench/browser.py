"""A real Chromium, led over WebDriver: a page's load time, its console, its layout. Used by `aiflow bench report` and by tests.

Needs `chromium` and `chromedriver` (Debian: `apt-get install chromium chromium-driver`), and nothing else: WebDriver is JSON over HTTP.
Protocol: https://www.w3.org/TR/webdriver2/, with Chromium's own commands below `goog`.
"""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from aiflow_agents.errors import UserError

FLAGS = ("--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars")
BROWSERS, DRIVERS = ("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)
START_S, COMMAND_S = 60.0, 180.0


def missing() -> str | None:
    """Why no browser can be led here, or None."""
    for kind, names in (("browser", BROWSERS), ("driver", DRIVERS)):
        if not any(map(shutil.which, names)):
            return f"there is no {kind} ({' or '.join(names)}); Debian: apt-get install chromium chromium-driver"
    return None


class Browser:
    """A headless Chromium with a profile of its own. Use as a context manager. Raises UserError where there is none, or it does not start."""

    def __init__(self) -> None:
        if (why := missing()) is not None:
            raise UserError(why)
        self._profile = tempfile.TemporaryDirectory(prefix="aiflow-browser-", ignore_cleanup_errors=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        driver = next(path for name in DRIVERS if (path := shutil.which(name)))
        self._driver = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=COMMAND_S, trust_env=False)
        self._session = ""
        try:
            self._session = self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> str:
        browser = next(path for name in BROWSERS if (path := shutil.which(name)))
        sandbox = ("--no-sandbox",) if hasattr(os, "geteuid") and os.geteuid() == 0 else ()  # Chromium refuses to run as root with one
        options = {"binary": browser, "args": [*FLAGS, *sandbox, f"--user-data-dir={self._profile.name}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        deadline = time.monotonic() + START_S
        while True:
            try:
                self._http.get("/status")
                break
            except httpx.TransportError as error:
                if self._driver.poll() is not None or time.monotonic() > deadline:
                    raise UserError(f"chromedriver does not start: {error}") from None
                time.sleep(0.05)
        return self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        where = f"/session/{self._session}{path}" if self._session else path
        reply = self._http.request(method, where, json={} if body is None and method == "POST" else body)
        value = reply.json()["value"]
        if reply.is_error:
            raise RuntimeError(f"{value['error']}: {value['message'].splitlines()[0]}")
        return value

    def open(self, page: Path) -> None:
        """Load a file, and wait until its `load` event is over."""
        self._ask("POST", "/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a script `return`s in the page."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, seconds: float = 30.0) -> Any:
        """Run a script until what it returns is true. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(script)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds:g} s: {script}")
            time.sleep(0.02)
        return value

    def window(self, width: int, height: int = 900) -> None:
        """The size of the page itself, also below the least that a window can have."""
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def scheme(self, name: str) -> None:
        """What the system is said to prefer: light or dark."""
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def press(self, key: str) -> None:
        """A key, where the focus is: a letter, or WebDriver's code of a special one."""
        keys = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": keys}]})

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def console(self) -> list[str]:
        """What the console has got since the last time, errors and warnings only."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"}) if entry["level"] in ("SEVERE", "WARNING")]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

    def close(self) -> None:
        if self._session:
            try:
                self._ask("DELETE", "")
            except (httpx.HTTPError, RuntimeError, ValueError):  # it has gone already
                pass
        self._http.close()
        self._driver.terminate()
        self._driver.wait(10)
        self._profile.cleanup()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
