"""Report of a replacement experiment: rows of the questions, and what was found in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from tl_transfer.evaluation.choices import CHANCE, Choice, choice_entry, cost

FORMAT = "tl_transfer.replacement/1"
#: What replaces in the paper, and what a user would take here.
JUDGED = {
    "paper": "the paper's autoencoder",
    "ridge": "a ridge map",
    "with_questions": "a ridge map that has read questions",
}


def capability(
    choices: Mapping[str, Sequence[Choice]], source: Sequence[Choice], *, seed: int
) -> dict[str, Any]:
    """Rows of the questions: both models by themselves, and every arm with its verdict.

    Args:
        choices: Arm -> answers; ``own`` is the target with nothing on it, in the same passes.
        source: Answers of the source.
        seed: Of the bootstraps.
    """
    own = choices["own"]
    entry = choice_entry(own, own, seed=seed)
    rows = {
        name: choice_entry(some, own, seed=seed) for name, some in choices.items() if name != "own"
    }
    return {
        "chance": CHANCE,
        "own": entry,
        "source": choice_entry(source, own, seed=seed),
        "arms": {name: row | {"verdict": cost(row, entry)} for name, row in rows.items()},
    }


def sentences(report: Mapping[str, Any]) -> list[str]:
    """The findings, each with its numbers."""
    asked, target = report["capability"], report["pair"]["target"]["model"]
    arms, own = asked["arms"], asked["own"]
    n = own["accuracy"]["n"]
    lines = [_fidelity(report)]
    if own["accuracy"]["ci95"][0] <= CHANCE:
        lines.append(
            f"{target} answers {_rate(own['accuracy'])} of {n} questions (chance 25 %): what "
            "replacement or steering costs it in knowledge cannot be answered with this model."
        )
        return lines
    for name, title in JUDGED.items():
        row = arms[name]
        lines.append(
            f"{target} with its stream replaced through {title} answers {_rate(row['accuracy'])} "
            f"of {n} questions, by itself {_rate(own['accuracy'])} (chance 25 %; change "
            f"{_points(row['change'])} points, paired): {row['verdict']}. As free text, where the "
            f"letter must be the likeliest of all tokens: {_rate(row['said'])}, by itself "
            f"{_rate(own['said'])}."
        )
    for name, row in arms.items():
        if name.startswith("transferred@"):
            lines.append(
                f"Steering with a transferred direction at a KL of {name.split('@')[1]} nats on "
                f"prose: {_rate(row['accuracy'])}, change {_points(row['change'])} points: "
                f"{row['verdict']}."
            )
    return lines


def _fidelity(report: Mapping[str, Any]) -> str:
    rows, kl = report["fidelity"], report["losses"]["own_text"]["arms"]
    best = max(JUDGED, key=lambda name: rows[name]["rouge_l"]["mean"])
    return (
        "Fidelity of full replacement, KL to the unreplaced target on its own texts and ROUGE-L of "
        "what it writes: "
        + "; ".join(
            f"{title} {kl[name]['kl']:.2f} nats, {rows[name]['rouge_l']['mean']:.2f}"
            for name, title in {
                best: JUDGED[best],
                **{k: v for k, v in JUDGED.items() if k != best},
                "shuffled": "map of shuffled pairs",
                "mean_ablation": "mean ablation",
            }.items()
        )
        + f" (its own text to another prompt: {rows['another_prompt']['rouge_l']['mean']:.2f}; "
        f"n {rows[best]['n']})."
    )


def _rate(entry: Mapping[str, Any]) -> str:
    low, high = entry["ci95"]
    return f"{100 * entry['rate']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def _points(change: Mapping[str, Any]) -> str:
    low, high = change["ci95"]
    return f"{100 * change['difference']:+.0f} [{100 * low:+.0f}, {100 * high:+.0f}]"
