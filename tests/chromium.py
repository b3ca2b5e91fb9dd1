"""Pages as a browser shows them: a headless Chromium that is there, or none."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (360, 1280)
LOOK = """
window.onload = () => {
  const looked = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement, shown = it => it.getBoundingClientRect();
    const stands = it => shown(it).width && shown(it).height;
    return {
      width: Number(frame.width),
      over: root.scrollWidth - root.clientWidth,
      missing: [...page.images].filter(image => !(image.complete && image.naturalWidth)).length,
      empty: [...page.querySelectorAll("svg")].filter(picture => !stands(picture)).length,
      paper: getComputedStyle(page.body).backgroundColor,
    };
  });
  console.log("looked");
  document.body.innerHTML = `<pre id="found">${JSON.stringify(looked)}</pre>`;
};
"""
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--dump-dom"),
)


def looked_at(pages: list[str], folder: Path, *flags: str) -> list[dict[str, Any]]:
    """What Chromium finds of pages at each of the widths, with everything else than silence on the console an error.

    Args:
        pages: as HTML.
        folder: for what it keeps.
        flags: more for the browser.
    """
    browser = next((found for name in NAMES if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"there is no {NAMES[0]} on this machine")
    frames = [f'<iframe width={w} height=800 srcdoc="{html.escape(page)}"></iframe>' for page in pages for w in WIDTHS]
    wrapper = folder / "pages.html"
    wrapper.write_text(f"<meta charset=utf-8><script>{LOOK}</script>{''.join(frames)}", encoding="utf-8")
    command = [browser, *FLAGS, *flags, f"--user-data-dir={folder / 'browser'}", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    said = [line.split("] ", 1)[1] for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert [line.split(", source")[0] for line in said] == ['"looked"']
    (found,) = re.findall(r'<pre id="found">(\[.*?)</pre>', done.stdout, re.S)
    return json.loads(html.unescape(found))
