"""From the files of the corpora to readable prose: detokenise, strip markup, cut passages."""

import html
import random
import re
from collections.abc import Iterable, Iterator
from typing import Any

_CLOSING = ("''", ")", ",", ";", ":", ".", "?", "!")


def passages(
    runs: Iterable[Iterable[str]], document: str, *, min_chars: int, max_chars: int
) -> Iterator[str]:
    """Cut running text into passages of whole sentences with varied lengths.

    Args:
        runs: Stretches of connected sentences; no passage crosses from one to the next.
        document: Id; the lengths are drawn from a random generator of its own, seeded with it.
        min_chars: Shortest passage.
        max_chars: Longest passage; a longer sentence is left out.
    """
    rng = random.Random(document)
    for sentences in runs:
        aim, gathered = rng.randint(min_chars, max_chars), ""
        for sentence in sentences:
            longer = f"{gathered} {sentence}".strip()
            if len(longer) <= max_chars:
                gathered = longer
                if len(gathered) < aim:
                    continue
            if len(gathered) >= min_chars:
                yield gathered
            # What did not fit begins the next passage.
            gathered = sentence if len(longer) > max_chars and len(sentence) <= max_chars else ""
            aim = rng.randint(min_chars, max_chars)
        if len(gathered) >= min_chars:
            yield gathered


def brown_sentences(tagged: str) -> Iterator[str]:
    """Readable sentences of one tagged Brown file, without headlines and formulas.

    Args:
        tagged: Lines of ``word/tag`` tokens.
    """
    pending: list[str] = []
    for line in tagged.splitlines():
        pairs = [token.rsplit("/", 1) for token in line.split() if "/" in token]
        if not pairs or all(tag.endswith("-hl") for _, tag in pairs):
            continue
        words = [word for word, _ in pairs if word]
        while words and words[0] in _CLOSING and pending:  # belongs to the line before
            pending.append(words.pop(0))
        if pending and _ends_sentence(pending):
            yield from _readable(pending)
            pending = []
        pending += words  # the corpus also breaks lines after a colon or semicolon
    yield from _readable(pending)


def _ends_sentence(words: list[str]) -> bool:
    closing = [word for word in words[-3:] if word not in ("''", ")", "'")]
    return not closing or closing[-1] not in (":", ";", ",", "--")


def _readable(words: list[str]) -> Iterator[str]:
    # "Af" stands where the printed text had a formula.
    if len(words) >= 3 and "Af" not in words:
        text = join_words(words)
        if text.rstrip("\")'")[-1:] in (".", "?", "!"):
            yield text


def join_words(words: list[str]) -> str:
    """Turn tokens into prose: quotation marks, brackets, and no space before punctuation.

    Args:
        words: Tokens of one sentence, with `` and '' for quotation marks.
    """
    text = " ".join(words)
    text = re.sub(r"([?!;:.,])(?: \1)+(?= |$)", r"\1", text)  # the corpus repeats end marks
    text = re.sub(r"`` ?", '"', text)
    text = re.sub(r" ?''", '"', text)
    text = re.sub(r" ([,;:?!.)\]}%])", r"\1", text)
    text = re.sub(r"([(\[{$]) ", r"\1", text)
    # The corpus puts every mark behind the closing quotation mark; the printed texts did not.
    return re.sub(r'\.?"([.,?!])(?=[\s)]|$)', r'\1"', text).strip()


def factbook_paragraphs(entry: Any) -> Iterator[list[str]]:
    """The prose paragraphs of one country's record, as sentences; tables and lists are left out.

    Args:
        entry: Parsed JSON: nested objects whose texts hold HTML.
    """
    for text in _texts(entry):
        for paragraph in _paragraphs(text):
            sentences = re.split(r"(?<!St\.)(?<!Mt\.)(?<=[a-z)\d][.?!]) (?=[A-Z])", paragraph)
            if len(paragraph) >= 200 and all(_is_prose(sentence) for sentence in sentences):
                yield sentences


def _texts(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict | list):
        for item in entry.values() if isinstance(entry, dict) else entry:
            yield from _texts(item)


def _paragraphs(text: str) -> Iterator[str]:
    for block in re.split(r"(?:</p>|<br\s*/?>|</li>|</h\d>|\n)+", text):
        clean = html.unescape(re.sub(r"<[^>]+>", "", block))
        yield re.sub(r"\s+", " ", clean).strip()


def _is_prose(sentence: str) -> bool:
    digits = sum(character.isdigit() for character in sentence)
    return (
        len(sentence) >= 20
        and sentence[0].isupper()
        and sentence.rstrip(")\"'”’")[-1:] in (".", "?", "!")
        and sentence.count(";") <= 2
        and sentence.count("%") <= 2
        and sentence.count(",") < len(sentence) / 20
        and digits < 0.15 * len(sentence)
    )
