"""Make the picture of a report in README.md anew: `python tools/picture.py` (needs a Chromium and the extras lab and test)."""

import os, shutil, sys, tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tradebench import backtest, load

TARGET = Path(__file__).parents[1] / "nbs" / "images" / "report.png"
WIDTH, HEIGHT = 1180, 1425  # the summary and the first chart


os.environ.setdefault("TRADEBENCH_TRIALS", "record")


def main():
    browser = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
    if not browser:
        sys.exit("picture: no Chromium on the path (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as p:
        page = backtest("sma_cross", load("AAPL")).report(Path(place) / "report.html")
        with p.chromium.launch(executable_path=browser, headless=True, args=["--no-sandbox", "--disable-gpu"]) as b:
            tab = b.new_page(viewport=dict(width=WIDTH, height=HEIGHT))
            tab.goto(page.as_uri())
            tab.wait_for_selector(".scatterlayer path.js-line")
            tab.wait_for_timeout(1000)
            TARGET.parent.mkdir(exist_ok=True)
            tab.screenshot(path=TARGET)
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
