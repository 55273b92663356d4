"""The corpus of the SAEs: whole documents kept back, the same texts for every model."""

import pytest

from tl_transfer.errors import InputError
from tl_transfer.sae.corpus import CHARS_PER_TOKEN, general_corpus, unseen_passages

pytestmark = pytest.mark.real


def test_documents_are_kept_back_whole_and_a_larger_corpus_begins_with_the_smaller() -> None:
    small, large = general_corpus(2_000), general_corpus(30_000)
    assert large.train[: len(small.train)] == small.train
    assert large.held_out[: len(small.held_out)] == small.held_out
    assert not set(large.train_documents) & set(large.held_out_documents)
    n_tokens = sum(map(len, large.train)) / CHARS_PER_TOKEN
    assert 30_000 <= n_tokens < 30_400
    unseen = {d.document for d in unseen_passages(40)}
    assert not unseen & set(large.train_documents) and len(unseen) > 10
    with pytest.raises(InputError, match=r"more than the bundled texts have[\s\S]*up to about 1"):
        general_corpus(10_000_000)
    with pytest.raises(InputError, match="more passages than the kept-back documents"):
        unseen_passages(100_000)
