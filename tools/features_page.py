"""The page `docs/results/features.md`: what the SAEs of two models share, on real pairs.

    python tools/features_page.py              # all of it: both pairs, every stage, the page
    python tools/features_page.py --pair 0 --stage match
    python tools/features_page.py --stage page

The SAEs are those of `tl-transfer train-sae` with its defaults, from the cache of the package;
missing ones are trained first (some ten minutes each). Rows of the texts are captured once into the
folder `--cache`, where every stage leaves its numbers; a run that was interrupted goes on after the
last complete stage. What was said of the matches on reading them is in
`docs/results/features_read.json`, by the SAEs' fingerprints. The page itself is written by
`features_markdown.py` from those numbers alone.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from features_markdown import page

import tl_transfer as tt
from tl_transfer.data.cache import cache_dir
from tl_transfer.data.corpora import Document, general
from tl_transfer.evaluation.feature_effects import MIN_WORDS, EffectTable
from tl_transfer.features.crosscoder import EXCLUSIVE, KINDS
from tl_transfer.features.edit import Reconstruction
from tl_transfer.features.inspect import Context
from tl_transfer.files import write_atomic
from tl_transfer.models.surface import Site
from tl_transfer.sae.train import default_folder, train_sae

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
#: Passages whose rows are matched on, and those that are looked at.
N_TEXTS, N_READ = 260, 130
#: Matches that are shown: as many from each stratum of how often they are active, at random within
#: it, so that words that are everywhere do not crowd out the others.
N_STRATA, N_EACH = 4, 4
#: A match is shown if it has this held-out correlation and is active at so many tokens.
LEAST_R, LEAST_ACTIVE = 0.5, 8
#: Target features that are regressed: matched ones, and as many others.
N_REGRESSED = 40
#: Of the dictionary of both models.
CROSSCODER: dict[str, Any] = {"n_latents": 1024, "k": 24, "steps": 1000}
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
            train_sae(site, folder=folder)
        found.append(tt.load_sae(folder, site=site))
    folders = tuple(saes / default_folder(site).name for site in sites)
    return Loaded(sites[0], sites[1], (found[0], found[1]), (folders[0], folders[1]))


def _card(folder: Path) -> dict[str, Any]:
    """What an SAE keeps of unseen documents."""
    card = _read_json(folder / "card.json")
    arms = card.get("loss", {}).get("arms", {})
    kept = ("space", "settings", "held_out", "controls", "dead_share", "rows", "steps", "threads")
    return {
        **{name: card.get(name) for name in (*kept, "seconds", "processor_seconds")},
        "recovered": {
            name: [arm["recovered"], arm["recovered_ci95"]] for name, arm in arms.items()
        },
    }


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
        chosen = pool[torch.randperm(len(pool), generator=generator)[:N_REGRESSED]]
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
    """Matches drawn at random within strata of density, with their contexts in both models."""
    matches = tt.load(cache / pair.name / "matches.safetensors")
    assert isinstance(matches, tt.FeatureMap)
    matches.require(*it.saes)
    docs = passages()[:N_READ]
    readings = [
        tt.read_features(site, sae, [d.text for d in docs], documents=[d.document for d in docs])
        for site, sae in zip((it.here, it.there), it.saes, strict=True)
    ]
    active = [reading.counts for reading in readings]
    n_tokens = len(readings[0].codes)
    pool = [
        m
        for m in matches.best
        if m.r is not None
        and m.r >= LEAST_R
        and min(int(active[0][m.source]), int(active[1][m.target])) >= LEAST_ACTIVE
        and int(active[0][m.source]) <= DENSEST * n_tokens
    ]
    pool.sort(key=lambda m: (int(active[0][m.source]), m.source))
    found = []
    for stratum, places in enumerate(torch.arange(len(pool)).tensor_split(N_STRATA)):
        generator = torch.Generator().manual_seed(stratum)
        order = torch.randperm(len(places), generator=generator)[:N_EACH]
        for place in places[order].tolist():
            one = pool[place]
            sides = [
                _side(reading, number)
                for reading, number in zip(readings, (one.source, one.target), strict=True)
            ]
            found.append({**asdict(one), "stratum": stratum, "sides": sides})
    return {
        "pool": len(pool),
        "n_tokens": n_tokens,
        "strata": N_STRATA,
        "least_r": LEAST_R,
        "least_active": LEAST_ACTIVE,
        "densest": DENSEST,
        "matches": found,
    }


def _side(reading: tt.FeatureReading, number: int) -> dict[str, Any]:
    card = reading.card(number, top=4, around=9)
    return {
        "feature": number,
        "n_active": card.n_active,
        "density": card.density,
        "promoted": [word for word, _ in card.promoted[:8]],
        "contexts": [_context(context) for context in card.contexts],
    }


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
        "n_random": N_RANDOM,
        "densest": DENSEST,
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


def crosscoder(pair: Pair, it: Loaded, cache: Path) -> dict[str, Any]:
    """One dictionary of both models on the paired rows, and what its latents are."""
    here, there = stores(pair, it, cache)
    rows = tt.Estimate.read(here.sites()[0], there.sites()[0])
    train, held = ~rows.held_out, rows.held_out
    found = tt.train_crosscoder(
        rows.x[train], rows.y[train], (rows.x[held], rows.y[held]), **CROSSCODER
    )
    kinds = found.kinds(rows.x[held], rows.y[held])
    share = found.target_share
    live = torch.tensor([kind != "silent" for kind in kinds])
    by_length = (share < EXCLUSIVE) | (share > 1 - EXCLUSIVE)
    return {
        **found.card,
        "n_train": int(train.sum()),
        "kinds": {kind: kinds.count(kind) for kind in KINDS},
        "exclusive_by_length": int((by_length & live).sum()),
        "share_q": share[live].quantile(torch.tensor([0.05, 0.5, 0.95])).tolist(),
    }


STAGES: dict[str, Callable[[Pair, Loaded, Path], dict[str, Any]]] = {
    "match": match,
    "read": read,
    "steer": steer,
    "crosscoder": crosscoder,
}


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
        if all(found[stage] for stage in STAGES if stage != "crosscoder"):
            results[pair.name] = found
    text = page(results, _read_json(RESULTS / "features_read.json"))
    (RESULTS / "features.md").write_text(text.rstrip() + "\n", encoding="utf-8")
    _write_json(RESULTS / "features.json", results)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", type=int, choices=range(len(PAIRS)))
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "features")
    parser.add_argument("--saes", type=Path, help="folder of SAE folders; default, the cache's")
    parser.add_argument("--stage", choices=[*STAGES, "page"])
    arguments = parser.parse_args()
    chosen = PAIRS if arguments.pair is None else PAIRS[arguments.pair : arguments.pair + 1]
    wanted = list(STAGES) if arguments.stage is None else [arguments.stage]
    for pair in chosen if wanted != ["page"] else ():
        folder = arguments.cache / pair.name
        folder.mkdir(parents=True, exist_ok=True)
        missing = [s for s in wanted if not (folder / f"{s}.json").is_file()]
        it = loaded(pair, arguments.saes or cache_dir() / "saes") if missing else None
        for stage in missing:
            assert it is not None
            _write_json(folder / f"{stage}.json", STAGES[stage](pair, it, arguments.cache))
    if arguments.stage in (None, "page"):
        write_page(arguments.cache)


if __name__ == "__main__":
    main()
