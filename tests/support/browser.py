"""A page in headless Chromium, where that is installed: what a script finds in it."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = Path(__file__).resolve().parents[2] / "build" / "axe-core" / "package" / "axe.min.js"
"""axe-core (Deque), as `make accessible` fetches it."""


def found(page, script, folder, *, width=1280, dark=False):
    """What an expression, or the promise that it is, comes to in a page with all its details open.

    Chromium's own window is at least 500 pixels wide, so the page stands in a frame of the width."""
    inner = page.read_text(encoding="utf-8").replace("<details>", "<details open>")
    tell = f"Promise.resolve(({script})).then(r => parent.postMessage(JSON.stringify(r === undefined ? null : r), '*'))"
    (folder / "inner.html").write_text(
        inner.replace("</body>", f"<script>addEventListener('load', () => {{ {tell} }})</script></body>"),
        encoding="utf-8",
    )
    outer = (
        "<!doctype html><body><pre id='found'></pre><script>addEventListener('message', e => "
        "{ document.getElementById('found').textContent = e.data })</script>"
        f"<iframe src='inner.html' style='border:0;width:{width}px;height:900px'></iframe></body>"
    )
    place = folder / "outer.html"
    place.write_text(outer, encoding="utf-8")
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom",
        "--virtual-time-budget=60000", "--window-size=1400,1000", f"--user-data-dir={folder / 'profile'}", *theme,
        place.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    told = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told, done.stderr[-2000:]
    assert told.group(1), f"the script told nothing: {done.stderr[-2000:]}"
    return json.loads(unescape(told.group(1)))
