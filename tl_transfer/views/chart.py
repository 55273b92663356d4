"""Chart: a view drawn by plotly, with the numbers beside it and the script inside it.

What shows it decides the form. A page of its own (`save_html`, `save_png`, `save_page`) holds
plotly.js, packed as in a report, and asks for nothing. A notebook gets the figure itself, which
JupyterLab and VS Code draw with the plotly they have, so that a cell stays small; and for readers
that draw no figures (a converted notebook, a code host, a screen reader) the title, the caption and
the numbers as a table.
"""

import hashlib
import html
import json
import textwrap
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from tl_transfer.report.assets import plotly_packed
from tl_transfer.report.table import Table, render_html
from tl_transfer.views.view import View

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MIME = "application/vnd.plotly.v1+json"
_NUMBER = count()

# A page may have a module loader (`define`, `module`), to which plotly.js would give itself away.
_LOADER = """
(async () => {{
  if (!window.tlTransferPlotly) {{
    window.tlTransferPlotly = (async () => {{
      const packed = document.querySelector('.tl-transfer-plotly').textContent.trim();
      const bytes = Uint8Array.from(atob(packed), c => c.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
      const code = await new Response(stream).text();
      new Function('define', 'module', 'exports', code)();
      return window.Plotly;
    }})();
  }}
  const plotly = await window.tlTransferPlotly;
  const place = document.getElementById({place});
  const figure = JSON.parse(document.getElementById({figure}).textContent);
  await plotly.newPlot(place, figure.data, figure.layout, {{
    responsive: true, displaylogo: false, showSendToCloud: false,
    displayModeBar: place.clientWidth < 520 ? false : 'hover',
    modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d']
  }});
  place.dataset.drawn = 'yes';
}})();
"""


@dataclass(frozen=True)
class Chart(View):
    """A plotly figure with its title, caption, numbers and data.

    Attributes:
        figure: The plotly figure, to change or to save with plotly's own means.
        table: The numbers of the figure.
    """

    figure: "Figure" = field(repr=False)
    table: Table = field(repr=False)

    @classmethod
    def of(cls, figure: "Figure", table: Table, data: Any) -> "Chart":
        """A chart whose title and caption are those of a figure of `tl_transfer.plots`."""
        meta = figure.layout.meta
        # The layout holds text for plotly, which reads entities; a view escapes for itself.
        title, caption = (html.unescape(meta[key]) for key in ("title", "caption"))
        caption = caption.replace("<br>", " ")
        body = drawing(figure, title, caption) + _numbers(table, "")
        return cls(title, caption, body, data, figure, table)

    def still(self) -> str:
        """The fragment without a drawing: title, caption and the table of numbers."""
        return View(self.title, self.caption, _numbers(self.table, " open"), None).html()

    def _repr_html_(self) -> str:
        return self.still()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        spec = json.loads(str(self.figure.to_json()))
        spec["layout"]["title"]["subtitle"]["text"] = "<br>".join(
            html.escape(line, quote=False) for line in textwrap.wrap(self.caption, 90)
        )
        # Room for the lines of the caption and for the legend under them.
        extra = 16 * len(textwrap.wrap(self.caption, 90)) - 32
        spec["layout"]["margin"]["t"] += extra
        spec["layout"]["height"] += extra
        spec["config"] = {"displaylogo": False, "responsive": True, "showSendToCloud": False}
        return {MIME: spec, "text/html": self.still(), "text/plain": repr(self)}


def packed_plotly() -> str:
    """The script block that a page of charts holds once."""
    note = "<!-- plotly.js, copyright Plotly, Inc., MIT license; gzip in base64 -->"
    return f'{note}<script type="text/plain" class="tl-transfer-plotly">{plotly_packed()}</script>'


def drawing(figure: "Figure", title: str, caption: str) -> str:
    """The figure as HTML that draws itself, without its title and caption but named by them."""
    spec = json.loads(str(figure.to_json()))
    # Title and caption are HTML here, which wraps, is read aloud and is found by a search.
    spec["layout"].pop("title", None)
    narrowest = int(spec["layout"]["meta"].get("min_width", 0))
    spec["layout"]["margin"]["t"] = 30
    height = int(spec["layout"]["height"]) - 50
    spec["layout"]["height"] = height
    text = json.dumps(spec, allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")
    place = f"tl-transfer-{next(_NUMBER)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    loader = _LOADER.format(place=json.dumps(place), figure=json.dumps(f"{place}-figure"))
    spoken = html.escape(f"{title}. {caption} The numbers are in the table below.")
    return (
        f'<div class="scroll" tabindex="0"><div id="{place}" class="chart" role="img" '
        f'aria-label="{spoken}" style="min-height: {height}px; min-width: {narrowest}px">'
        "</div></div>"
        f'<script type="application/json" id="{place}-figure">{text}</script>'
        f"{packed_plotly()}<script>{loader}</script>"
    )


def _numbers(table: Table, state: str) -> str:
    return f"<details{state}><summary>numbers</summary>{render_html(table)}</details>"
