"""Execute notebooks in place, and put pictures beside what only a running page can draw.

A code host shows neither plotly figures nor scripts. So each stored chart and each stored
attention view gets a picture, drawn by an installed Chromium; executing the cell again brings the
live one back.

    .venv/bin/python tools/store_notebook.py notebooks/01_transfer_a_steering_vector.ipynb
"""

import base64
import re
import sys
import tempfile
import time
from pathlib import Path
from shutil import which
from typing import Any

import nbformat
from nbclient import NotebookClient
from playwright.sync_api import sync_playwright
from plotly.graph_objects import Figure

from tl_transfer.views.chart import MIME, drawing
from tl_transfer.views.view import View

#: What a stored notebook may weigh.
MAX_BYTES = 2_000_000
CIRCUITS = re.compile(r'<script type="text/plain" class="tl-transfer-circuits">')


def store(path: Path) -> None:
    """Execute one notebook and write it with its pictures."""
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    NotebookClient(
        notebook,
        timeout=900,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    seconds = time.perf_counter() - start
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day: a change in every line
        outputs = [o for o in cell.get("outputs", ()) if o.get("name") != "stderr"]
        for output in outputs:
            illustrate(output.get("data", {}))
        if cell.cell_type == "code":
            cell.outputs = outputs
    notebook.metadata.pop("widgets", None)  # a converter would fetch scripts for their state
    nbformat.write(notebook, path)
    size = path.stat().st_size
    print(f"{path}: {seconds:.0f} s, {size / 1e3:.0f} kB")
    if size > MAX_BYTES:
        raise SystemExit(f"{path}: over {MAX_BYTES / 1e6:g} MB; draw less")


def illustrate(data: dict[str, Any]) -> None:
    """Put a picture into the HTML of one output."""
    page = data.get("text/html")
    if page is None:
        return
    if MIME in data:
        figure = Figure({key: data[MIME][key] for key in ("data", "layout")})
        meta = figure.layout.meta
        drawn = picture(drawing(figure, meta["title"], meta["caption"]))
        page = page.replace("</h4>", "</h4>" + image(drawn, meta["caption"]), 1)
        data["text/html"] = page.replace("<details open>", "<details>", 1)
    elif CIRCUITS.search(page):
        title = re.search(r"<h4>(.*?)</h4>", page)
        shown = re.sub(r"<style>.*?</style>", "", page, flags=re.S)
        drawn = picture(shown)
        data["text/html"] = image(drawn, title[1] if title else "attention")


def picture(body: str) -> bytes:
    """A PNG of a fragment, once everything in it is drawn."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 600})
        with tempfile.TemporaryDirectory() as folder:
            page.goto(View("", "", body, None).save_html(Path(folder) / "view.html").as_uri())
            page.wait_for_function(
                # Each drawing has its values in a block of JSON.
                "document.querySelectorAll('[data-drawn]').length =="
                "document.querySelectorAll('script[type=\"application/json\"]').length",
                timeout=60_000,
            )
            page.wait_for_timeout(300)
            png = page.locator(".tlt").first.screenshot()
        browser.close()
    return bytes(png)


def image(png: bytes, words: str) -> str:
    """An image element that holds its own bytes."""
    coded = base64.b64encode(png).decode()
    words = re.sub(r"<[^>]*>", " ", words).replace('"', "'")
    return f'<img alt="{words}" src="data:image/png;base64,{coded}">'


if __name__ == "__main__":
    for name in sys.argv[1:]:
        store(Path(name))
