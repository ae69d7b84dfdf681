"""A real browser, spoken to over a pipe (the DevTools protocol), for what only a browser can tell of a page."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT = 60.0  # seconds for one answer; a start on a busy machine takes ten


def find() -> str | None:
    """The program, or None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab."""

    def __init__(self, answers: int, orders: int) -> None:
        self._answers, self._orders = answers, orders
        self._read, self._number, self._session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Send one order and wait for its answer; what else the browser tells meanwhile is passed over."""
        self._number += 1
        order = {"id": self._number, "method": method, "params": arguments}
        order |= {"sessionId": self._session} if self._session else {}
        os.write(self._orders, json.dumps(order).encode() + b"\0")
        end = time.monotonic() + TIMEOUT
        while True:
            answer = self._next(end)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def open(self, page: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Show a page at a width and in a colour scheme, and wait until all of it is there."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.as_uri())
        end = time.monotonic() + TIMEOUT
        loaded = "performance.timing.loadEventEnd > 0 && location.protocol === 'file:'"
        while not self.run(loaded):
            assert time.monotonic() < end, f"{page} did not load"
            time.sleep(0.05)

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, whole: bool = False) -> bytes:
        """What is seen, as PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._answers, 1 << 20)
            assert part, "the browser has ended"
            self._read += part
        answer, _, self._read = self._read.partition(b"\0")
        return json.loads(answer)


@contextmanager
def started(program: str, home: Path) -> Iterator[Browser]:
    """A browser with a home of its own, ended with the block whatever happens."""
    (orders_out, orders_in), (answers_out, answers_in) = os.pipe(), os.pipe()
    words = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars"
    command = f'exec "$0" {words} --remote-debugging-pipe --user-data-dir="$1" 3<&{orders_out} 4>&{answers_in}'
    process = subprocess.Popen(
        ["bash", "-c", command, program, str(home)],
        pass_fds=(orders_out, answers_in),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(orders_out)
    os.close(answers_in)
    try:
        yield Browser(answers_out, orders_in)
    finally:
        os.killpg(process.pid, 9)
        process.wait(30)
        os.close(orders_in)
        os.close(answers_out)
