"""Write docs/results/NAME.md and .json: `python tools/rates_page.py RUN NAME [NOTE ...]`.

RUN is the folder of a run of recipes/NAME.toml, or ``toy``: the corrupted capabilities that
`tests/laws/test_capabilities.py` checks are then run here, on tiny models. A note is a limit of
this one run, for the page: what was going on beside it, say.
"""

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

from tl_transfer.report import capability_tables, replacement_tables, switch_tables
from tl_transfer.report.rate_tables import render_rates

ROOT = Path(__file__).resolve().parent.parent


def _verdicts(data: dict) -> list[str]:
    return [verdict["sentence"] for verdict in data["verdicts"].values()]


#: Format of a report -> what it says in sentences, and in tables.
KINDS: dict[str, tuple[Callable[[dict], list[str]], Callable[[dict], str]]] = {
    "tl_transfer.rates/1": (_verdicts, render_rates),
    "tl_transfer.replacement/1": (
        replacement_tables.sentences, replacement_tables.render_replacement,
    ),
    "tl_transfer.switch/1": (switch_tables.sentences, switch_tables.render_switch),
    "tl_transfer.capabilities/1": (
        capability_tables.sentences, capability_tables.render_capabilities,
    ),
}  # fmt: skip


def page(data: dict, name: str, command: str, notes: list[str]) -> str:
    """The run as a page: verdicts, tables, what it does not show, how to repeat it."""
    pair = data["pair"]
    sentences, render = KINDS[data["format"]]
    lines = [
        f"# {data['task'].capitalize()}: {pair['source']['model']} to {pair['target']['model']}",
        "",
        *(f"- {sentence}" for sentence in sentences(data)),
        "",
        f"Written by `tools/rates_page.py` from a run of {data['created'][:10]} "
        f"(`{command}`); every number is in [`{name}.json`]({name}.json). Protocol level "
        f"{data['protocol']}: {data['protocol_note']}.",
        "",
        "```text",
        render(data).strip(),
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


def _toy(folder: Path) -> Path:
    sys.path.insert(0, str(ROOT))
    from tests.toy_capabilities import run

    with chdir(folder):  # so that the report names no temporary folder
        run(Path())
    return folder / "run"


def main() -> None:
    """Entry point."""
    given, name, notes = sys.argv[1], sys.argv[2], sys.argv[3:]
    command = f"tl-transfer run recipes/{name}.toml"
    with TemporaryDirectory() as temporary:
        run = Path(given)
        if given == "toy":
            run, command = _toy(Path(temporary)), f"python tools/rates_page.py toy {name}"
        data = json.loads((run / "report.json").read_text(encoding="utf-8"))
        folder = ROOT / "docs" / "results"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.md").write_text(page(data, name, command, notes), encoding="utf-8")
        shutil.copyfile(run / "report.json", folder / f"{name}.json")


if __name__ == "__main__":
    main()
