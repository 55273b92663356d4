"""What a matrix run writes for readers: JSON, one page in Markdown, and one with heat maps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl_transfer.files import write_atomic
from tl_transfer.report import matrix_tables
from tl_transfer.report.table import render_text
from tl_transfer.sealed import write_json
from tl_transfer.views import Chart, save_page, transfer_matrix


def write(report: dict[str, Any], folder: Path) -> None:
    """``report.md``, ``matrix.html`` and, last, ``report.json``."""
    save_page(folder / "matrix.html", *charts(report).values(), title="Transfer matrix")
    page = markdown(report)
    write_atomic(folder / "report.md", lambda path: path.write_text(page, encoding="utf-8"))
    write_json(folder / "report.json", report, indent=1, allow_nan=False, ensure_ascii=False)


def charts(report: dict[str, Any]) -> dict[str, Chart]:
    """Behaviour -> heat map of its transfer efficiency."""
    return {
        name: transfer_matrix(
            matrix_tables.heat_cells(report, name),
            measure=f"{part['title']}: transfer efficiency at equal damage",
        )
        for name, part in report["behaviours"].items()
    }


def markdown(
    report: dict[str, Any],
    *,
    pictures: Mapping[str, str] | None = None,
    source: str = "every number is in `report.json`",
) -> str:
    """The page: sentences, heat maps, tables, what was written, limits, versions.

    Args:
        report: From `tl_transfer.experiments.matrix.run`.
        pictures: Behaviour -> address of its heat map.
        source: Where the numbers are.
    """
    recipe = report["recipe"]
    names = list(report["behaviours"])
    blocks = [
        "# Directions between every pair of models",
        f"{' and '.join(map(str.capitalize, names))}, for every ordered pair of "
        f"{len(recipe['models'])} models. Every arm of a pair (the target's own vector, the moved "
        "one, the one moved by a map of shuffled pairs, random directions) is added at the "
        f"strength at which its KL on validation prose is {recipe['budget']:g} nats a token; "
        "effects are measured on prompts that nothing was fitted or chosen on. Efficiency "
        f"is the moved vector's effect over the native one's; {source}.",
        "A pair *transfers* if its efficiency is at least 0.8 with the lower end of its interval "
        "above 0.5 and its effect is beyond every control in both signs. It is *weaker than "
        "native* if it is beyond every control, but short of that, and *no better than controls* "
        "otherwise. *Native not steerable*: the target's own vector does no more than a random "
        "one, so there is nothing to compare with; such pairs are in no average.",
    ]
    for name in names:
        blocks += _section(report, name, (pictures or {}).get(name))
    blocks += ["## What this does not show", _bullets(_limits(report))]
    blocks += ["## How it was run", _bullets(_facts(report))]
    return "\n\n".join(blocks) + "\n"


def _section(report: dict[str, Any], name: str, picture: str | None) -> list[str]:
    title = report["behaviours"][name]["title"]
    return [
        f"## {name.capitalize()}",
        matrix_tables.sentence(report, name),
        *([f"![{title}: transfer efficiency of every ordered pair]({picture})"] if picture else []),
        _fenced(render_text(matrix_tables.pair_table(report, name))),
        _fenced(render_text(matrix_tables.model_table(report, name))),
        f"What each model writes under its own vector and under moved ones, in both signs; "
        f"evenly spaced prompts, greedy ({report['behaviours'][name]['scorer']} is in the JSON).",
        _fenced("\n".join(matrix_tables.examples(report, name)) or "none"),
    ]


def _limits(report: dict[str, Any]) -> list[str]:
    common = [
        "One seed, one choice of texts, one pair of layers for each pair of models: the intervals "
        "are over prompts and do not cover those choices.",
        "The layer of a model is chosen by its own vector, so the choice uses labels in the "
        "target; the moved vector itself does not.",
        "Next-token log-odds of fixed words are not a judgement of what is written.",
    ]
    notes = {
        f"{model}: {entry['note']}."
        for part in report["behaviours"].values()
        for model, entry in part["models"].items()
        if entry["note"]
    }
    own = [
        f"{name}: {text}" for name, part in report["behaviours"].items() for text in part["limits"]
    ]
    return [*common, *own, *sorted(notes)]


def _facts(report: dict[str, Any]) -> list[str]:
    recipe, versions = report["recipe"], report["versions"]
    seconds = [value for pair in report["seconds"].values() for value in pair if value]
    protocols = {
        f"{n} {p['protocol']}: {p['protocol_note']}" for n, p in report["behaviours"].items()
    }
    return [
        f"{recipe['dtype']}, {report['n_fit_texts']} texts for every map, {recipe['method']}, "
        f"{recipe['n_contrast']} contrast texts of each pole, {recipe['n_neutral']} passages of "
        f"prose on validation and on test, seed {recipe['seed']}",
        f"layer: {report['criterion']}",
        *(f"level of {text}" for text in sorted(protocols)),
        f"{sum(seconds) / 60:.0f} minutes with models in memory, one at a time",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"{report['created'][:10]}; code of the parts: {', '.join(report['codes'])}",
    ]


def _fenced(text: str) -> str:
    return f"```text\n{text}\n```"


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
