"""The page `docs/results/features.md`: what the SAEs of two models share, on real pairs.

    python tools/features_page.py              # all of it
    python tools/features_page.py --pair 0 --stage match
    python tools/features_page.py --stage page

The SAEs are small ones that are trained first (minutes each); pass others with `--saes`. Rows of
the texts are captured once into the folder `--cache`, where every stage leaves its numbers; a run
that was interrupted goes on after the last complete stage. What was said of the matches on reading
them is in `docs/results/features_read.json`, by the SAEs' fingerprints.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

import tl_transfer as tt
from tl_transfer.data.corpora import Document, general
from tl_transfer.evaluation.feature_effects import MIN_WORDS, EffectTable
from tl_transfer.features.edit import Reconstruction
from tl_transfer.features.inspect import Context
from tl_transfer.files import write_atomic
from tl_transfer.models.surface import Site
from tl_transfer.sae.corpus import general_corpus
from tl_transfer.sae.settings import SaeSettings
from tl_transfer.sae.train import default_folder, train_sae

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
#: The SAEs of the page: small, so that the whole page is minutes.
N_TOKENS = 70_000
SAE = SaeSettings(d_sae=2048, k=24, epochs=4, learning_rate=2e-3, dead_after_rows=20_000)
#: Passages whose rows are matched on, and those that are looked at.
N_TEXTS, N_READ = 260, 100
#: Matches that are shown, drawn at random; `features_read.json` says which are one feature.
N_SHOWN = 16
#: Features that are steered with, of those tried; nats a token of damage.
N_STEERED, N_TRIED, BUDGET = 8, 12, 0.1
#: Features active at more tokens say too little of any one of them.
DENSEST = 0.05
N_RANDOM, N_LIVE = 4, 1
PROMPTS = (
    "She opened the door and", "The report said that", "In the morning they", "He wrote that the",
    "Most of the people", "At the end of the day", "The first thing to know is", "When I was young",
    "According to the law,", "The river", "My friend told me about", "On the table there was",
    "It is well known that", "The company announced", "After the war,", "Nobody expected the",
    "The best way to", "Last year the government", "Children often", "There are many reasons why",
    "The doctor looked at", "In this chapter we", "The old man", "To make the dish,",
    "I would like to", "The weather in the north", "Two of the men", "Her answer was",
    "If you want to learn", "The price of bread", "We asked the teacher", "During the summer",
    "The main difference is", "They walked along the", "A long time ago", "People who live here",
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Two models and the hook point of the SAE of each."""

    source: str
    target: str
    points: tuple[str, str]

    @property
    def name(self) -> str:
        """Folder of the pair."""
        here, there = (point.replace("resid_post@", "") for point in self.points)
        return f"{self.source}-{here}--{self.target}-{there}"


PAIRS = (
    Pair("smollm2-135m-instruct", "gemma-3-270m", ("resid_post@15", "resid_post@9")),
    Pair("qwen2.5-coder-0.5b-instruct", "gemma-3-270m", ("resid_post@12", "resid_post@9")),
)


@dataclass(frozen=True)
class Loaded:
    """Everything that is loaded of a pair."""

    here: Site
    there: Site
    saes: tuple[tt.Dictionary, tt.Dictionary]
    folders: tuple[Path, Path]


def loaded(pair: Pair, saes: Path) -> Loaded:
    """Models and SAEs; what is not in the folder is trained."""
    sites = [
        tt.load_model(name).at(point)
        for name, point in zip((pair.source, pair.target), pair.points, strict=True)
    ]
    found = []
    for site in sites:
        folder = saes / default_folder(site).name
        if not (folder / "card.json").is_file():
            train_sae(
                site, folder=folder, corpus=general_corpus(N_TOKENS), settings=SAE, loss=False
            )
        found.append(tt.load_sae(folder, site=site))
    folders = tuple(saes / default_folder(site).name for site in sites)
    return Loaded(sites[0], sites[1], (found[0], found[1]), (folders[0], folders[1]))


def _card(folder: Path) -> dict[str, Any]:
    """What an SAE keeps of unseen documents."""
    card = _read_json(folder / "card.json")
    return {"held_out": card.get("held_out"), "rows": card.get("rows")}


def passages() -> list[Document]:
    """Passages of general prose."""
    return general(N_TEXTS, seed=1, min_chars=400, max_chars=900)


def stores(pair: Pair, it: Loaded, cache: Path) -> list[tt.ActivationStore]:
    """Rows of both models, read once."""
    docs = passages()
    return [
        tt.capture(
            site,
            [d.text for d in docs],
            documents=[d.document for d in docs],
            store=cache / "rows" / f"{site.model.name}-{site.point.name}",
        )
        for site in (it.here, it.there)
    ]


# -- stages --------------------------------------------------------------------------------------


def match(pair: Pair, it: Loaded, cache: Path) -> dict[str, Any]:
    """Correlate, match in both ways, regress, fit the map."""
    here, there = stores(pair, it, cache)
    folder = cache / pair.name
    sums = tt.correlate_features(here, there, *it.saes)
    mutual = tt.match_features(sums)
    tt.save(mutual, folder / "matches.safetensors")
    assigned = tt.match_features(sums, method="assignment")
    tt.save(tt.fit(here, there), folder / "mapper.safetensors")
    generator = torch.Generator().manual_seed(0)
    regressed = {}
    live = mutual.live_target.nonzero()[:, 0]
    alone = live[~torch.isin(live, mutual.target[mutual.above_floor])]
    matched = mutual.target[mutual.above_floor]
    for name, pool in (("matched", matched), ("unmatched", alone)):
        chosen = pool[torch.randperm(len(pool), generator=generator)[:60]]
        found = tt.regress_features(sums, chosen) if len(chosen) else []
        regressed[name] = [one.to_json() for one in found]
    return {
        "saes": {"source": it.saes[0].identity, "target": it.saes[1].identity},
        "cards": [_card(folder) for folder in it.folders],
        "tokens": str(sums.report),
        "mutual": mutual.summary,
        "assignment": assigned.summary,
        "regressed": regressed,
    }


def read(pair: Pair, it: Loaded, cache: Path) -> dict[str, Any]:
    """Matches drawn at random, with their contexts in both models."""
    matches = tt.load(cache / pair.name / "matches.safetensors")
    assert isinstance(matches, tt.FeatureMap)
    matches.require(*it.saes)
    docs = passages()[:N_READ]
    readings = [
        tt.read_features(site, sae, [d.text for d in docs], documents=[d.document for d in docs])
        for site, sae in zip((it.here, it.there), it.saes, strict=True)
    ]
    counts = [reading.counts for reading in readings]
    shown = [
        m
        for m in matches.best
        if m.r is not None
        and m.r >= 0.5
        and min(int(counts[0][m.source]), int(counts[1][m.target])) >= 8
        and int(counts[0][m.source]) <= DENSEST * len(readings[0].codes)
    ]
    order = torch.randperm(len(shown), generator=torch.Generator().manual_seed(0))
    found = []
    for place in order[:N_SHOWN].tolist():
        one = shown[place]
        sides = []
        for reading, number in zip(readings, (one.source, one.target), strict=True):
            card = reading.card(number, top=4, around=9)
            sides.append(
                {
                    "feature": number,
                    "density": card.density,
                    "promoted": [word for word, _ in card.promoted[:8]],
                    "contexts": [_context(context) for context in card.contexts],
                }
            )
        found.append({**asdict(one), "sides": sides})
    return {"pool": len(shown), "matches": found}


def _context(context: Context) -> dict[str, Any]:
    pieces = list(context.pieces)
    return {
        "text": "".join(pieces[: context.peak]),
        "peak": pieces[context.peak],
        "after": "".join(pieces[context.peak + 1 :]),
        "value": round(context.value, 2),
    }


def steer(pair: Pair, it: Loaded, cache: Path) -> dict[str, Any]:
    """Features moved by every route, at equal damage, on the words of each."""
    folder = cache / pair.name
    matches, mapper = (tt.load(folder / f"{n}.safetensors") for n in ("matches", "mapper"))
    assert isinstance(matches, tt.FeatureMap) and isinstance(mapper, tt.Mapper)
    here, there = stores(pair, it, cache)
    estimate = tt.Estimate.read(here.sites()[0], there.sites()[0])
    routes = tt.FeatureRoutes(
        it.here,
        it.there,
        it.saes[0],
        texts=estimate,
        mapper=mapper,
        target_sae=it.saes[1],
        matches=matches,
    )
    neutral = [d.text for d in general(12, seed=5, min_chars=300, max_chars=500)]
    chosen, words, cards = _with_words(it, routes, matches, neutral)
    arms: dict[str, Any] = {}
    for feature in chosen:
        moved = {route: routes.move(feature, route) for route in ("direction", "match")}
        for route, one in moved.items():
            arms[f"{route}:{feature}"] = one.steer()
            cards[str(feature)][route] = {**one.card, "strength": one.strength()}
        arms[f"shuffled:{feature}"] = tt.Add(routes.shuffled(moved["direction"]), 1.0)
    for feature in chosen[:N_LIVE]:
        arms[f"live:{feature}"] = routes.move(feature, "live").steer()
    like = routes.move(chosen[0]).vector
    for i, vector in enumerate(tt.random_directions(like, N_RANDOM)):
        arms[f"random:{i}"] = tt.Add(vector, 1.0)
    arms["map only"] = tt.ReplaceFrom(it.here.model, mapper)
    arms["reconstruction and map"] = tt.ReplaceFrom(
        it.here.model, Reconstruction(it.saes[0], mapper)
    )
    table = tt.feature_effects(
        it.there.model, arms, words, prompts=PROMPTS[12:], neutral=neutral, budget=BUDGET
    )
    return {
        "budget": BUDGET,
        "n_prompts": table.change.shape[-1],
        "words": table.words,
        "cards": cards,
        "arms": {
            name: {"strength": c.strength, "reason": c.reason, "kl": c.point and c.point.kl}
            for name, c in table.calibrations.items()
        },
        "effects": {
            route: {str(f): _effect(table, route, f) for f in chosen}
            for route in ("direction", "match", "live", "shuffled")
        },
    }


def _with_words(
    it: Loaded, routes: tt.FeatureRoutes, matches: tt.FeatureMap, neutral: list[str]
) -> tuple[list[int], dict[str, list[str]], dict[str, dict[str, Any]]]:
    """Features that say something in the source, with their words; chosen without the target."""
    bench = tt.StrengthBench(it.here.model, neutral=neutral)
    counts = torch.bincount(routes._codes.feature.long(), minlength=it.saes[0].d_sae)
    limit = DENSEST * len(routes._codes)
    pool = [m.source for m in matches.best if 20 <= int(counts[m.source]) <= limit][:N_TRIED]
    norm = float(routes._rows.x.norm(dim=-1).median())
    words: dict[str, list[str]] = {}
    cards: dict[str, dict[str, Any]] = {}
    for feature in pool:
        vector = tt.sae_feature(it.here, it.saes[0], feature, median_norm=norm)
        found = bench.calibrate(tt.Add(vector), budget=BUDGET, start=0.3, tolerance=0.15)
        if not found.reached:
            continue
        said = tt.words_of_feature(
            it.here.model, found.intervention, PROMPTS[:12], shared_with=it.there.model
        )
        if len(said) < MIN_WORDS or len(words) == N_STEERED:
            continue
        words[str(feature)] = said
        cards[str(feature)] = {"source_strength": found.strength}
    return [int(name) for name in words], words, cards


def _effect(table: EffectTable, route: str, feature: int) -> dict[str, Any] | None:
    """One arm beside all floors: other features by that route, its shuffled map, random, map."""
    arm = f"{route}:{feature}"
    if arm not in table.arms:
        return None
    others = [a for a in table.arms if a.startswith(("match:", "direction:")) and a != arm]
    others = [a for a in others if not a.endswith(f":{feature}")]
    floors = [*others, *(a for a in table.arms if a.startswith("random:"))]
    floors += ["map only", "reconstruction and map"]
    if route != "shuffled":
        floors.append(f"shuffled:{feature}")
    found = table.of(arm, str(feature), floors=floors)
    return {**asdict(found), "beats": found.beats_every_floor}


STAGES: dict[str, Callable[[Pair, Loaded, Path], dict[str, Any]]] = {
    "match": match,
    "read": read,
    "steer": steer,
}


# -- page ----------------------------------------------------------------------------------------


def page(results: dict[str, Any], said: dict[str, Any]) -> str:
    """The page as markdown."""
    head = [
        "# Features of two models",
        "",
        "Written by `python tools/features_page.py`; all numbers are in "
        "[`features.json`](features.json). The SAEs are small ones "
        f"({SAE.d_sae:,} features, {N_TOKENS:,} tokens) that the command trains first; the texts "
        "are general prose (Brown corpus and World Factbook), some of which they were trained on. "
        "Features are matched on some documents and scored on others; "
        "[Features](../concepts/features.md) says how, and what each floor is.",
        "",
        *_overview(results),
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
        won = {
            route: sum(bool(e and e["beats"]) for e in r["steer"]["effects"][route].values())
            for route in ("direction", "match")
        }
        n = len(r["steer"]["words"])
        lines.append(
            f"| {name} | {m['live']['source']} and {m['live']['target']} | {m['above_floor']} of "
            f"{m['matches']} | {m['r']['median']:.2f} | {best} | {m['coverage']:.1%} | "
            f"{m['mass']:.1%} | {won['direction']} of {n} by direction, {won['match']} by match |"
        )
    return [*lines, ""]


def _pair(name: str, r: dict[str, Any], said: dict[str, Any]) -> list[str]:
    m = r["match"]
    mutual, assigned = m["mutual"], m["assignment"]
    fvu = " and ".join(f"{c['held_out']['fvu']:.3f}" for c in m["cards"])
    l0 = " and ".join(f"{c['held_out']['l0']:.0f}" for c in m["cards"])
    lines = [
        f"## {name}",
        "",
        f"SAEs: held-out FVU {fvu}, {l0} features on a token.",
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
        *_steered(r["steer"]),
    ]
    return lines


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
    alike = [m for m in found["matches"] if said.get(_match(m), {}).get("alike")]
    rest = [m for m in found["matches"] if m not in alike]
    n = len(found["matches"])
    lines = [
        f"**Read one by one.** {n} matches drawn at random from the {found['pool']} above their "
        f"floors with r ≥ 0.5 that are active at 8 tokens and more (and at most "
        f"{DENSEST:.0%}) of the texts looked at. The strongest token of each context is in "
        f"brackets. On reading, {len(alike)} of {n} are the same.",
        "",
    ]
    for title, group in (("Alike", alike), ("Not alike, or not clear", rest)):
        if group:
            lines += [f"### {title}", ""]
        for one in group:
            label = said.get(_match(one), {}).get("label", "not read")
            low, high = one["ci95"] or (float("nan"), float("nan"))
            lines += [
                f"**{one['source']} and {one['target']}**: {label}. Held-out r {one['r']:.2f} "
                f"[{low:.2f}, {high:.2f}], shuffled {one['shuffled']:.2f}, random partner "
                f"{one['random']:.2f}, active in {one['n_active']} held-out rows.",
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


def _steered(found: dict[str, Any]) -> list[str]:
    n = len(found["words"])
    lines = [
        "### Steering with a transferred feature",
        "",
        f"{n} features with a match, active at no more than {DENSEST:.0%} of tokens, in the order "
        "of their matches' intervals and with words of their own in the source. Every arm adds its "
        f"direction everywhere until the KL on neutral text is {found['budget']:g} nats a token. "
        "Effect: change of the log-probability of the feature's words, which were measured by "
        "steering the source on other prompts; mean and interval over "
        f"{found['n_prompts']} prompts. Floor: the strongest of all others at the same damage "
        "(the other features by both routes, the same feature through the map of shuffled pairs, "
        f"{N_RANDOM} random directions, the mapped stream, the reconstructed and mapped stream). "
        "**Bold**: the paired lead over that floor is above zero with its whole interval.",
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
    lost = [
        f for f in found["words"]
        if not any((found["effects"][r][f] or {}).get("beats") for r in ("direction", "match"))
    ]  # fmt: skip
    lines += [
        "",
        f"**Failures.** {len(lost)} of {n} features beat every floor by neither route"
        + (f" ({', '.join(lost)})." if lost else "."),
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


# -- running -------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write_json(path: Path, data: dict[str, Any]) -> None:
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def write_page(cache: Path) -> None:
    """The page and its numbers into docs/results."""
    results = {}
    for pair in PAIRS:
        found = {stage: _read_json(cache / pair.name / f"{stage}.json") for stage in STAGES}
        if all(found.values()):
            results[pair.name] = found
    text = page(results, _read_json(RESULTS / "features_read.json"))
    (RESULTS / "features.md").write_text(text.rstrip() + "\n", encoding="utf-8")
    _write_json(RESULTS / "features.json", results)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", type=int, choices=range(len(PAIRS)))
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "features")
    parser.add_argument("--saes", type=Path, help="folder of SAE folders; default, in the cache")
    parser.add_argument("--stage", choices=[*STAGES, "page"])
    arguments = parser.parse_args()
    chosen = PAIRS if arguments.pair is None else PAIRS[arguments.pair : arguments.pair + 1]
    wanted = list(STAGES) if arguments.stage is None else [arguments.stage]
    for pair in chosen if wanted != ["page"] else ():
        folder = arguments.cache / pair.name
        folder.mkdir(parents=True, exist_ok=True)
        missing = [s for s in wanted if not (folder / f"{s}.json").is_file()]
        it = loaded(pair, arguments.saes or arguments.cache / "saes") if missing else None
        for stage in missing:
            assert it is not None
            _write_json(folder / f"{stage}.json", STAGES[stage](pair, it, arguments.cache))
    if arguments.stage in (None, "page"):
        write_page(arguments.cache)


if __name__ == "__main__":
    main()
