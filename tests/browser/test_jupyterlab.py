"""A real JupyterLab: a notebook is opened, its cells run, charts are drawn, the widget steers."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]
pytest.importorskip("jupyterlab", reason="needs JupyterLab (extra notebooks)")
pytest.importorskip("ipywidgets", reason="needs ipywidgets (extra viz)")

ROOT = Path(__file__).resolve().parents[2]
CELLS = (
    "from tl_transfer import views\n"
    "views.transfer_matrix({('a', 'b'): {'value': 0.7, 'ci95': (0.6, 0.8), 'n': 9}})",
    "import tl_transfer as tt\n"
    "from tests import tiny\n"
    "from tests.generation.test_laws import vector_for\n"
    "model = tt.load_model(tiny.tiny_bridge('llama'))\n"
    "views.live(model, {'native': vector_for(model)}, ['The <b>river</b> rose'],\n"
    "           strength=0.0, limits=(-4, 4), max_new_tokens=6)",
)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """Address of a running JupyterLab whose folder holds the notebook."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    # Without it JupyterLab asks for a kernel.
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, tmp_path / "page.ipynb")
    places = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--port=0", "--allow-root",
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={tmp_path}",
        "--IdentityProvider.token=for-this-test", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    log = tmp_path / "lab.log"
    with log.open("w") as written:
        server = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=written,
            stderr=subprocess.STDOUT,
            env={**os.environ, **places, "PYTHONPATH": str(ROOT)},
        )
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/lab", log.read_text())):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield found[0]
    finally:
        server.terminate()
        server.wait(20)


def test_cells_run_charts_are_drawn_and_the_slider_steers(
    browser: Any, lab: str, picture: Any
) -> None:
    context = browser.new_context(viewport={"width": 1200, "height": 1100})
    page = context.new_page()
    outside: list[str] = []
    errors: list[str] = []
    page.on(
        "request",
        lambda r: (
            None
            if re.match(r"(http|ws)://127\.0\.0\.1|blob:|data:", r.url)
            else outside.append(r.url)
        ),
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{lab}/tree/page.ipynb?token=for-this-test&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    page.locator(".jp-Notebook .jp-CodeCell").first.click()
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_selector(".jp-OutputArea .js-plotly-plot .heatmaplayer image", timeout=90_000)
    table = page.locator(".widget-html table.arms, .jupyter-widgets table.arms").first
    table.wait_for(timeout=90_000)
    assert "<b>river</b>" in table.inner_text()
    cells = table.locator("td")
    off, before = cells.nth(0).inner_text(), cells.nth(1).inner_text()
    assert off == before, "strength 0"
    handle = page.locator(".jupyter-widgets .noUi-handle, .widget-slider .noUi-handle").first
    handle.focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "off => { const c = document.querySelectorAll('table.arms td');"
        " return c.length > 1 && c[0].innerText === off && c[1].innerText !== off; }",
        arg=off,
        timeout=60_000,
    )
    picture(page, "jupyterlab")
    context.close()
    assert outside == [] and errors == []
