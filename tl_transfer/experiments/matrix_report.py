"""What a matrix run writes for readers: JSON, one page in Markdown, and one with figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl_transfer.files import write_atomic
from tl_transfer.report import mapper_tables, matrix_tables
from tl_transfer.report.map_differences import map_differences
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
    """Behaviour -> its figure: a heat map, or with several maps what each gains over the first."""
    if _several(report):
        return {
            name: Chart.of(
                map_differences(report, name),
                mapper_tables.difference_table(report, name),
                report["mappers"]["by_behaviour"][name],
            )
            for name in report["behaviours"]
        }
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
    beside: str = "",
) -> str:
    """The page: sentences, figures, tables, what was written, limits, versions.

    Args:
        report: From `tl_transfer.experiments.matrix.run`.
        pictures: Behaviour -> address of its figure.
        source: Where the numbers are.
        beside: What was measured elsewhere and belongs beside the answer, in Markdown.
    """
    recipe = report["recipe"]
    names = list(report["behaviours"])
    several = _several(report)
    blocks = [
        "# Is a nonlinear map needed? Maps and pairs of models"
        if several
        else "# Directions between every pair of models",
        *_answer(report, beside),
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
    title, several = report["behaviours"][name]["title"], _several(report)
    drawn = "other maps against the first" if several else "transfer efficiency"
    return [
        f"## {name.capitalize()}",
        matrix_tables.sentence(report, name),
        *([f"![{title}: {drawn}, every ordered pair]({picture})"] if picture else []),
        *([_fenced(render_text(mapper_tables.difference_table(report, name)))] if several else []),
        _fenced(render_text(matrix_tables.pair_table(report, name))),
        _fenced(render_text(matrix_tables.model_table(report, name))),
        f"What each model writes under its own vector and under moved ones, in both signs; "
        f"evenly spaced prompts, greedy ({report['behaviours'][name]['scorer']} is in the JSON).",
        _fenced("\n".join(matrix_tables.examples(report, name)) or "none"),
    ]


def _several(report: dict[str, Any]) -> bool:
    return len(mapper_tables.names(report)) > 1


def _answer(report: dict[str, Any], beside: str) -> list[str]:
    """Whether another map than the first is needed, before anything else."""
    if not _several(report):
        return []
    said = [mapper_tables.conclusion(report), _bullets(mapper_tables.answers(report))]
    return [*said, beside] if beside else said


def _limits(report: dict[str, Any]) -> list[str]:
    common = [
        "One seed, one choice of texts, one pair of layers for each pair of models: the intervals "
        "are over prompts and do not cover those choices.",
        "The layer of a model is chosen by its own vector, so the choice uses labels in the "
        "target; the moved vector itself does not.",
        "Next-token log-odds of fixed words are not a judgement of what is written.",
    ]
    if _several(report):
        common += [
            "Every map was trained once: intervals do not cover another start of a network, nor "
            "another choice of texts.",
            "A difference of efficiency is one of directions alone: all arms are compared at equal "
            "damage, so a map that gets only the length wrong loses nothing.",
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
        f"{recipe['dtype']}, {report['n_fit_texts']} texts for every map, "
        f"{recipe['n_contrast']} contrast texts of each pole, {recipe['n_neutral']} passages of "
        f"prose on validation and on test, seed {recipe['seed']}",
        f"layer: {report['criterion']}",
        *(f"level of {text}" for text in sorted(protocols)),
        f"{sum(seconds) / 60:.0f} minutes with models in memory, one at a time",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        *_maps(report),
        f"{report['created'][:10]}; code of the parts: {', '.join(report['codes'])}",
    ]


def _maps(report: dict[str, Any]) -> list[str]:
    """How each kind of map was fitted, how its vectors went through, and what it cost."""
    cells = [entry for part in report["behaviours"].values() for entry in part["cells"]]
    found = []
    for name in mapper_tables.names(report):
        mine = [entry["map"] for entry in cells if entry["mapper"] == name]
        rules = ", ".join(sorted({str(entry["rule"]) for entry in mine}))
        seconds = report["fit_seconds"][name]
        took = f"; {seconds[0]:.0f} to {seconds[-1]:.0f} s with its control" if seconds else ""
        found.append(f"{mapper_tables.title(report, name)}: rule for directions {rules}{took}")
    return found


def _fenced(text: str) -> str:
    return f"```text\n{text}\n```"


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
