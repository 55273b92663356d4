"""Two tiny byte-level BPE tokenizers trained in the process, with different vocabularies."""

import copy
import functools

from transformers import PreTrainedTokenizerFast

KINDS = ("bos", "nobos")

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_TEXT_A = """The river rose in the night and the people of the town carried their books upstairs.
A small light burned in the window of the mill, where the miller counted sacks of flour.
Why do cats sleep so much? Because the night is long and the mice are quick.
In 1984 there were 17 boats on the lake; today there are 3. The rest is a story about wood.
She said that the answer was no, and then she said that the answer was yes, and they laughed.
"""
_TEXT_B = """def add(first, second):
    return first + second

for index in range(10):
    print(f"value {index} is {add(index, 2)}")
The function returns a list of strings; each string ends with a newline and starts with a number.
Tokenizers cut the same sentence into different pieces, and positions no longer line up.
Où est la bibliothèque? Das Wörterbuch liegt auf dem Tisch. El gato duerme en la ventana.
"""


def tiny_tokenizer(kind: str = "bos") -> PreTrainedTokenizerFast:
    """A copy of the tokenizer of this kind; callers may change it.

    Args:
        kind: ``bos``: puts ``<s>`` in front, has its own pad token, pads on the right, like
            Llama. ``nobos``: no BOS token at all, pads with ``<|endoftext|>``, like Qwen.
            The two were trained on different text and split most words differently.

    Returns:
        A fast tokenizer with a small ChatML-like chat template.
    """
    return copy.deepcopy(_trained(kind))


@functools.cache
def _trained(kind: str) -> PreTrainedTokenizerFast:
    if kind == "bos":
        special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
        names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
        raw = _train(_TEXT_A, special, vocab_size=400, bos="<s>")
    elif kind == "nobos":
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        names = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
        raw = _train(_TEXT_B, special, vocab_size=440, bos=None)
    else:
        raise ValueError(f"tokenizer kind {kind!r}; have {KINDS}")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        name_or_path=f"tiny/{kind}",
        padding_side="right",
        add_bos_token=kind == "bos",  # said outright, or TransformerLens asks the hub for it
        **names,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def _train(text: str, special: list[str], *, vocab_size: int, bos: str | None):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(text.splitlines(), trainer)
    if bos is not None:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, special.index(bos))],
        )
    return raw
