"""The pictures of the documentation, drawn anew from the demo model by headless Chromium.

Usage: python docs/pictures.py [NAME …]; needs playwright and an installed Chromium.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

import eigenscope as es

FOLDER = Path(__file__).parent
QUERY = "encoder.layer.5.attention.self.query.weight"
POOLER, UP = "pooler.dense.weight", "encoder.layer.0.intermediate.dense.weight"


def figures() -> dict[str, Any]:
    """File name → Plotly figure."""
    scan = es.scan("demo")
    spec = find_spec("sre_embedding_model")
    if spec is None or spec.origin is None:
        raise SystemExit("sre-embedding-model is not installed: run make test first")
    diff = es.diff("demo", Path(spec.origin).parent / "model_weights")
    return {
        "change-map.png": diff.figure(reading="energy_16"),
        "change-spectrum.png": diff.figure(matrix=QUERY),
        "heat-map.png": scan.figure(reading="condition"),
        "spectrum-pooler.png": scan.figure(matrix=POOLER),
        "spectrum-up.png": scan.figure(matrix=UP),
    }


def main() -> None:
    """Draw those that are named, or all."""
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser_path is None:
        raise SystemExit("no Chromium found; install it, or put it on the PATH")
    wanted = sys.argv[1:]
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1160, "height": 900}, device_scale_factor=1.5)
        for name, figure in figures().items():
            if wanted and name not in wanted:
                continue
            figure.layout.updatemenus = None
            figure.update_layout(width=1120)
            html = Path(folder) / "figure.html"
            figure.write_html(html, include_plotlyjs=True, config={"displayModeBar": False, "staticPlot": True})
            page.goto(html.as_uri())
            page.locator(".plot-container").first.screenshot(path=FOLDER / name)
            print(name)
        browser.close()


if __name__ == "__main__":
    main()
