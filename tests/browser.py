"""A headless Chromium for tests of pages, driven over a pipe by the DevTools protocol.

with Browser(tmp_path) as browser:
    browser.open(url)
    browser.wait("document.title === 'x'")
"""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    # tests run as root in containers; the only pages are ours
    "--no-sandbox",
)


class Browser:
    """`requests`: URLs that the page asked for; `problems`: its errors, and what the console says
    are some."""

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None
        self.requests: list[str] = []
        self.problems: list[str] = []
        from_us, self._write = os.pipe()
        self._read, to_us = os.pipe()

        def place() -> None:
            # it speaks over the descriptors 3 and 4; through others, lest one overwrite the other
            theirs = [os.dup2(fd, at, inheritable=False) for fd, at in ((from_us, 98), (to_us, 99))]
            os.dup2(theirs[0], 3)
            os.dup2(theirs[1], 4)

        self._process = subprocess.Popen(
            [CHROMIUM, *_OPTIONS, f"--user-data-dir={folder}"],
            preexec_fn=place,
            pass_fds=(3, 4, from_us, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(folder)},
        )
        os.close(from_us)
        os.close(to_us)
        self._rest = b""
        self._calls = 0
        self._session: str | None = None
        self._context: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._write)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def open(self, url: str, *, width: int = 1100, height: int = 900, dark: bool = False) -> None:
        """In a new tab, which knows nothing of the one before it; that one is closed."""
        self._session = None
        if self._context is not None:
            self._call("Target.disposeBrowserContext", browserContextId=self._context)
        context = self._call("Target.createBrowserContext")["browserContextId"]
        self._context = context
        self.problems.clear()
        self.requests.clear()
        target = self._call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self.size(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self.go(url)

    def go(self, url: str) -> None:
        """In the same tab, also to where it is; it is another document afterwards."""
        self._call("Page.navigate", url=url)

    def size(self, width: int, height: int) -> None:
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def value(self, expression: str) -> Any:
        """Of JavaScript; promises are awaited. Raises AssertionError for what it throws."""
        answer = self._call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = 30) -> Any:
        """The value of an expression as soon as it is true of the page."""
        return self.value(
            f"""new Promise((resolve, reject) => {{
                const end = performance.now() + {seconds * 1000};
                const look = () => {{
                    let value = false;
                    try {{ value = {expression}; }} catch {{ /* not there yet */ }}
                    if (value) resolve(value);
                    else if (performance.now() > end) {{
                        const shown = document.body.innerText.slice(0, 1500);
                        reject(new Error("never true; the page shows: " + shown));
                    }}
                    else setTimeout(look, 20);
                }};
                look();
            }})"""
        )

    def text(self, selector: str) -> str:
        return self.value(f"document.querySelector({json.dumps(selector)}).innerText")

    def type(self, selector: str, text: str) -> None:
        self.value(f"document.querySelector({json.dumps(selector)}).focus()")
        self._call("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False) -> None:
        text = {"Enter": "\r"}.get(key)
        for kind in ("keyDown", "keyUp"):
            given = {"text": text} if text and kind == "keyDown" else {}
            self._call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode={"Enter": 13}.get(key, 0),
                modifiers=8 if shift else 0,
                **given,
            )

    def click(self, selector: str) -> None:
        self.value(f"document.querySelector({json.dumps(selector)}).click()")

    def screenshot(self, file: Path, *, whole: bool = True) -> None:
        shot = self._call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._calls += 1
        call: dict[str, Any] = {"id": self._calls, "method": method, "params": params}
        if self._session is not None:
            call["sessionId"] = self._session
        os.write(self._write, json.dumps(call).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self._calls:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._note(message)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._read, 1 << 20)
            assert more, "the browser ended"
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])
