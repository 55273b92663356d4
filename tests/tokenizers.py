"""Tiny fast tokenizers trained in the process, one for each way real models spell text.

========== ============================================================================
style      what it has in common with the real one
========== ============================================================================
gpt2       byte-level BPE, no BOS added, nothing rewritten
gpt2space  the same with ``add_prefix_space``
qwen       byte-level BPE, NFC, digits alone, line breaks stuck to punctuation, ChatML
llama3     byte-level BPE, digits in threes, BOS added, BOS in the template too
gemma      ``▁`` for spaces, odd bytes as ``<0xE2>``, line breaks are added tokens, BOS added
llama2     Metaspace with a prefix space, byte fallback, BOS added
lossy      Unigram that lowers the case and collapses runs of spaces; knows few characters
========== ============================================================================
"""

import copy
import functools

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

BYTE_LEVEL = ("gpt2", "gpt2space", "qwen", "llama3")
SENTENCEPIECE = ("gemma", "llama2")
EXACT = BYTE_LEVEL + SENTENCEPIECE
STYLES = (*EXACT, "lossy")
ADDS_BOS = ("llama3", "gemma", "llama2")

_CORPUS = {
    "gpt2": "the quick brown fox jumps over the lazy dog and the dog sleeps in the sun " * 3,
    "qwen": "def add(a, b):\n    return a + b;\nprint(add(1, 2));\nthe value is returned\n" * 3,
    "llama3": "naïve café, the bibliothèque est fermée; über die Straße in 1984 and 2024 " * 3,
    "gemma": "the film was good and the actors were great\nbut the story was long and sad " * 3,
}
_QWEN = r"\p{N}|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMING = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ m['content'] | trim }}{{ '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)


def make(style: str) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer of this style; callers may change it."""
    return copy.deepcopy(shared(style))


@functools.cache
def shared(style: str) -> PreTrainedTokenizerFast:
    """The tokenizer of this style; callers leave it as it is."""
    if style in BYTE_LEVEL:
        return _byte_level(style)
    if style in SENTENCEPIECE:
        return _sentencepiece(style)
    if style == "lossy":
        return _lossy()
    raise ValueError(f"style {style!r}; have {STYLES}")


def _byte_level(style: str) -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    if style == "llama3":
        special += ["<turn>", "<end>"]
    raw = Tokenizer(models.BPE())
    plain = pre_tokenizers.ByteLevel(add_prefix_space=style == "gpt2space")
    if style in ("qwen", "llama3"):
        pattern = Regex(_QWEN if style == "qwen" else _LLAMA3)
        plain = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(pattern, "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    if style == "qwen":
        raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = plain
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size={"gpt2": 330, "gpt2space": 310, "qwen": 340, "llama3": 350}[style],
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([_CORPUS["gpt2" if style == "gpt2space" else style]], trainer)
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    if style == "llama3":
        names["bos_token"] = "<|endoftext|>"
        _add_bos(raw, "<|endoftext|>")
    if style == "gpt2":  # has one, as SmolLM2 has, and does not add it
        names["bos_token"] = "<|im_start|>"
    return _wrap(raw, names, TRIMMING if style == "llama3" else CHATML)


def _sentencepiece(style: str) -> PreTrainedTokenizerFast:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn>", "<end>"]
    odd = [f"<0x{byte:02X}>" for byte in range(256)]
    words = sorted(set(_CORPUS["gemma"]) - {" ", "\n"})
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trained.train_from_iterator(
        [_CORPUS["gemma"]],
        trainers.BpeTrainer(vocab_size=90, show_progress=False, initial_alphabet=words),
    )
    pieces = [piece for piece, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1])]
    vocabulary = {piece: i for i, piece in enumerate([*special, *odd, *pieces])}
    raw = Tokenizer(models.BPE(vocabulary, _merges(trained), byte_fallback=True, unk_token="<unk>"))
    if style == "gemma":
        raw.normalizer = normalizers.Replace(" ", "▁")
        raw.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    raw.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    if style == "gemma":
        raw.add_tokens([AddedToken("\n" * n, normalized=False) for n in (1, 2, 3)])
    _add_bos(raw, "<bos>")
    names = {
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "bos_token": "<bos>",
        "unk_token": "<unk>",
    }
    return _wrap(raw, names, TRIMMING if style == "gemma" else None)


def _lossy() -> PreTrainedTokenizerFast:
    pieces = ["<unk>", "▁", "▁the", "▁cat", "▁dog", *"acdeghinorstu", "▁s", "at", ".", "<s>"]
    raw = Tokenizer(models.Unigram([(piece, -float(len(pieces[0]))) for piece in pieces], 0))
    raw.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    raw.decoder = decoders.Metaspace()
    return _wrap(raw, {"unk_token": "<unk>", "bos_token": "<s>"}, None)


def _merges(trained: Tokenizer) -> list[tuple[str, str]]:
    import json

    return [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]


def _add_bos(raw: Tokenizer, token: str) -> None:
    raw.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, raw.token_to_id(token))]
    )


def _wrap(raw: Tokenizer, names: dict[str, str], template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    tokenizer.chat_template = template
    return tokenizer
