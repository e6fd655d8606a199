"""A headless Chromium, led through the pipe of its DevTools protocol."""

import json
import os
import select
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATH = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking",
    "--disable-component-update", "--hide-scrollbars",
)  # fmt: skip
PATIENCE = 120.0


class Browser:
    """One tab. Whatever the page logs, throws or fails to load is in `complaints`."""

    def __init__(self, folder):
        (read, self.write), (self.read, write) = os.pipe(), os.pipe()
        # The protocol's are descriptors 3 and 4.
        shell = f'exec "$@" 3<&{read} 4>&{write}'
        command = ["bash", "-c", shell, "-", PATH, *FLAGS, f"--user-data-dir={folder}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, pass_fds=(read, write), **quiet)
        os.close(read)
        os.close(write)
        self.buffer, self.count, self.session, self.complaints = b"", 0, None, []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda found: found.get("id") == self.count)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path, width, dark=False):
        """Show a file on a screen so wide."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self("Emulation.setDeviceMetricsOverride", **size)
        self("Emulation.setTouchEmulationEnabled", enabled=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self("Page.navigate", url=path.resolve().as_uri())
        self._until(lambda found: found.get("method") == "Page.loadEventFired")

    def value(self, expression):
        """What a JavaScript expression is, or what it promises, as JSON."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def point(self, x, y):
        """Move the pointer to a place in the window."""
        self("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def tap(self, x, y):
        """Touch a place in the window."""
        self("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key):
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key)

    def close(self):
        self.session = None
        try:
            self("Browser.close")
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.write)
            os.close(self.read)

    def _until(self, wanted):
        end = time.monotonic() + PATIENCE
        while True:
            *messages, self.buffer = self.buffer.split(b"\0")
            for place, text in enumerate(messages):
                found = json.loads(text)
                self._note(found)
                if wanted(found):
                    self.buffer = b"\0".join([*messages[place + 1 :], self.buffer])
                    return found
            ready, _, _ = select.select([self.read], [], [], max(end - time.monotonic(), 0.0))
            part = os.read(self.read, 1 << 16) if ready else b""
            assert part, "the browser does not answer"
            self.buffer += part

    def _note(self, message):
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        if message.get("method") in (*kinds, "Network.loadingFailed"):
            self.complaints.append(message["params"])
        request = message.get("params", {}).get("request", {})
        if not request.get("url", "file:").startswith(("file:", "data:")):
            self.complaints.append(request["url"])
