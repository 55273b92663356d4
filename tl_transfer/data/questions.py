"""Multiple-choice questions: the worked examples of MMLU (Hendrycks et al. 2021), 57 subjects.

They come out of a pinned public package (lm-eval, MIT); its file keeps five questions a subject
with their reasoning and answer. Nothing here is of MMLU's test split.
"""

import functools
import json
import re
from dataclasses import dataclass

from tl_transfer.data.packages import PackageFile, fetch_package, read_members
from tl_transfer.data.texts import text_hash

LM_EVAL = PackageFile(
    "lm-eval",
    "0.4.13",
    "lm_eval-0.4.13-py3-none-any.whl",
    "5daaa1973bf874005f64f28d3834b875f6886f0d6475878e6a6c821994a5286a",
    9_149_387,
)
_PATH = "lm_eval/tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
LETTERS = "ABCD"
_QUESTION = re.compile(
    r"Q:\s*(?P<text>.+?)\s*\(A\)\s*(?P<A>.+?)\s*\(B\)\s*(?P<B>.+?)\s*\(C\)\s*(?P<C>.+?)"
    r"\s*\(D\)\s*(?P<D>.+?)\s*\nA:.*?answer is \((?P<answer>[A-D])\)",
    re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True)
class Question:
    """A question with four options.

    Attributes:
        subject: ``abstract_algebra``, ...
        text: What is asked.
        options: Four, in the order of the letters.
        answer: Number of the right one.
        cloze: The text is a sentence, and an option goes on with it; no letters are shown.
    """

    subject: str
    text: str
    options: tuple[str, ...]
    answer: int
    cloze: bool = False

    @property
    def continuations(self) -> tuple[str, ...]:
        """What may come next: a space and a letter, or the options themselves."""
        return tuple(f" {item}" for item in (self.options if self.cloze else LETTERS))

    @property
    def prompt(self) -> str:
        """The usual zero-shot form; the next token is a space and a letter. Or the sentence."""
        if self.cloze:
            return self.text
        lines = [
            f"{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=True)
        ]
        return "\n".join([self.text, *lines, "Answer:"])


@functools.cache
def multiple_choice(max_chars: int = 700) -> tuple[Question, ...]:
    """All questions that can be read, in an order that depends on their text alone.

    Args:
        max_chars: Longer prompts are left out (they are few, and cost most of the time).

    Raises:
        FetchError: the package cannot be obtained.
    """
    subjects = json.loads(read_members(fetch_package(LM_EVAL), below=_PATH)[_PATH].decode("utf-8"))
    found = {}
    for subject, page in subjects.items():
        # Broken escapes of LaTeX left control characters in the file.
        for part in re.split(r"\n\n(?=Q:)", re.sub(r"[\x07\x08\x0b\x0c]", "", page)):
            match = _QUESTION.match(part)
            if match and "(E)" not in match["D"]:
                options = tuple(_clean(match[letter]) for letter in LETTERS)
                answer = LETTERS.index(match["answer"].upper())
                one = Question(subject, _clean(match["text"]), options, answer)
                if len(one.prompt) <= max_chars and len(set(options)) == len(options):
                    found[one.prompt] = one
    return tuple(sorted(found.values(), key=lambda item: text_hash(item.prompt)))


def _clean(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
