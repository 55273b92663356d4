"""Tables of a report of full replacement (``tl_transfer.replacement/1``)."""

import textwrap
from typing import Any

from tl_transfer.report.rate_tables import percent_ci, plain_count, value_ci
from tl_transfer.report.reading import MISSING, Report, dig, interval, number, real
from tl_transfer.report.table import Cell, Table, render_text

NAMES = {
    "own": "nothing on it",
    "source": "the source by itself",
    "shuffled": "ridge on shuffled pairs",
    "mean_ablation": "mean ablation",
    "another_prompt": "its own, another prompt",
    "identity": "the source's as it is",
    "native": "native",
    "transferred": "transferred",
    "random_isotropic": "random",
}


#: What replaces in the paper, and what a user would take here.
JUDGED = {
    "paper": "the paper's autoencoder",
    "ridge": "a ridge map",
    "with_questions": "a ridge map that has read questions",
}


#: Part of a report -> what is asked in it.
ASKED = {
    "capability": "multiple-choice questions (MMLU, answered by a letter)",
    "knowledge": "capitals and countries (a sentence goes on with one of four names)",
}


def sentences(report: Report) -> list[str]:
    """The findings, each with its numbers."""
    asked, target = report["capability"], report["pair"]["target"]["model"]
    arms, own = asked["arms"], asked["own"]
    form = "; ".join(
        f"{what} {percent_ci(arms[name]['on_form']).text}" for name, what in _judged(arms).items()
    )
    lines = [_fidelity(report)] if report["fidelity"] else []
    lines.append(
        f"The form of an answer: after a question the likeliest token of {target} is a letter in "
        f"{percent_ci(own['on_form']).text} by itself; {form}."
    )
    return lines + [_knowledge(report, part) for part in ASKED if part in report]


def _judged(arms: Report) -> dict[str, str]:
    """The arms that a reader asks for first, with their controls."""
    steered = {
        name: f"steered at a KL of {name.split('@')[1]} nats"
        for name in arms
        if name.startswith("transferred@")
    }
    return {
        **{name: f"replaced through {title}" for name, title in JUDGED.items()},
        "shuffled": "through a map of shuffled pairs",
        "mean_ablation": "by its mean",
        **steered,
    }


def _knowledge(report: Report, part: str) -> str:
    asked, target = report[part], report["pair"]["target"]["model"]
    own, arms = asked["own"], asked["arms"]
    begins = (
        f"Knowledge, {ASKED[part]}: {target} is right in {percent_ci(own['accuracy']).text} of "
        f"{own['accuracy']['n']} by itself (chance 25 %), {report['pair']['source']['model']} in "
        f"{percent_ci(asked['source']['accuracy']).text}"
    )
    if own["accuracy"]["ci95"][0] <= asked["chance"]:
        return f"{begins}, so these cannot tell what replacement or steering costs."
    said = "; ".join(
        f"{what} {percent_ci(arms[name]['accuracy']).text}, {points(arms[name]['change'])} points, "
        f"{arms[name]['verdict']}"
        for name, what in _judged(arms).items()
    )
    return f"{begins}; {said} (changes paired)."


def _fidelity(report: Report) -> str:
    rows, kl = report["fidelity"], report["losses"]["own_text"]["arms"]
    named = {
        "ours": "our autoencoder", **JUDGED, "shuffled": "map of shuffled pairs",
        "mean_ablation": "mean ablation",
    }  # fmt: skip
    said = "; ".join(
        f"{title} {number(kl[name]['kl'])} nats, {number(rows[name]['rouge_l']['mean'])}"
        for name, title in named.items()
    )
    return (
        "Fidelity of full replacement, KL to the unreplaced target on its own texts and ROUGE-L "
        f"of what it writes to what it writes by itself: {said} (its own text to another prompt: "
        f"{number(rows['another_prompt']['rouge_l']['mean'])}; n {rows['ridge']['n']})."
    )


def arm_name(report: Report, name: str) -> str:
    """``replaced: ridge``, ``added: native, KL 0.05``."""
    if "@" in name:
        direction, budget = name.split("@")
        return f"added: {NAMES.get(direction, direction)}, KL {budget}"
    title = dig(report, "maps", name, "title")
    if title or name in ("shuffled", "mean_ablation", "identity"):
        return f"replaced: {title or NAMES[name]}"
    return NAMES.get(name, name)


def question_table(report: Report, part: str = "capability") -> Table:
    """Every arm on one kind of questions."""
    asked = dig(report, part) or {}
    entries = {"own": dig(asked, "own"), "source": dig(asked, "source")}
    rows = []
    for name, entry in {**entries, **(dig(asked, "arms") or {})}.items():
        if not entry:
            continue
        change = "" if name == "own" else points(dig(entry, "change"))
        rows.append(
            (
                Cell(arm_name(report, name)),
                percent_ci(dig(entry, "accuracy")),
                Cell(change, real(dig(entry, "change", "difference"))),
                value_ci(dig(entry, "log_p"), 2),
                percent_ci(dig(entry, "said")),
                percent_ci(dig(entry, "on_form")),
                Cell(str(entry.get("verdict", ""))),
            )
        )
    data, n = dig(report, "data") or {}, dig(asked, "own", "accuracy", "n")
    of = f"{data.get('n_subjects')} subjects"
    if part == "knowledge":
        of = f"{data.get('n_countries')} countries, each option by its first token"
    return Table(
        title=ASKED[part].capitalize(),
        columns=("arm", "right of four", "change", "log p of it", "right of all tokens",
                 "writes one of four", "verdict"),
        rows=tuple(rows),
        note=f"{n} questions of {of}. Right of four: the right one is the likeliest of the four "
        "(chance 25 %). Right of all tokens: of the whole vocabulary. Change: points, paired, "
        "95 % bootstrap interval; other brackets: 95 % Wilson. Log p: of the right one among the "
        "four, in nats (guessing -1.39). Collapses: worse, and not above chance.",
    )  # fmt: skip


def loss_table(report: Report) -> Table:
    """Every arm: loss and KL on prose and on the target's own texts."""
    losses = dig(report, "losses") or {}
    rows = []
    for name, entry in (dig(losses, "neutral", "arms") or {}).items():
        theirs = dig(losses, "own_text", "arms", name)
        rows.append(
            (
                Cell(arm_name(report, name)),
                _fvu(report, name),
                *(_with_ci(entry, key) for key in ("loss", "recovered", "kl")),
                *(_with_ci(theirs, key) for key in ("recovered", "kl")),
            )
        )
    shares = [f"{100 * (dig(losses, part, 'coverage') or 0):.0f} %" for part in losses]
    own = " and ".join(number(dig(losses, part, "loss")) for part in ("neutral", "own_text"))
    return Table(
        title="Loss of the target",
        columns=("arm", "held-out FVU", "loss on prose", "recovered", "KL", "recovered, own text",
                 "KL, own text"),
        rows=tuple(rows),
        note=f"Nats a token; nothing on it: {own}. Recovered: of the loss that mean ablation "
        "costs. Own text: prompts and what the target writes after them. Read at replaced "
        f"positions ({' and '.join(shares)} of the tokens); 95 % bootstrap intervals over texts.",
    )  # fmt: skip


def fidelity_table(report: Report) -> Table:
    """What the target writes with its stream replaced."""
    rows = []
    for name, entry in (dig(report, "fidelity") or {}).items():
        rows.append(
            (
                Cell(arm_name(report, name)),
                *(value_ci(dig(entry, key), 2) for key in ("rouge_1", "rouge_l", "cosine")),
                _rate_or_nothing(dig(entry, "beats_ablation")),
                _rate_or_nothing(dig(entry, "like_target")),
                percent_ci(dig(entry, "broken")),
                plain_count(dig(entry, "n")),
            )
        )
    return Table(
        title="What the target writes, against what it writes by itself",
        columns=("arm", "ROUGE-1", "ROUGE-L", "embedding cosine", "beats mean ablation",
                 "nearer to it than to the source", "broken", "n"),
        rows=tuple(rows),
        note="Greedy continuations; while it writes, every token but the first is replaced. Beats: "
        "share of prompts with a higher ROUGE-L than the mean-ablated text (a tie is none). "
        "Broken: repeats itself, has no words, or is less likely under the target than 99 % of "
        "its own texts.",
    )  # fmt: skip


def example_table(report: Report) -> Table:
    """A few continuations."""
    rows = [
        (Cell(example["prompt"][:60]), Cell(arm_name(report, name)), Cell(text))
        for example in dig(report, "examples") or []
        for name, text in example["texts"].items()
    ]
    return Table(
        title="Continuations, evenly spaced prompts",
        columns=("prompt", "arm", "goes on"),
        rows=tuple(rows),
        numeric=False,
    )


def points(change: Any) -> str:
    """``-12 [-18, -6]``."""
    value, ends = real(dig(change, "difference")), interval(dig(change, "ci95"))
    if value is None or ends is None:
        return MISSING
    return f"{100 * value:+.0f} [{100 * ends[0]:+.0f}, {100 * ends[1]:+.0f}]"


def render_replacement(report: Report) -> str:
    """The whole report as text."""
    pair = report["pair"]
    lines = [
        f"replacement: {pair['source']['model']} {pair['source']['hook_point']} in place of "
        f"{pair['target']['model']} {pair['target']['hook_point']}",
        *textwrap.wrap(f"Protocol level {report['protocol']}: {report['protocol_note']}.", 96),
    ]
    for line in sentences(report):
        lines += ["", *textwrap.wrap(line, 96)]
    for table in (
        *(question_table(report, part) for part in ASKED), loss_table(report),
        fidelity_table(report), example_table(report)
    ):  # fmt: skip
        if table.rows:
            lines += ["", render_text(table)]
    return "\n".join(lines)


def _fvu(report: Report, name: str) -> Cell:
    value = real(dig(report, "maps", name, "fvu"))
    return Cell("" if value is None else number(value), value)


def _with_ci(entry: Any, key: str) -> Cell:
    found = {"mean": dig(entry, key), "ci95": dig(entry, f"{key}_ci95")}
    return value_ci(found, 2)


def _rate_or_nothing(entry: Any) -> Cell:
    return percent_ci(entry) if entry else Cell("")
