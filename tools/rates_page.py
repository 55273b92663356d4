"""Write docs/results/NAME.md and .json: `python tools/rates_page.py RUN NAME [NOTE ...]`.

A note is a limit of this one run, for the page: what was going on beside it, say.
"""

import json
import shutil
import sys
from pathlib import Path

from tl_transfer.report.rate_tables import render_rates
from tl_transfer.report.switch_tables import render_switch, sentences

ROOT = Path(__file__).resolve().parent.parent


def page(data: dict, name: str, command: str, notes: list[str]) -> str:
    """The run as a page: verdicts, tables, what it does not show, how to repeat it."""
    pair = data["pair"]
    is_switch = data["format"] == "tl_transfer.switch/1"
    said = sentences(data) if is_switch else [v["sentence"] for v in data["verdicts"].values()]
    lines = [
        f"# {data['task'].capitalize()}: {pair['source']['model']} to {pair['target']['model']}",
        "",
        *(f"- {sentence}" for sentence in said),
        "",
        f"Written by `tools/rates_page.py` from a run of {data['created'][:10]} "
        f"(`{command}`); every number is in [`{name}.json`]({name}.json). Protocol level "
        f"{data['protocol']}: {data['protocol_note']}.",
        "",
        "```text",
        (render_switch if is_switch else render_rates)(data).strip(),
        "```",
        "",
        "## What this does not show",
        "",
        *(f"- {limit}" for limit in [*data["limits"], *notes]),
        "",
        "## Versions",
        "",
        ", ".join(f"{key} {value}" for key, value in data["versions"].items())
        + f". Seeds: {data['seeds']}. Code of the parts: {', '.join(data.get('codes', []))}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    run, name = Path(sys.argv[1]), sys.argv[2]
    data = json.loads((run / "report.json").read_text(encoding="utf-8"))
    folder = ROOT / "docs" / "results"
    folder.mkdir(exist_ok=True)
    command = f"tl-transfer run recipes/{name}.toml"
    (folder / f"{name}.md").write_text(page(data, name, command, sys.argv[3:]), encoding="utf-8")
    shutil.copyfile(run / "report.json", folder / f"{name}.json")


if __name__ == "__main__":
    main()
