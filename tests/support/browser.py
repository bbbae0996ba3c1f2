"""Chromium without a window, driven over a pipe by its DevTools protocol."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser():
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One page; no address but 127.0.0.1 can be reached, and every request is recorded."""

    def __init__(self, width=1280, height=900):
        self._folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        self.downloads = Path(self._folder.name, "downloads")
        self.downloads.mkdir()
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        command = [
            *(find_browser(), "--headless=new", "--remote-debugging-pipe", "--no-sandbox"),
            *("--disable-gpu", "--no-first-run", "--disable-background-networking"),
            *("--disable-dev-shm-usage", "--no-proxy-server", "--disable-component-update"),
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
            f"--user-data-dir={self._folder.name}/profile",
            f"--window-size={width},{height}",
        ]
        redirect = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", *command],  # sh takes no descriptor above 9
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._left, self._number, self.events, self._session = b"", 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.call(
            "Browser.setDownloadBehavior",
            behavior="allow",
            downloadPath=str(self.downloads),
            eventsEnabled=True,
        )

    def resize(self, width, height):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def close(self):
        self._process.terminate()
        self._process.wait(30)
        os.close(self._out)
        os.close(self._in)
        self._folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def call(self, method, **params):
        """One command of the protocol, and its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            answer = self._receive(deadline - time.monotonic())
            if answer is not None and answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
        raise TimeoutError(f"{method}: no answer of the browser")

    def _receive(self, seconds):
        """The next message, an event or an answer; None if there is none in that time."""
        while b"\0" not in self._left:
            if not select.select([self._in], [], [], max(seconds, 0))[0]:
                return None
            data = os.read(self._in, 2**20)
            assert data, "the browser has ended"
            self._left += data
        line, _, self._left = self._left.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, address):
        """Open a page, and wait until it has taken the place of the last one."""
        self.evaluate("window.leaving = true")
        self.call("Page.navigate", url=address)
        self.wait_for("!window.leaving && document.readyState == 'complete'")

    def evaluate(self, script):
        """The value of a JavaScript expression, awaited if it is a promise."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, script, seconds=90):
        """Wait until an expression is true; returns its value."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            value = self.evaluate(script)
            if value:
                return value
            time.sleep(0.1)
        raise TimeoutError(f"{script}: not within {seconds} s")

    def choose_file(self, selector, path):
        """Give a file to an <input type=file>, as choosing or dropping it does."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({selector!r})")
        handle = found["result"]["objectId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], objectId=handle)

    def click(self, selector, across=0.5, down=0.5):
        """Click inside an element, at these shares of its width and height."""
        self.evaluate(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = self.evaluate(
            f"(r => [r.x, r.y, r.width, r.height])(document.querySelector({selector!r})"
            ".getBoundingClientRect())"
        )
        x, y = box[0] + across * box[2], box[1] + down * box[3]
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button="left",
                clickCount=1,
            )

    def download(self, selector, name, seconds=60):
        """Click an element, and wait for the file that it gives."""
        file = self.downloads / name
        file.unlink(missing_ok=True)
        self.click(selector)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._receive(0.1)
            if file.is_file() and not list(self.downloads.glob("*.crdownload")):
                return file
        raise TimeoutError(f"{name}: not downloaded; {os.listdir(self.downloads)}")

    def requested(self):
        """Addresses of all requests so far, without data: and blob:."""
        urls = [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def screenshot(self, file, whole=True):
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(file).write_bytes(base64.b64decode(shot["data"]))
