"""Write docs/results/NAME.md and .json from a run: `python tools/results_page.py RUN NAME`."""

import json
import shutil
import sys
from pathlib import Path

from tl_transfer.experiments import matrix, matrix_report
from tl_transfer.report import tables

ROOT = Path(__file__).resolve().parent.parent


def page(data: dict, name: str) -> str:
    """The run as a page: verdict, tables, what it does not show, how to repeat it."""
    pair = data["pair"]
    lines = [
        f"# {data['task'].capitalize()}: {pair['source']['model']} to {pair['target']['model']}",
        "",
        data["verdict"]["sentence"],
        "",
        f"Written by `tools/results_page.py` from a run of {data['created'][:10]}; every number is "
        f"in [`{name}.json`]({name}.json), explained in "
        "[the report's schema](../reference/report_json.md) and in "
        "[Reading a report](../concepts/reading_a_report.md).",
        "",
        "```text",
        tables.render_report(data).strip(),
        "```",
        "",
        "## What was tried on validation",
        "",
        f"Criterion: {data['selection']['criterion']}.",
        "",
        "| source | target | held-out FVU | cosine to native | native | transferred |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for c in data["selection"]["candidates"]:
        effect = c["validation_effect"]
        lines.append(
            f"| {c['source']} | {c['target']} | {c['held_out_fvu']:.2f} | "
            f"{c['cosine_to_native']:.2f} | {effect['native']:.2f} | {effect['transferred']:.2f} |"
        )
    lines += ["", "## What this does not show", ""]
    lines += [f"- {limit}" for limit in data["limits"]]
    versions = ", ".join(f"{key} {value}" for key, value in data["versions"].items())
    lines += ["", "## Versions", "", f"{versions}. Seconds: {data['timings']}.", ""]
    return "\n".join(lines)


def switch_rows() -> str:
    """The one task where a nonlinear map was expected to pay, from its own run, as a table."""
    found = json.loads((ROOT / "docs/results/switch-small.json").read_text(encoding="utf-8"))
    lines = [
        "The same question for [the safety switch](switch-small.md), where a map runs inside the "
        "model and a nonlinear one was expected to pay (points more of triggered prompts answered "
        "like the base, paired):",
        "",
        "| where | nonlinear minus affine, points | McNemar p | n |",
        "| --- | --- | --- | --- |",
    ]
    for where, claim in found["claim"].items():
        low, high = (100 * end for end in claim["ci95"])
        lines.append(
            f"| {where} | {100 * claim['difference']:+.0f} [{low:+.0f}, {high:+.0f}] | "
            f"{claim['p_mcnemar']:.2f} | {claim['n']} |"
        )
    return "\n".join(lines)


def matrix_page(data: dict, name: str) -> str:
    """The run's own page, with its figures as pictures."""
    pictures = {}
    for behaviour, chart in matrix_report.charts(data).items():
        file = f"{name}-{behaviour}.png"
        chart.save_png(ROOT / "docs" / "images" / file, width=900, height=640)
        pictures[behaviour] = f"../images/{file}"
    source = f"every number is in [`{name}.json`]({name}.json)"
    beside = switch_rows() if len(data["mappers"]["titles"]) > 1 else ""
    return matrix_report.markdown(data, pictures=pictures, source=source, beside=beside)


def main() -> None:
    """Entry point."""
    run, name = Path(sys.argv[1]), sys.argv[2]
    data = json.loads((run / "report.json").read_text(encoding="utf-8"))
    folder = ROOT / "docs" / "results"
    folder.mkdir(exist_ok=True)
    text = matrix_page(data, name) if data["format"] == matrix.FORMAT else page(data, name)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    shutil.copyfile(run / "report.json", folder / f"{name}.json")


if __name__ == "__main__":
    main()
