"""The style sheet, the scripts and the embedded plotly of a report page."""

import base64
import gzip
import hashlib
from functools import lru_cache

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d5dae0;
  --tint: #f4f6f8; --good: #006b4f; --bad: #a8320a; --open: #57606a; --link: #0a5aa0; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e8eaed; --soft: #a5adb6;
  --line: #363c43; --tint: #1d2126; --good: #3fcf9f; --bad: #ff9569; --open: #a5adb6;
  --link: #7cc0f5; } }
* { box-sizing: border-box; }
html { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  background: var(--paper); color: var(--ink); scroll-behavior: smooth; }
body { max-width: 66rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: .25rem 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 3rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .4rem; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--link); } :focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -999px; } .skip:focus { left: 1rem; top: .5rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; padding: 0; }
nav li { padding: .15rem 0; }
.meta, .note, figcaption { color: var(--soft); font-size: .9rem; }
.verdict { border: 1px solid var(--line); border-left: .5rem solid var(--open);
  border-radius: .4rem; padding: 1rem 1.25rem; background: var(--tint); margin-top: 1rem; }
.verdict.yes { border-left-color: var(--good); } .verdict.no { border-left-color: var(--bad); }
.verdict .answer { font-size: 1.5rem; font-weight: 700; margin: 0; }
.verdict.yes .answer { color: var(--good); } .verdict.no .answer { color: var(--bad); }
.verdict .sentence { font-size: 1.1rem; margin: .25rem 0 .5rem; }
.checks { list-style: none; padding: 0; margin: .75rem 0 0; }
.checks li { display: grid; grid-template-columns: 8rem 1fr; gap: 0 .75rem; padding: .45rem 0;
  border-top: 1px solid var(--line); max-width: none; }
.checks .mark { font-weight: 700; white-space: nowrap; }
li.pass .mark { color: var(--good); } li.fail .mark { color: var(--bad); }
li.open .mark { color: var(--open); }
.checks small { display: block; color: var(--soft); font-size: .9rem; }
.pair { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); }
.card { border: 1px solid var(--line); border-radius: .4rem; padding: .75rem 1rem; min-width: 0; }
.card h3 { margin: 0 0 .4rem; }
dl { display: grid; grid-template-columns: fit-content(62%) minmax(4rem, 1fr);
  gap: .15rem .9rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: break-word; min-width: 0; }
.scroll { overflow-x: auto; margin: .75rem 0 .4rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
caption span { display: inline-block; position: sticky; left: 0;
  max-width: min(100%, calc(100vw - 2.5rem)); }
th, td { text-align: left; padding: .4rem .65rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
thead th { border-bottom: 2px solid var(--soft); font-weight: 600; vertical-align: bottom; }
.numeric td, .numeric thead th:not(:first-child) { text-align: right;
  font-variant-numeric: tabular-nums; } .numeric td { white-space: nowrap; }
.data tbody th, .data thead th:first-child { position: sticky; left: 0;
  background: var(--paper); }
tbody th { font-weight: 600; } tbody tr:hover, tbody tr:hover th { background: var(--tint); }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: inherit; } th button::after { content: " \\2195"; color: var(--soft); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
figure { margin: 2rem 0; } figure h3 { margin-top: 0; }
.plot { min-height: 3rem; width: 100%; }
figcaption { margin-top: .4rem; max-width: 46rem; }
.plot text { fill: var(--soft) !important; }
.plot .legendtext, .plot .xtick text, .plot .ytick text { fill: var(--ink) !important; }
.plot .hoverlayer text { fill: #fff !important; }
.example { margin: 1.25rem 0; } .example h3 { margin: 0 0 .3rem; font-weight: 600; }
.example table { table-layout: fixed; } .example th:first-child { width: 10rem; }
.example td { white-space: pre-line; overflow-wrap: anywhere; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--link); }
pre { overflow-x: auto; background: var(--tint); padding: .75rem 1rem; font-size: .85rem;
  border-radius: .4rem; }
.warning { border-left: .35rem solid var(--bad); padding-left: .75rem; }
@media (max-width: 40rem) {
  body { padding: 1rem .9rem 3rem; } h1 { font-size: 1.4rem; }
  .checks li { grid-template-columns: 1fr; }
  .example thead { position: absolute; left: -999rem; }
  .example table, .example tbody, .example tr, .example th, .example td { display: block;
    width: auto; }
  .example th:first-child { width: auto; } .example td:empty { display: none; }
  .example td { border: 0; padding: .15rem .65rem .35rem; } .example th { border: 0; }
  .example td[data-push]::before { content: attr(data-push) ": "; font-weight: 600;
    color: var(--soft); } }
@media print {
  :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444; --line: #bbb;
    --tint: #f4f4f4; --good: #006b4f; --bad: #a8320a; --open: #444; --link: #000; }
  html { font-size: 11px; } body { max-width: none; padding: 0; }
  nav, .skip, .modebar, th button::after { display: none !important; }
  h2 { margin: 1.5rem 0 .5rem; } figure { margin: .8rem 0; }
  h2, h3 { break-after: avoid; } figure, tr, .card, .example { break-inside: avoid; }
  .data tbody th, .data thead th:first-child { position: static; }
  th, td { padding: .3rem .4rem; } .scroll { overflow: visible; } }
"""

# Plain script, no template: it must work when the file is opened from a disk with no network.
BEHAVIOUR = """
'use strict';
(function () {
  function key(row, column) {
    var cell = row.cells[column], value = cell.getAttribute('data-value');
    return value === null ? cell.textContent.trim() : Number(value);
  }
  function compare(a, b) {
    if (typeof a === typeof b) return typeof a === 'number' ? a - b : a.localeCompare(b);
    return typeof a === 'number' ? -1 : 1;
  }
  function sort(table, head) {
    var up = head.getAttribute('aria-sort') !== 'ascending', body = table.tBodies[0];
    Array.from(body.rows).map(function (row) { return [key(row, head.cellIndex), row]; })
      .sort(function (a, b) {
        var mixed = typeof a[0] !== typeof b[0];  // cells without a number stay last
        return mixed || up ? compare(a[0], b[0]) : compare(b[0], a[0]);
      }).forEach(function (pair) { body.append(pair[1]); });
    table.querySelectorAll('thead th').forEach(function (other) {
      other.removeAttribute('aria-sort');
    });
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  }
  document.querySelectorAll('table.data').forEach(function (table) {
    table.querySelectorAll('thead th').forEach(function (head) {
      var button = document.createElement('button');
      button.type = 'button';
      button.append.apply(button, Array.from(head.childNodes));
      button.addEventListener('click', function () { sort(table, head); });
      head.append(button);
    });
  });

  var plots = Array.from(document.querySelectorAll('.plot'));
  function draw(plot) {
    var figure = JSON.parse(document.getElementById(plot.dataset.figure).textContent);
    var narrow = plot.clientWidth < 520;
    if (narrow && figure.layout.showlegend) figure.layout.height += 70;
    plot.style.height = figure.layout.height + 'px';  // or the caption would lie on the axis
    var ticks = figure.layout.xaxis.tickvals;
    if (narrow && ticks && ticks.length > 4) ['tickvals', 'ticktext'].forEach(function (key) {
      figure.layout.xaxis[key] = figure.layout.xaxis[key].filter(function (_, i) { return i % 2; });
    });
    figure.layout.dragmode = window.matchMedia('(pointer: coarse)').matches ? false : 'zoom';
    plot.textContent = '';
    return Plotly.newPlot(plot, figure.data, figure.layout, {
      responsive: true, displaylogo: false, displayModeBar: narrow ? false : 'hover',
      modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d'], showSendToCloud: false
    });
  }
  async function unpack() {
    var text = document.getElementById('plotly').textContent.trim();
    var bytes = Uint8Array.from(atob(text), function (c) { return c.charCodeAt(0); });
    var stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    var script = document.createElement('script');
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    await Promise.all(plots.map(draw));
    document.documentElement.setAttribute('data-plots', 'drawn');
  }
  if (!plots.length) document.documentElement.setAttribute('data-plots', 'none');
  else unpack().catch(function (problem) {
    document.documentElement.setAttribute('data-plots', 'failed');
    plots.forEach(function (plot) {
      plot.textContent = 'This browser could not draw the chart (' + problem.message +
        '). The numbers are in the table below.';
    });
  });
  // On paper two charts share a page, and their letters have the size of the text.
  function resize(paper) {
    plots.forEach(function (plot) {
      if (!plot.layout) return;
      var screen = Number(plot.dataset.height || plot.layout.height);
      var height = paper ? Math.min(screen, 290) : screen;
      var change = { height: height, width: paper ? 660 : null, autosize: !paper };
      ['font.size', 'xaxis.title.font.size', 'yaxis.title.font.size'].forEach(function (key) {
        change[key] = paper ? 10 : 13;
      });
      plot.style.height = height + 'px';
      Plotly.relayout(plot, change);
      plot.dataset.height = screen;
    });
  }
  window.addEventListener('beforeprint', function () { resize(true); });
  window.addEventListener('afterprint', function () { resize(false); });
})();
"""


@lru_cache(maxsize=1)
def plotly_source() -> str | None:
    """The plotly.js that the installed plotly brings, or None without plotly."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return None
    # A browser hashes a script after it has made every line end a bare line feed.
    return str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")


@lru_cache(maxsize=1)
def plotly_packed() -> str:
    """plotly.js as base64 of gzip: 2 MB in place of 4.8, and nothing in it can close a tag."""
    source = plotly_source()
    if source is None:
        return ""
    return base64.b64encode(gzip.compress(source.encode(), 9, mtime=0)).decode()


def content_policy() -> str:
    """The page's own rule for browsers: no connection at all, and only these two scripts run.

    Should a text ever slip through unescaped, it still could not run or call out.
    """
    scripts = [BEHAVIOUR, plotly_source() or ""]
    hashes = " ".join(f"'sha256-{_hash(script)}'" for script in scripts if script)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
