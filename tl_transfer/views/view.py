"""View: something to look at, made of computed data and a fragment of HTML.

A view shows itself in Jupyter, and saves as a page of its own or as a picture. Nothing in it asks
the network for anything, and every text in it is escaped.
"""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tl_transfer.errors import InputError, ModelError
from tl_transfer.files import write_atomic
from tl_transfer.report.table import escape

#: Names under which a browser may be installed.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "microsoft-edge")

STYLE = """
.tlt { font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: inherit; }
.tlt h4 { margin: .2rem 0 .4rem; font-size: 1.05em; }
.tlt .note { opacity: .75; font-size: .92em; max-width: 52rem; margin: .4rem 0; }
.tlt table { border-collapse: collapse; margin: .3rem 0; font-size: .95em; }
.tlt table th, .tlt table td { padding: .2rem .55rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid rgba(128, 128, 128, .35); background: none; }
.tlt table td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tlt code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre;
  background: rgba(128, 128, 128, .16); border-radius: .2rem; padding: 0 .2rem; color: inherit; }
.tlt .text { font-family: ui-monospace, "DejaVu Sans Mono", monospace; line-height: 2.1;
  max-width: 60rem; overflow-wrap: anywhere; }
.tlt .text span { white-space: pre-wrap; padding: .22em 0; border-radius: .15em;
  box-decoration-break: clone; -webkit-box-decoration-break: clone; }
.tlt .text span.skip { opacity: .45; }
.tlt summary { cursor: pointer; opacity: .75; }
.tlt h5 { margin: .6rem 0 0; font-size: .92em; opacity: .75; }
.tlt dl.facts { display: grid; grid-template-columns: fit-content(38%) 1fr; gap: .15rem .9rem;
  margin: .3rem 0 .6rem; font-size: .95em; }
.tlt dl.facts dt { opacity: .75; font-weight: normal; }
.tlt dl.facts dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
.tlt .bars { margin: .3rem 0; max-width: 26rem; }
.tlt .bars svg { display: block; width: 100%; height: auto; font-size: 11px; }
.tlt .bars .ink { fill: #2f8fcf; } .tlt .bars text { fill: currentColor; }
.tlt .bars .axis { stroke: currentColor; opacity: .5; }
.tlt caption { text-align: left; opacity: .75; }
.tlt .scroll { overflow-x: auto; }
.tlt .beside { display: grid; gap: .5rem 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(25rem, 100%), 1fr)); }
.tlt .beside > div { min-width: 0; overflow-x: auto; }
.tlt .heads > div { background: #fff; color: #1b1f24; color-scheme: light; padding: .4rem;
  border-radius: .3rem; }
.tlt .chart { width: 100%; max-width: 60rem; }
.tlt table.numeric td { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
@media print { .tlt summary { display: none; } .tlt { break-inside: avoid; } }
.tlt .bar { display: inline-block; height: .7em; background: #D55E00; vertical-align: baseline; }
"""
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>:root {{ color-scheme: light dark; }}
body {{ margin: 1.2rem; background: Canvas; color: CanvasText; }}</style></head>
<body>{body}</body></html>
"""

# Keeps the height of what is drawn where a reader of the page finds it; for pictures only.
_MEASURE = """<script>setInterval(() => {
  const bottom = document.body.getBoundingClientRect().bottom;
  document.documentElement.dataset.height = Math.ceil(bottom + 20);
}, 50);</script>"""
#: No browser draws pictures much taller than this.
TALLEST = 12_000

#: Blocks that several views bring and a page needs once.
_SHARED = re.compile(r'<style>[^<]*</style>|<script type="text/plain" [^>]*>[^<]*</script>')


@dataclass(frozen=True)
class View:
    """A finished view.

    Attributes:
        title: One line.
        caption: What the numbers are, with n.
        body: HTML fragment below the title.
        data: What was computed, for use without the drawing.
    """

    title: str
    caption: str
    body: str = field(repr=False)
    data: Any = field(repr=False)

    def html(self) -> str:
        """The fragment: style, title, body, caption."""
        return (
            f'<div class="tlt"><style>{STYLE}</style><h4>{escape(self.title)}</h4>'
            f'{self.body}<p class="note">{escape(self.caption)}</p></div>'
        )

    def _repr_html_(self) -> str:
        return self.html()

    def save_html(self, path: str | os.PathLike[str]) -> Path:
        """Write a page that opens with no network."""
        return save_page(path, self)

    def save_png(
        self, path: str | os.PathLike[str], *, width: int = 1000, height: int | None = None
    ) -> Path:
        """Write a picture, drawn by an installed Chromium, Chrome or Edge.

        Args:
            path: Where to.
            width: Of the window, in pixels.
            height: Of the window, in pixels; what is below it is cut off. Default: all of the view.

        Raises:
            ModelError: no such browser, or it failed.
            InputError: a size that is not positive.
        """
        browser = next(filter(None, map(shutil.which, BROWSERS)), None)
        if browser is None:
            raise ModelError(
                "save_png: no browser to draw with",
                got="none of " + ", ".join(BROWSERS) + " on the PATH",
                valid="an installed Chromium, Chrome or Edge",
                hint="install one, or use save_html",
            )
        if min(width, 1 if height is None else height) < 1:
            raise InputError(
                "width, height: must be positive",
                got=f"{width} x {height}",
                valid="pixels",
                hint="leave them out for 1000 and the height of the view",
            )
        with tempfile.TemporaryDirectory() as folder:
            page, picture = Path(folder) / "view.html", Path(folder) / "view.png"
            text = self.save_html(page).read_text(encoding="utf-8")
            page.write_text(text.replace("</body>", _MEASURE + "</body>"), encoding="utf-8")

            def run(tall: int, wanted: str) -> str:
                command = [
                    browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                    f"--user-data-dir={folder}/profile", f"--window-size={width},{tall}",
                    "--virtual-time-budget=8000", wanted, page.as_uri(),
                ]  # fmt: skip
                done = subprocess.run(command, capture_output=True, text=True, timeout=120)
                last = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
                return done.stdout or last[0]

            said = ""
            if height is None:
                said = run(TALLEST, "--dump-dom")
                found = re.search(r'data-height="(\d+)"', said)
                height = min(int(found[1]), TALLEST) if found else 700
            said = run(height, f"--screenshot={picture}") or said
            if not picture.is_file():
                raise ModelError(
                    "save_png: the browser drew nothing",
                    got=said,
                    valid="a picture",
                    hint="use save_html and open the page",
                )
            drawn = picture.read_bytes()
        return write_atomic(Path(path), lambda part: part.write_bytes(drawn))


def save_page(path: str | os.PathLike[str], *views: View, title: str | None = None) -> Path:
    """Write views below each other as one page that opens with no network.

    What they share (style, plotly.js, the script of circuitsvis) is in the page once.

    Args:
        path: Where to.
        *views: At least one.
        title: Of the page; default, that of the first view.

    Raises:
        InputError: no view.
    """
    if not views:
        raise InputError(
            "save_page: nothing to write", got="no view", valid="views", hint="pass at least one"
        )
    seen: set[str] = set()

    def first(block: re.Match[str]) -> str:
        repeated = block[0] in seen
        seen.add(block[0])
        return "" if repeated else block[0]

    body = _SHARED.sub(first, "".join(view.html() for view in views))
    page = _PAGE.format(title=escape(title or views[0].title), body=body)
    return write_atomic(Path(path), lambda part: part.write_text(page, encoding="utf-8"))


def spoken(token: str) -> str:
    """A token as people can read it: spaces and line ends visible, markup escaped."""
    shown = token.replace("\n", "⏎").replace("\t", "⇥")
    shown = "·" + shown[1:] if shown.startswith(" ") else shown
    return f"<code>{escape(shown)}</code>"


def shade(value: float, scale: float) -> str:
    """Background of a value: orange above zero, blue below, clear at zero; both schemes."""
    strength = min(abs(value) / scale, 1.0) if scale > 0 else 0.0
    colour = "213, 94, 0" if value > 0 else "0, 114, 178"
    return f"background: rgba({colour}, {0.75 * strength:.2f})"


def spans(pieces: list[tuple[str, float | None, str]], scale: float) -> str:
    """A text whose pieces are shaded by their values; None is shown as left out.

    Args:
        pieces: (text, value, tooltip).
        scale: The absolute value that has the full colour.
    """
    shown = []
    for text, value, tip in pieces:
        text, tip = escape(text), escape(tip)
        if value is None:
            shown.append(f'<span class="skip" title="{tip}">{text}</span>')
        else:
            shown.append(f'<span style="{shade(value, scale)}" title="{tip}">{text}</span>')
    return f'<div class="text">{"".join(shown)}</div>'
