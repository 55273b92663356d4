"""The page `docs/results/features.md` as markdown, from the numbers that the stages left."""

from statistics import median
from typing import Any

#: What a matched feature is about, as it was said on reading it, and how that is called.
KINDS = {
    "content": "a thing, an act or a theme",
    "function": "a function word, or a place in a sentence",
    "punctuation": "punctuation or a letter",
}
ROUTES = ("direction", "match")


def page(results: dict[str, Any], said: dict[str, Any]) -> str:
    """The page as markdown.

    Args:
        results: Name of a pair -> stage -> its numbers.
        said: SAEs of a pair -> match -> ``alike``, ``kind`` and ``label``, from reading.
    """
    head = [
        "# Features of two models",
        "",
        "Written by one command, `python tools/features_page.py`, which trains what SAEs are "
        "missing, goes through every stage of both pairs and can be interrupted at any of them; "
        "all numbers are in [`features.json`](features.json). The texts are general prose (Brown "
        "corpus and World Factbook), on some of which the SAEs were trained. Features are matched "
        "on some documents and scored on others; [Features](../concepts/features.md) says how, "
        "and what each floor "
        "is.",
        "",
        *_overview(results),
        *_saes(results),
    ]
    return "\n".join([*head, *(line for n, r in results.items() for line in _pair(n, r, said))])


def _overview(results: dict[str, Any]) -> list[str]:
    lines = [
        "| pair | live features | matches above floor | held-out r, median | floors: shuffled / "
        "random / procedure (95 %) | coverage at r ≥ 0.5 | of squared activation | steering "
        "beyond every floor |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, r in results.items():
        m, floors = r["match"]["mutual"], r["match"]["mutual"]["floors"]
        best = " / ".join(f"{floors[f]['q95']:.2f}" for f in ("shuffled", "random", "procedure"))
        won = {route: len(_winners(r["steer"], (route,))) for route in ROUTES}
        n = len(r["steer"]["words"])
        lines.append(
            f"| {name} | {m['live']['source']} and {m['live']['target']} | {m['above_floor']} of "
            f"{m['matches']} | {m['r']['median']:.2f} | {best} | {m['coverage']:.1%} | "
            f"{m['mass']:.1%} | {won['direction']} of {n} by direction, {won['match']} by match |"
        )
    return [*lines, ""]


def _winners(steer: dict[str, Any], routes: tuple[str, ...] = ROUTES) -> list[str]:
    """Features that beat every floor by one of these routes."""
    effects = steer["effects"]
    return [f for f in steer["words"] if any((effects[r][f] or {}).get("beats") for r in routes)]


def _saes(results: dict[str, Any]) -> list[str]:
    """One line for each SAE of the page."""
    cards = {card["space"]["model"]: card for r in results.values() for card in r["match"]["cards"]}
    lines = [
        "## The SAEs",
        "",
        "Those of `tl-transfer train-sae MODEL HOOK` with its defaults. FVU, L0 and loss on "
        "documents that were kept back; controls have as many active directions. Minutes are of "
        "processor time on one core (capture, training, scores on the card).",
        "",
        "| SAE | features; rows | FVU | random dictionary | PCA | L0 | never on | loss recovered | "
        "random dictionary | PCA | minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model, c in sorted(cards.items()):
        held, controls = c["held_out"], c["controls"]
        shares = [_share(c["recovered"].get(n)) for n in ("mapped", "random_dictionary", "pca")]
        times = c["processor_seconds"]
        minutes = " + ".join(f"{times[k] / 60:.1f}" for k in times) if times else "not recorded"
        lines.append(
            f"| {model} {c['space']['hook_point']} | {c['settings']['d_sae']:,}; "
            f"{c['rows']['train']:,} | {held['fvu']:.3f} [{held['fvu_ci95'][0]:.3f}, "
            f"{held['fvu_ci95'][1]:.3f}] | {controls['random_dictionary']['fvu']:.3f} | "
            f"{controls['pca']['fvu']:.3f} | {held['l0']:.1f} | {c['dead_share']:.1%} | "
            f"{' | '.join(shares)} | {minutes} |"
        )
    return [*lines, ""]


def _share(arm: Any) -> str:
    if not arm or arm[0] is None:
        return "–"
    return f"{arm[0]:.1%} [{arm[1][0]:.1%}, {arm[1][1]:.1%}]" if arm[1] else f"{arm[0]:.1%}"


def _pair(name: str, r: dict[str, Any], said: dict[str, Any]) -> list[str]:
    m = r["match"]
    mutual, assigned = m["mutual"], m["assignment"]
    return [
        f"## {name}",
        "",
        f"{mutual['rows']['train']:,} rows to match on, {mutual['rows']['held_out']:,} rows of "
        f"{mutual['held_out_documents']} documents to score on. Mutual best gives "
        f"{mutual['matches']} matches, {mutual['at_least']['0.5']} of them above their floors "
        f"with r ≥ 0.5 and {mutual['at_least']['0.7']} with r ≥ 0.7; assignment gives "
        f"{assigned['matches']}, {assigned['at_least']['0.5']} and "
        f"{assigned['at_least']['0.7']}. Matching the same way on wrong pairs gives "
        f"{mutual['floors']['procedure']['matches']} matches, 95 % of them with a held-out r "
        f"below {mutual['floors']['procedure']['q95']:.3f}.",
        "",
        *_regressed(m["regressed"]),
        "",
        *_read(r["read"], said.get(_key(m), {})),
        *_steered(r["steer"], mutual),
        *(_crosscoder(r["crosscoder"]) if r["crosscoder"] else ()),
    ]


def _key(match: dict[str, Any]) -> str:
    return "--".join(match["saes"][side][:12] for side in ("source", "target"))


def _regressed(found: dict[str, Any]) -> list[str]:
    lines = []
    for name, rows in found.items():
        rows = [row for row in rows if row["ci95"] is not None]  # active in held-out rows
        if not rows:
            continue
        middle = {k: median([row[k] for row in rows]) for k in ("r2", "single", "floor")}
        terms = sum(len(row["sources"]) for row in rows) / len(rows)
        lines.append(
            f"- {len(rows)} random target features that are {name}: held-out R² of a sparse "
            f"combination of source features {middle['r2']:.2f} (median; {terms:.1f} terms on "
            f"average), of the best single one {middle['single']:.2f}, floor {middle['floor']:.2f}."
        )
    return ["**Regression.**", "", *lines]


def _read(found: dict[str, Any], said: dict[str, Any]) -> list[str]:
    matches = found["matches"]
    alike = [m for m in matches if said.get(_match(m), {}).get("alike")]
    rest = [m for m in matches if m not in alike]
    read = [m for m in matches if _match(m) in said]
    lines = [
        f"**Read one by one.** The {found['pool']} matches above their floors with r ≥ "
        f"{found['least_r']:g} that are active at {found['least_active']} tokens and more in both "
        f"models, and at {found['densest']:.0%} at most, of {found['n_tokens']:,} tokens, in "
        f"{found['strata']} equal strata by how often they are active; as many from each, drawn at "
        "random. The strongest token of each context is in brackets.",
        "",
    ]
    if read:
        kinds = [said[_match(m)]["kind"] for m in alike]
        parts = [f"{kinds.count(kind)} {name}" for kind, name in KINDS.items()]
        lines += [
            f"On reading, {len(alike)} of {len(read)} are the same feature. What those are about: "
            f"{', '.join(parts)}.",
            "",
        ]
    for title, group in (("Alike", alike), ("Not alike, or not clear", rest)):
        if group:
            lines += [f"### {title}", ""]
        for one in group:
            label = said.get(_match(one), {}).get("label", "not read")
            low, high = one["ci95"] or (float("nan"), float("nan"))
            here, there = (side["n_active"] for side in one["sides"])
            lines += [
                f"**{one['source']} and {one['target']}**: {label}. Held-out r {one['r']:.2f} "
                f"[{low:.2f}, {high:.2f}], shuffled {one['shuffled']:.2f}, random partner "
                f"{one['random']:.2f}; active at {here} and {there} tokens.",
                "",
                *_contexts(one),
                "",
            ]
    return lines


def _match(one: dict[str, Any]) -> str:
    return f"{one['source']}:{one['target']}"


def _contexts(one: dict[str, Any]) -> list[str]:
    lines = ["| source | target |", "| --- | --- |"]
    here, there = (side["contexts"] for side in one["sides"])
    for i in range(min(3, max(len(here), len(there)))):
        cells = [_cell(side[i]) if i < len(side) else "" for side in (here, there)]
        lines.append(f"| {cells[0]} | {cells[1]} |")
    return lines


def _cell(context: dict[str, Any]) -> str:
    text = f"{context['text']}⟦{context['peak']}⟧{context['after']}"
    for old, new in (("\n", " "), ("|", "\\|"), ("<", "&lt;"), ("*", "\\*"), ("_", "\\_"),
                     ("`", "\\`"), ("[", "\\["), ("$", "\\$")):  # fmt: skip
        text = text.replace(old, new)
    return f"{text} ({context['value']:g})"


def _steered(found: dict[str, Any], mutual: dict[str, Any]) -> list[str]:
    n = len(found["words"])
    lines = [
        "### Steering with a transferred feature",
        "",
        f"{n} features with a match, active at no more than {found['densest']:.0%} of tokens, in "
        "the order of their matches' intervals and with words of their own in the source. Every "
        "arm adds its direction everywhere until the KL on neutral text is "
        f"{found['budget']:g} nats a token. Effect: change of the log-probability of the feature's "
        "words, which were measured by steering the source on other prompts; mean and interval "
        f"over {found['n_prompts']} prompts. Floor: the strongest of all others at the same damage "
        "(the other features by both routes, the same feature through the map of shuffled pairs, "
        f"{found['n_random']} random directions, the mapped stream, the reconstructed and mapped "
        "stream). "
        "**Bold**: the paired lead over that floor is above zero with its whole interval. (The "
        "number of prompts was doubled once, after a first run of the first pair with smaller SAEs "
        "that left intervals too wide to tell. Nothing about steering was changed after that; the "
        "SAEs of this page were trained later.)",
        "",
        "| feature | words | by direction | floor | by match | floor | shuffled map |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for feature, words in found["words"].items():
        cells = []
        for route in ("direction", "match"):
            e = found["effects"][route][feature]
            cells += _effect_cells(e)
        shuffled = found["effects"]["shuffled"][feature]
        control = "–" if shuffled is None else f"{shuffled['mean']:+.2f}"
        shown = ", ".join(word.strip() for word in words[:8])
        lines.append(f"| {feature} | {shown} | {' | '.join(cells)} | {control} |")
    live = {f: e for f, e in found["effects"]["live"].items() if e}
    for feature, e in live.items():
        lines += [
            "",
            f"Feature {feature} set in the source that reads along (the paper's route, as "
            f"a difference): {_effect_cells(e)[0]}, floor {_effect_cells(e)[1]}.",
        ]
    missing = [f"{a} ({c['reason']})" for a, c in found["arms"].items() if c["strength"] is None]
    won = _winners(found)
    lost = [f for f in found["words"] if f not in won]
    fooled = [f for f, e in found["effects"]["shuffled"].items() if e and e["beats"]]
    alone = mutual["live"]["source"] - mutual["at_least"]["0.5"]
    lines += [
        "",
        f"**Failures.** {len(lost)} of {n} features beat every floor by neither route"
        + (f" ({', '.join(lost)}). " if lost else ". ")
        + f"The same features through the map of shuffled pairs do so for {len(fooled)} of {n}. "
        f"{alone:,} of {mutual['live']['source']:,} live source features have no match above its "
        "floors with r ≥ 0.5.",
    ]
    if missing:
        lines += ["", "Arms that could not spend the budget: " + "; ".join(missing) + "."]
    return [*lines, ""]


def _effect_cells(e: dict[str, Any] | None) -> list[str]:
    if e is None:
        return ["–", "–"]
    text = f"{e['mean']:+.2f} [{e['ci95'][0]:+.2f}, {e['ci95'][1]:+.2f}]"
    text = f"**{text}**" if e["beats"] else text
    return [text, f"{e['floor']:+.2f} ({e['floor_arm']})"]


def _crosscoder(found: dict[str, Any]) -> list[str]:
    kinds, settings, fvu = found["kinds"], found["settings"], found["fvu"]
    named = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    low, middle, high = found["share_q"]
    return [
        "### One dictionary of both",
        "",
        f"A crosscoder with {settings['n_latents']:,} latents ({settings['k']} on in a row, "
        f"{settings['steps']:,} steps on {found['n_train']:,} paired rows) leaves "
        f"{fvu['source']:.3f} of the variance of the source and {fvu['target']:.3f} of the target "
        f"on {found['n_rows']:,} held-out rows, with {found['l0']:.1f} latents on. The target's "
        f"share of the length of both decoder rows is {middle:.2f} (median; {low:.2f} to "
        f"{high:.2f} in nine latents of ten). By length alone {found['exclusive_by_length']} "
        f"latents would belong to one model; checked on the held-out rows: {named}.",
        "",
    ]
