"""Headless Chromium for tests, driven through its debugging pipe: one process, one page, every request it makes.

Source: Chrome DevTools Protocol, https://chromedevtools.github.io/devtools-protocol/ (JSON messages that end in NUL,
on the file descriptors 3 and 4 with `--remote-debugging-pipe`).
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)


class Page:
    """A page of a running browser; `requests` are the URLs it asked for, `log` what its console said."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers, self._buffer, self._count = commands, answers, b"", 0
        self._session: str | None = None
        self.requests: list[str] = []
        self.log: list[str] = []
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, *, seconds: float = 60.0, **parameters: Any) -> dict[str, Any]:
        """Return the result of one command of the protocol; AssertionError where it fails or takes too long."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + seconds
        while True:
            answer = self._next(deadline, method)
            if answer.get("id") == message["id"]:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    def open(self, url: str, *, seconds: float = 60.0) -> None:
        """Load `url` and wait for its load event."""
        self._loaded = False
        found = self.call("Page.navigate", url=url)
        assert "errorText" not in found, found["errorText"]
        deadline = time.monotonic() + seconds
        while not self._loaded:
            self._next(deadline, url)

    def evaluate(self, expression: str, *, seconds: float = 60.0) -> Any:
        """Return the value of a JavaScript expression, awaited where it is a promise."""
        options = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        found = self.call("Runtime.evaluate", seconds=seconds, **options)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def size(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        """Show the page `width` CSS pixels wide, as a phone or a desktop does, in light or dark."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, file: Path) -> None:
        """Write the whole page as a PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))

    def _next(self, deadline: float, what: str) -> dict[str, Any]:
        """Return the next message, having taken note of what it reports."""
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self._answers], [], [], left)[0], f"{what}: no answer in time"
            received = os.read(self._answers, 1 << 16)
            assert received, f"{what}: the browser has ended"
            self._buffer += received
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Runtime.consoleAPICalled":
                self.log.append(" ".join(str(a.get("value", a.get("description"))) for a in parameters["args"]))
            case "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                self.log.append(str(details.get("exception", {}).get("description", details["text"])))
            case "Page.loadEventFired":
                self._loaded = True
        return message


@contextmanager
def page() -> Iterator[Page]:
    """Yield a page of a fresh browser with a profile of its own; the test is skipped where there is no Chromium."""
    browser = next(filter(None, map(shutil.which, _NAMES)), None)
    if browser is None:
        pytest.skip("needs chromium, which is not installed")
    command_in, command_out = os.pipe()
    answer_in, answer_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The browser reads from descriptor 3 and writes to 4: the shell puts the pipes there.
        place = f'exec "$@" 3<&{command_in} 4>&{answer_out}'
        process = subprocess.Popen(
            ["/bin/bash", "-c", place, "bash", browser, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(command_in, answer_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_in)
        os.close(answer_out)
        try:
            yield Page(command_out, answer_in)
        finally:
            os.close(command_out)  # the browser ends with its pipe
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(answer_in)
