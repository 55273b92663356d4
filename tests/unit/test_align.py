import copy
import gc
import weakref

import pytest
import torch
from tokenizers import Regex, normalizers

from tests.tokenizers import ADDS_BOS, BYTE_LEVEL, EXACT, STYLES, make, shared
from tl_transfer.data.align import EncodedText, align, encode, encode_many, pair_many
from tl_transfer.data.encode import utf8
from tl_transfer.errors import InputError

TEXTS = {
    "plain": "The quick brown fox jumps over the lazy dog.",
    "leading spaces": "   the dog",
    "trailing spaces": "the dog  \n",
    "line breaks": "a;\r\nb\n\n\n\tc\rd",
    "accents composed": "naïve café über",
    "accents combining": "nai\u0308ve cafe\u0301 is good",
    "hangul jamo": "\u1112\u1161\u11ab the \u1100\u1173\u11af",
    "emoji": "the 👩‍👩‍👧‍👦 and 🇫🇷 is 👍🏽!",
    "japanese": "日本語のテキスト, the",
    "control": "a\x00b\x07c\x7f\u200b\ufeffd",
    "underscore": "the ▁ dog▁cat",
    "markup": "<bos> a <|im_start|> b <|endoftext|> <eos><0x41><unk>",
    "whitespace": " \n\t ",
    "empty": "",
    "rtl": "שלום the عالم",
}


def pieces(encoded: EncodedText) -> list[bytes]:
    """The bytes of the text that each token read."""
    raw = encoded.text.encode()
    before = (0, *encoded.ends)
    return [raw[start:end] for start, end in zip(before, encoded.ends, strict=False)]


@pytest.mark.parametrize("style", EXACT)
@pytest.mark.parametrize("name", TEXTS)
def test_every_byte_of_the_text_is_read_by_a_verified_token(style: str, name: str) -> None:
    encoded = encode(TEXTS[name], shared(style))
    assert b"".join(pieces(encoded)) == TEXTS[name].encode()
    assert encoded.n_bytes == len(TEXTS[name].encode())
    if "combining" not in name and "jamo" not in name:  # NFC may cut inside a changed character
        assert encoded.n_dropped == 0


@pytest.mark.parametrize("style", EXACT)
def test_the_ends_are_where_decoding_the_ids_so_far_ends(style: str) -> None:
    tokenizer, text = shared(style), TEXTS["plain"]
    encoded = encode(text, tokenizer)
    for i, end in enumerate(encoded.ends):
        decoded = tokenizer.decode(
            encoded.ids[: i + 1], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert decoded.removeprefix(" ") == text[:end]


@pytest.mark.parametrize("style", EXACT)
def test_the_ids_are_the_tokenizers_own(style: str) -> None:
    text = TEXTS["line breaks"] + TEXTS["emoji"]
    assert list(encode(text, shared(style)).ids) == shared(style)(text)["input_ids"]


def test_a_character_split_over_tokens_ends_at_its_last_token() -> None:
    encoded = encode("é", shared("gpt2"))
    assert encoded.ends == (1, 2)
    assert shared("gpt2")("é", return_offsets_mapping=True)["offset_mapping"] == [(0, 1), (0, 1)]
    other = encode("é", shared("llama3"))  # has it as one token
    pairs = align(encoded, other)
    assert pairs.source_positions.tolist() == [1]
    assert pairs.target_positions.tolist() == [1]  # after BOS


def test_composed_characters_end_after_their_marks_where_offsets_are_wrong() -> None:
    text = "cafe\u0301 is"
    tokenizer = shared("qwen")
    encoded = encode(text, tokenizer)
    assert b"e\xcc\x81" in b"|".join(pieces(encoded))
    spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    assert max(end for _, end in spans if end <= 5) == 4, "offsets leave the mark out"
    assert len("cafe\u0301".encode()) in encoded.ends
    assert encoded.n_dropped == 1  # the first byte of é: no place in the text as written


def test_a_prefix_space_is_no_text() -> None:
    for style in ("llama2", "gpt2space"):
        encoded = encode("the dog", shared(style))
        assert encoded.n_dropped == 0
        assert next(p for p in pieces(encoded) if p).startswith(b"t")
        assert encoded.ends[-1] == 7


def test_a_lone_prefix_space_token_pairs_with_nothing() -> None:
    encoded = encode("日", shared("llama2"))
    assert encoded.ends == (0, 0, 1, 2, 3)
    assert encoded.pairable() == [2, 3, 4]
    assert encoded.n_dropped == 0


def test_spaces_in_front_or_behind_do_not_stop_tokens_from_pairing() -> None:
    source, target = encode("the dog", shared("gpt2")), encode("the dog", shared("gemma"))
    pairs = align(source, target)
    read = {source.ends[i] for i in pairs.source_positions.tolist()}
    assert {3, 7} <= read


def test_a_token_that_read_a_line_break_more_pairs_with_the_line_break() -> None:
    text = "add(a);\nreturn"
    source, target = encode(text, shared("qwen")), encode(text, shared("gpt2"))
    assert b");\n" in b"".join(pieces(source))
    pairs = align(source, target)
    for i, j in zip(pairs.source_positions.tolist(), pairs.target_positions.tolist(), strict=True):
        assert source.ends[i] == target.ends[j]
    stuck = next(i for i, piece in enumerate(pieces(source)) if piece.endswith(b";\n"))
    there = int(pairs.target_positions[pairs.source_positions.tolist().index(stuck)])
    assert pieces(target)[there] == b"\n"


@pytest.mark.parametrize("style", STYLES)
def test_bos_is_there_once_exactly_where_the_tokenizer_adds_it(style: str) -> None:
    tokenizer = shared(style)
    encoded = encode("the dog", tokenizer)
    n_bos = encoded.ids.count(tokenizer.bos_token_id)
    assert n_bos == (1 if style in ADDS_BOS else 0)
    assert encoded.special == (True,) * n_bos + (False,) * (len(encoded.ids) - n_bos)
    assert encode("the dog", tokenizer, add_bos=False).ids == encoded.ids[n_bos:]


def test_bos_on_request_and_where_there_is_none() -> None:
    gpt2 = shared("gpt2")
    assert encode("the", gpt2, add_bos=True).ids[0] == gpt2.bos_token_id
    with pytest.raises(InputError, match="add_bos: this tokenizer has no BOS token"):
        encode("the", shared("qwen"), add_bos=True)


def test_rendered_text_that_brings_its_bos_gets_no_second_one() -> None:
    gemma = shared("gemma")
    encoded = encode("<bos>the dog", gemma, parse_special=True)
    assert encoded.ids.count(gemma.bos_token_id) == 1
    assert encode("the dog", gemma, parse_special=True).ids.count(gemma.bos_token_id) == 1


@pytest.mark.parametrize("style", EXACT)
def test_control_tokens_written_by_a_user_stay_text(style: str) -> None:
    tokenizer = shared(style)
    text = f"the {' '.join(tokenizer.all_special_tokens)} dog"
    own = set(tokenizer.all_special_ids)
    assert own & set(tokenizer(text, add_special_tokens=False)["input_ids"]), "Hugging Face does"
    encoded = encode(text, tokenizer)
    assert not own & {i for i, s in zip(encoded.ids, encoded.special, strict=True) if not s}
    assert sum(encoded.special) == (style in ADDS_BOS)
    assert b"".join(pieces(encoded)) == text.encode()


@pytest.mark.parametrize("style", EXACT)
def test_the_tokenizer_is_left_as_it_was(style: str) -> None:
    tokenizer = make(style)
    text = f"the {tokenizer.eos_token} dog"
    backend = tokenizer.backend_tokenizer
    before = (tokenizer(text)["input_ids"], backend.encode(text).ids)
    encode(text, tokenizer)
    assert backend.encode(text).ids == before[1]
    assert tokenizer(text)["input_ids"] == before[0]


def test_control_tokens_are_parsed_on_request_and_never_pair() -> None:
    tokenizer = shared("qwen")
    encoded = encode("a<|im_end|>b", tokenizer, parse_special=True)
    assert encoded.special == (False, True, False)
    assert encoded.ends == (1, 11, 12)
    assert align(encoded, encoded).source_positions.tolist() == [0, 2]


def test_a_tokenizer_that_cannot_be_kept_from_markup_is_refused() -> None:
    with pytest.raises(InputError, match="makes a control token of plain text") as caught:
        encode("<s>", shared("lossy"))
    assert "'<s>' in the text" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "unread"),
    [("The Cat sat.", 0), ("the  dog", 0), ("the cat Ω dog", 1)],
)
def test_a_lossy_tokenizer_keeps_what_can_be_verified(text: str, unread: int) -> None:
    encoded = encode(text, shared("lossy"))
    assert encoded.n_dropped == unread
    assert encoded.ends[-1] == len(text.encode())
    pairs = align(encoded, encode(text, shared("gpt2")))
    assert len(pairs) >= 2
    assert pairs.n_dropped == unread


def test_tokens_of_another_text_never_pair() -> None:
    with pytest.raises(InputError, match="target: not the text of the source"):
        align(encode("the", shared("gpt2")), encode("the dog", shared("gpt2")))


def test_half_a_surrogate_pair_is_refused_with_its_place() -> None:
    with pytest.raises(InputError) as caught:
        encode_many(["fine", "the \ud83d"], shared("gpt2"))
    assert "text 1 has no UTF-8 form" in str(caught.value)
    assert "at character 4" in str(caught.value)


@pytest.mark.parametrize("wrong", [object(), None, "gpt2", shared("gpt2").backend_tokenizer])
def test_what_is_no_fast_tokenizer_is_refused(wrong: object) -> None:
    with pytest.raises(InputError, match="fast tokenizer"):
        encode("the", wrong)


def test_a_slow_tokenizer_is_refused() -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(InputError) as caught:
        encode("the", ByT5Tokenizer())
    assert "got:   ByT5Tokenizer" in str(caught.value)
    assert "AutoTokenizer.from_pretrained" in str(caught.value)


def test_tokens_added_after_the_first_use_are_seen() -> None:
    tokenizer = make("gpt2")
    encode("the <new> dog", tokenizer)
    tokenizer.add_tokens(["<new>"])
    assert b"<new>" in pieces(encode("the <new> dog", tokenizer))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<hush>"]})
    assert any(encode("a<hush>b", tokenizer, parse_special=True).special)
    assert not any(encode("a<hush>b", tokenizer).special)


def test_the_kept_table_does_not_keep_the_tokenizer_alive() -> None:
    tokenizer = copy.deepcopy(shared("gpt2"))
    encode("the", tokenizer)
    alive = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert alive() is None


def test_many_texts_are_the_texts_one_by_one() -> None:
    texts = list(TEXTS.values())
    for style in STYLES[:-1]:
        tokenizer = shared(style)
        assert encode_many(texts, tokenizer) == [encode(text, tokenizer) for text in texts]
    source, target = shared("qwen"), shared("gemma")
    paired = pair_many(texts, source, target)
    for a, b, pairs in zip(paired.source, paired.target, paired.alignments, strict=True):
        alone = align(a, b)
        assert torch.equal(pairs.source_positions, alone.source_positions)
        assert torch.equal(pairs.target_positions, alone.target_positions)
        assert (pairs.coverage_source, pairs.coverage_target) == (
            alone.coverage_source,
            alone.coverage_target,
        )


def test_the_report_counts_what_was_paired() -> None:
    paired = pair_many(["the dog", "", "the cat"], shared("gpt2"), shared("gemma"))
    report = paired.report
    assert (report.n_texts, report.n_failed, report.n_unpaired) == (3, 0, 1)
    assert report.n_pairs == sum(len(item) for item in paired.alignments) > 0
    assert report.n_source == sum(len(item.ids) for item in paired.source)
    assert report.n_target == sum(len(item.ids) - 1 for item in paired.target)  # BOS
    assert report.coverage_source == report.n_pairs / report.n_source
    assert f"{report.coverage_target:.1%} of {report.n_target} target tokens" in str(report)


def test_texts_that_fail_are_skipped_only_on_request() -> None:
    texts = ["the dog", "\ud800", "<s>", "the cat"]
    with pytest.raises(InputError, match="text 1 has no UTF-8 form"):
        pair_many(texts, shared("gpt2"), shared("lossy"))
    paired = pair_many(texts, shared("gpt2"), shared("lossy"), invalid="skip")
    assert sorted(paired.failures) == [1, 2]
    assert "control token" in paired.failures[2]
    assert (paired.report.n_texts, paired.report.n_failed, paired.report.n_unpaired) == (4, 2, 0)
    assert [len(item) > 0 for item in paired.alignments] == [True, False, False, True]
    assert paired.source[1].ids == ()


def test_no_texts_give_no_pairs() -> None:
    paired = pair_many([], shared("gpt2"), shared("gemma"))
    assert paired.alignments == ()
    assert paired.report.coverage_source == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "the dog"}, "one string where a list is expected"),
        ({"texts": ["a"], "invalid": "drop"}, 'valid: "raise" or "skip"'),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    arguments = dict(arguments)
    with pytest.raises(InputError, match=message):
        pair_many(
            arguments.pop("texts"),
            source_tokenizer=shared("gpt2"),
            target_tokenizer=shared("gemma"),
            **arguments,
        )


def test_what_is_no_string_is_named_with_its_place() -> None:
    with pytest.raises(InputError, match="text 1 is no string\n  got:   int"):
        utf8(3, 1)


def test_byte_level_tokens_cover_all_256_bytes() -> None:
    from tl_transfer.data.token_bytes import token_bytes

    for style in BYTE_LEVEL:
        tokenizer = shared(style)
        table = token_bytes(tokenizer)
        single = {table[i] for i in range(len(tokenizer))} & {bytes([b]) for b in range(256)}
        assert len(single) == 256


COLLAPSE = normalizers.Replace(Regex(" {2,}"), " ")


def test_offsets_of_a_split_character_count_at_its_last_token_only() -> None:
    tokenizer = make("gpt2")
    tokenizer.backend_tokenizer.normalizer = COLLAPSE
    encoded = encode("é  b", tokenizer)  # two tokens for é, and a space that is gone
    assert encoded.ends[:2] == (0, 2)
    assert encoded.ends[-1] == 5
    assert 0 not in encoded.pairable()
    assert encoded.n_dropped == 1


def test_offsets_that_do_not_hold_the_token_are_dropped() -> None:
    tokenizer = make("llama3")
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), COLLAPSE])
    text = "fe\u0301r  is"
    spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    assert (1, 2) in spans, "é, with its mark left out"
    encoded = encode(text, tokenizer)
    wrong = len("fe")
    assert wrong not in encoded.ends
    assert encoded.n_dropped >= 1
    assert encoded.ends[-1] == len(text.encode())


def test_a_lone_prefix_space_is_not_counted_as_dropped_when_text_is_rewritten() -> None:
    tokenizer = make("llama2")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    encoded = encode("e\u0301", tokenizer)  # ▁ <0xC3> <0xA9>
    assert encoded.ends == (0, 0, 0, 3)
    assert encoded.n_dropped == 1
