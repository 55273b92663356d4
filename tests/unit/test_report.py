"""The report: what tables, figures and page say, and that no text of a model becomes markup."""

import html.parser
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit import sample_report as samples
from tl_transfer import plots
from tl_transfer.errors import InputError
from tl_transfer.report import reading, side_tables, tables
from tl_transfer.report.html import render, report_fragment, save_html
from tl_transfer.report.table import Cell, Table, display_width, render_html, render_text

Report = dict[str, Any]
MAKERS = (
    samples.sample_report,
    samples.failed_report,
    samples.undefined_report,
    samples.hostile_report,
    samples.minimal_report,
)


class Page(html.parser.HTMLParser):
    """Tags, attributes and visible text, as a browser's parser separates them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        (self.scripts if self._inside == "script" else self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__name__)
def report(request: pytest.FixtureRequest) -> Report:
    return request.param()


def row(table: Table, name: str) -> list[str]:
    return next([cell.text for cell in cells] for cells in table.rows if cells[0].text == name)


# --- numbers as text -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.234, "1.23"),
        (-0.05, "-0.05"),
        (0.0042, "0.0042"),
        (0, "0.00"),
        (12345.0, "1.234e+04"),
        (None, "n/a"),
        (float("nan"), "n/a"),
        (float("inf"), "n/a"),
        ("1", "n/a"),
        (True, "n/a"),
    ],
)
def test_a_number_is_short_and_whatever_is_not_one_reads_na(value: object, text: str) -> None:
    assert reading.number(value) == text


def test_an_interval_and_a_range_cannot_be_mistaken_for_each_other() -> None:
    assert reading.with_interval(1, [0.5, 1.5]) == "1.00 [0.50, 1.50]"
    assert reading.with_range(1, [0.5, 1.5]) == "1.00 (0.50 to 1.50)"
    assert reading.with_range(None, [0.5, 1.5]) == "0.50 to 1.50"
    assert reading.with_interval(1, [0.5, None]) == "1.00"


@pytest.mark.parametrize("strength", [0.1, -0.1])
def test_the_sign_of_a_point_comes_from_its_key_in_both_spellings(strength: float) -> None:
    cell = {"strength": strength, "effect": -1.0}
    (point,) = reading.points({"arms": {"native": {"-0.100": cell}}}, "native")
    assert point.strength == -0.1


def test_the_main_budget_is_the_one_of_the_texts_and_else_the_middle_one() -> None:
    report = samples.sample_report()
    report["generation"]["budget"] = 0.1
    assert reading.primary_budget(report) == "0.1"
    report["generation"] = None
    assert reading.primary_budget(report) == "0.05"
    assert reading.primary_budget({}) is None


# --- tables ----------------------------------------------------------------------------------


def test_summary_rows_are_the_arms_in_order_with_sides_odd_part_wrong_way_and_n() -> None:
    table = tables.summary_table(samples.sample_report(), budget="0.05")
    labels = [reading.LABELS[arm] for arm in reading.ARMS]
    named = [cells[0].text for cells in table.rows]
    assert [name.removesuffix(" (20)") for name in named] == labels
    assert named[-1].endswith("(20)")
    assert table.columns[1:6] == ("push +", "push -", "odd part", "wrong way", "n")
    assert row(table, "transferred")[1:] == [
        "1.23 [1.08, 1.38]",
        "-1.13 [-1.28, -0.98]",
        "1.18 [1.08, 1.28]",
        "1.0 %",
        "100",
        "0.05 / 0.05",
        "0.20 / 0.20",
    ]
    assert row(table, "random, isotropic (20)")[3] == "0.02 (-0.24 to 0.22)"
    assert row(table, "unsteered")[1] == "0 (reference)"


def test_summary_without_a_budget_puts_all_budgets_side_by_side() -> None:
    table = tables.summary_table(samples.sample_report())
    assert len(table.columns) == 1 + 3 * 7
    assert table.columns[1] == "KL 0.02: push +"


def test_an_arm_that_cannot_reach_the_budget_says_so() -> None:
    table = tables.summary_table(samples.undefined_report(), budget="0.1")
    assert row(table, "native")[1] == "budget not reached"


def test_every_score_of_the_map_stands_beside_its_shuffled_control() -> None:
    table = tables.mapper_table(samples.sample_report())
    name = "variance unexplained (FVU)"
    assert row(table, name) == [name, "0.41 [0.39, 0.44]", "1.01", "0.35", "lower"]
    assert all(cells[2].text != "n/a" for cells in table.rows)


def test_generation_scores_by_push_with_ranges_for_random_directions() -> None:
    table = tables.generation_table(samples.sample_report())
    assert row(table, "unsteered")[1:3] == ["0.10 [0.00, 0.20]", ""]
    assert row(table, "native")[2:] == ["0.61 [0.51, 0.71]", "-0.42 [-0.52, -0.32]", "93 % / 93 %"]
    assert row(table, "random, isotropic")[2] == "0.10 (-0.12 to 0.30)"
    assert "n = 40 prompts" in table.note


def test_an_undefined_efficiency_shows_its_reason_in_place_of_a_number() -> None:
    table = side_tables.efficiency_table(samples.undefined_report())
    assert row(table, "equal KL 0.05")[1] == "native not steerable"


def test_check_table_tells_passed_failed_and_undecided_apart() -> None:
    results = [cells[1].text for cells in side_tables.check_table(samples.sample_report()).rows]
    assert results == ["pass", "pass", "pass", "not decided"]
    failed = side_tables.check_table(samples.failed_report())
    assert [cells[1].text for cells in failed.rows] == ["fail"]


def test_terminal_text_is_aligned_also_with_wide_and_combining_characters() -> None:
    cells = ((Cell("日本"), Cell("1")), (Cell("e\u0301"), Cell("10")), (Cell("abcd"), Cell("100")))
    table = Table("t", ("name", "n"), cells)
    lines = render_text(table).splitlines()[1:]
    assert {display_width(line) for line in lines} == {len("name  100")}


def test_terminal_text_neutralises_escape_sequences_and_reordering() -> None:
    text = render_text(Table("t", ("a",), ((Cell(samples.HOSTILE_EMOJI + samples.HOSTILE_RTL),),)))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert r"\x1b[31mred\x07 \ud800" in text
    assert r"\u202eright to left\u202c" in text


def test_a_ragged_table_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table("t", ("a", "b"), ((Cell("x"),),))


def test_html_table_escapes_and_keeps_sort_keys() -> None:
    table = Table("<t>", ("a", "b"), ((Cell("<i>"), Cell("1.00", 1.0)),), note="&")
    page = render_html(table)
    assert "<i>" not in page
    assert "&lt;i&gt;" in page
    assert 'data-value="1.0"' in page
    assert '<th scope="row">' in page


def test_terminal_report_opens_with_the_verdict_and_holds_the_main_tables() -> None:
    text = tables.render_report(samples.sample_report())
    assert text.startswith("The sentiment direction transfers: 92 % of the native effect.")
    for part in ("Checks", "odd part", "Transfer efficiency", "Score card", "VADER compound"):
        assert part in text


# --- figures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", plots.FIGURES, ids=lambda make: make.__name__)
def test_every_figure_is_strict_json_with_title_caption_and_units(
    make: Callable[[Report], Any], report: Report
) -> None:
    figure = make(report)
    text = json.dumps(json.loads(figure.to_json()), allow_nan=False)
    assert "NaN" not in text
    assert figure.layout.meta["title"]
    assert re.search(r"n = |tried|pairs", figure.layout.meta["caption"])


def test_arms_keep_their_colour_and_differ_in_marker_in_every_figure() -> None:
    for make in (plots.effect_against_strength, plots.matched_damage):
        figure = make(samples.sample_report())
        shown = [t for t in figure.data if t.name is not None]
        looks = {t.name: (t.marker.color, t.marker.symbol) for t in shown}
        assert looks["native"] == ("#0072B2", "circle")
        assert looks["transferred"] == ("#D55E00", "diamond")
        assert len({symbol for _, symbol in looks.values()}) == 5


def test_strength_figure_shows_intervals_for_arms_and_a_band_for_random_directions() -> None:
    figure = plots.effect_against_strength(samples.sample_report())
    native = next(t for t in figure.data if t.name == "native")
    assert native.x == (-0.4, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.4)
    assert native.error_y.array == pytest.approx([0.15] * 8)
    (band,) = [t for t in figure.data if t.fill == "toself" and t.legendgroup == "random_isotropic"]
    assert max(band.y) == pytest.approx(2.1 * 0.4)
    random = next(t for t in figure.data if t.name == "random, isotropic")
    assert set(random.error_y.array) == {0.0}


def test_damage_figure_has_a_log_axis_both_signs_and_leaves_out_zero_kl() -> None:
    report = samples.sample_report()
    report["arms"]["native"]["+0.050"]["damage"]["kl"] = 0.0
    figure = plots.effect_against_damage(report)
    plus, minus = [t for t in figure.data if t.name == "native"]
    assert figure.layout.xaxis.type == "log"
    assert (len(plus.x), len(minus.x)) == (3, 4)
    assert (plus.marker.symbol, minus.marker.symbol) == ("circle", "circle-open")
    assert max(minus.y) < 0 < min(plus.y)
    assert [shape.x0 for shape in figure.layout.shapes] == [0.02, 0.05, 0.1]


def test_matched_figure_draws_the_range_of_random_directions() -> None:
    figure = plots.matched_damage(samples.sample_report())
    random = next(t for t in figure.data if t.name == "random, isotropic")
    low, high = samples.sample_report()["matched"]["0.02"]["random_isotropic"]["odd"]["range"]
    assert random.y[0] + random.error_y.array[0] == pytest.approx(high)
    assert random.y[0] - random.error_y.arrayminus[0] == pytest.approx(low)


def test_efficiency_figure_has_the_pass_lines_and_leaves_out_undefined_values() -> None:
    figure = plots.transfer_efficiency(samples.sample_report())
    assert [shape.x0 for shape in figure.layout.shapes] == [0.5, 0.8, 1.0]
    assert figure.data[0].x[1] == 0.92
    assert not plots.transfer_efficiency(samples.undefined_report()).data


def test_the_layer_that_was_chosen_is_marked() -> None:
    figure = plots.layer_candidates(samples.sample_report())
    assert [name for name in figure.data[0].y if name.endswith("*")] == [
        "15 resid_post to 9 resid_post *"
    ]


# --- page ------------------------------------------------------------------------------------


def test_page_answers_first_and_holds_every_section() -> None:
    page = Page(render(samples.sample_report()))
    answer, table = page.text.index("Transfers"), page.text.index("Effect at matched damage")
    assert answer < table
    assert ("html", {"lang": "en"}) in page.tags
    identifiers = {attributes.get("id") for _, attributes in page.tags}
    assert {"effects", "charts", "texts", "pair", "map", "selection", "limits"} <= identifiers
    for text in ("✓ pass", "? not decided", "One task and one pair of models.", "Protocol L2."):
        assert text in page.text


def test_a_failed_transfer_is_called_one() -> None:
    text = Page(render(samples.failed_report())).text
    assert "Does not transfer" in text
    assert "✗ fail" in text
    assert "0.10 [-0.10, 0.30]; needed: >= 0.8" in text


def test_an_undefined_transfer_is_not_called_a_failure_of_the_map() -> None:
    text = Page(render(samples.undefined_report())).text
    assert "No verdict" in text
    assert "Transfer efficiency is not defined: native not steerable." in text
    assert "Does not transfer" not in text


def test_nulls_and_missing_keys_read_na_and_never_break_the_page() -> None:
    nulled = samples.nulled(samples.sample_report())
    for report in (nulled, samples.minimal_report()):
        text = Page(render(report)).text
        assert "None" not in text
        assert "nan" not in text.split()
    assert "n/a" in Page(render(nulled)).text


def test_every_reference_of_the_page_stays_inside_it(report: Report) -> None:
    for tag, attributes in Page(render(report)).tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "img", "form"}
        assert "src" not in attributes
        assert str(attributes.get("href", "#")).startswith("#")
        assert not [name for name in attributes if name.startswith("on")]


def test_hostile_texts_appear_as_text_and_never_as_markup() -> None:
    calm, hostile = (
        Page(render(make())) for make in (samples.sample_report, samples.hostile_report)
    )
    for text in (samples.HOSTILE_TAG, samples.HOSTILE_CLOSE, samples.HOSTILE_QUOTES):
        assert text in hostile.text
    assert "العربية" in hostile.text
    assert "😀" in hostile.text
    assert r"\x1b[31mred\x07 \ud800" in hostile.text
    # Parsed as a browser would, hostile texts added no script and opened no unknown tag.
    count = [sum(tag == "script" for tag, _ in page.tags) for page in (calm, hostile)]
    assert count[0] == count[1] == 2 + len(plots.FIGURES)
    assert {tag for tag, _ in hostile.tags} <= {tag for tag, _ in calm.tags}
    assert "alert(1)" not in hostile.scripts[-1]


def test_hostile_texts_stay_inside_the_data_of_the_figures() -> None:
    blocks = [text for text in Page(render(samples.hostile_report())).scripts if text[:1] == "{"]
    assert len(blocks) == len(plots.FIGURES)
    for block in blocks:
        assert "<" not in block
        json.loads(block, parse_constant=lambda name: pytest.fail(f"{name} in figure data"))


def test_plotly_is_embedded_once_and_the_page_is_small() -> None:
    source = render(samples.sample_report())
    assert source.count('id="plotly"') == 1
    assert len(source.encode()) < 2_500_000


def test_the_policy_allows_no_connection_and_names_the_scripts_by_hash() -> None:
    (policy,) = [
        str(attributes["content"])
        for _, attributes in Page(render(samples.sample_report())).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    assert "unsafe-inline" not in policy.split("style-src")[0]


def test_rendering_twice_gives_the_same_bytes() -> None:
    assert render(samples.sample_report()) == render(samples.sample_report())


def test_without_plotly_the_page_still_has_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl_transfer.report.assets.plotly_source", lambda: None)
    source = render(samples.sample_report())
    assert "plotly was not installed" in source
    assert "Every measured point" in source
    assert 'id="plotly"' not in source


def test_fragment_needs_no_script_and_keeps_its_styles_to_itself() -> None:
    fragment = report_fragment(samples.hostile_report())
    page = Page(fragment)
    assert "script" not in {tag for tag, _ in page.tags}
    assert samples.HOSTILE_TAG in page.text
    style = re.search(r"<style>(.*?)</style>", fragment, re.DOTALL)
    assert style is not None
    selectors = re.findall(r"([^{}]+)\{", style[1])
    parts = [part.strip() for selector in selectors for part in selector.split(",")]
    assert all(part.startswith(".tl-transfer-report") for part in parts)
    assert len(fragment) < 20_000


def test_save_writes_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_html(samples.hostile_report(), tmp_path / "report.html")
    assert path.read_text(encoding="utf-8").endswith("</html>\n")

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    before = path.read_bytes()
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(InputError, match="disk full"):
        save_html(samples.sample_report(), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("report", [{}, {"format": "other/2"}])
def test_another_format_is_refused_by_name(report: Report) -> None:
    with pytest.raises(InputError) as caught:
        render(report)
    assert "not a report of this format" in str(caught.value)
    assert "valid: format 'tl_transfer.report/1'" in str(caught.value)
