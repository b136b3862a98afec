"""The README's picture: the report of a run, as a browser shows it. Needs Chromium and playwright.

`gradmm demo && python scripts/picture.py gradmm-demo/report.html docs/figures/report.png`
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1240, 1560


def main() -> None:
    """Opens the page and saves what is seen of it first."""
    page_file, picture = sys.argv[1:]
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=1)
        page.goto(Path(page_file).resolve().as_uri())
        page.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    main()
