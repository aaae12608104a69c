"""A headless Chromium, driven by its DevTools protocol over two pipes: no library is needed."""

import base64
import fcntl
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

FLAGS = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-extensions "
FLAGS += "--disable-background-networking --disable-component-update --hide-scrollbars "
FLAGS += "--remote-debugging-pipe"
PATIENCE = 60  # seconds for an answer, or for the page to finish its pictures


def pipe() -> list[int]:
    """Both ends of a pipe, under numbers that leave 3 and 4 free."""
    low = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in low]
    for end in low:
        os.close(end)
    return high


class Chromium:
    """A browser with one page: what it is told, and what it complains of or asks the network for.

    errors: uncaught errors, `console.error`, refusals by the page's own policy. requests: addresses
    other than the page's own and those that hold their data.
    """

    def __init__(self, program: str, profile: Path) -> None:
        commands, self.write = pipe()
        self.read, answers = pipe()
        shell = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'  # where the browser looks for them
        flags = [*FLAGS.split(), f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", shell, program, *flags],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self.buffer = b""
        self.count = 0
        self.session = None
        self.events = []
        self.errors = []
        self.requests = []
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        attached = self.tell("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.tell(f"{domain}.enable")

    def message(self) -> dict[str, Any]:
        """The next message of the browser."""
        while b"\0" not in self.buffer:
            assert select.select([self.read], [], [], PATIENCE)[0], "the browser does not answer"
            received = os.read(self.read, 1 << 20)
            assert received, "the browser has ended"
            self.buffer += received
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text)

    def tell(self, method: str, **params: Any) -> dict[str, Any]:
        """Give a command, and wait for its result; events before it are noted."""
        self.count += 1
        command = {"id": self.count, "method": method, "params": params}
        if self.session:
            command["sessionId"] = self.session
        text = json.dumps(command).encode() + b"\0"
        while text:
            text = text[os.write(self.write, text) :]
        while (answer := self.message()).get("id") != self.count:
            self.note(answer.get("method"), answer.get("params", {}))
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def note(self, method: str | None, params: dict[str, Any]) -> None:
        """Keep what an event says of errors and requests."""
        self.events.append(method)
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", details).get("description", str(details)))
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.errors.append(str(params["args"]))
        if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def look_at(self, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        """Set the window's size and the reader's preference of light or dark."""
        size = dict(width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone)
        self.tell("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tell("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        """Open an address, and wait until the page has drawn."""
        self.tell("Page.navigate", url="about:blank")
        self.tell("Page.navigate", url=address)
        self.wait()

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        options = dict(returnByValue=True, awaitPromise=True)
        result = self.tell("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self) -> None:
        """Until nothing is left to compute."""
        end = time.monotonic() + PATIENCE
        while not self.run("document.body?.dataset.idle === 'yes'"):
            assert time.monotonic() < end, "the page goes on computing"
            time.sleep(0.02)

    def mouse(self, kind: str, x: float, y: float) -> None:
        """One event of the mouse: pressed, moved or released."""
        event = dict(type=f"mouse{kind}", x=x, y=y, clickCount=1)
        button = "none" if kind == "Moved" else "left"
        self.tell("Input.dispatchMouseEvent", **event, button=button, buttons=1)

    def drag(self, start: tuple[float, float], end: tuple[float, float], steps: int = 5) -> None:
        """Press, move and let go of the left button."""
        self.mouse("Pressed", *start)
        for k in range(1, steps + 1):
            here = [a + (b - a) * k / steps for a, b in zip(start, end, strict=True)]
            self.mouse("Moved", *here)
        self.mouse("Released", *end)

    def key(self, name: str, text: str = "") -> None:
        """Press and let go of a key."""
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}
        event = dict(key=name, code=name, windowsVirtualKeyCode=codes.get(name, 32))
        event |= dict(text=text) if text else {}
        self.tell("Input.dispatchKeyEvent", type="keyDown", **event)
        self.tell("Input.dispatchKeyEvent", type="keyUp", **event)

    def choose_file(self, element: str, path: Path) -> None:
        """Give a file to an input of the page, by its id."""
        script = f"document.getElementById('{element}')"
        found = self.tell("Runtime.evaluate", expression=script)["result"]["objectId"]
        self.tell("DOM.setFileInputFiles", files=[str(path)], objectId=found)
        self.run("new Promise((done) => setTimeout(done, 300))")  # it is read meanwhile

    def save_screenshot(self, path: Path, whole: bool = True) -> None:
        """The window, or the whole page, as a PNG."""
        shot = self.tell("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End the browser."""
        self.process.terminate()
        self.process.wait(PATIENCE)
        os.close(self.read)
        os.close(self.write)
