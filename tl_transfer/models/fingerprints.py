"""What tells two models apart, whatever class hosts them: hashes of weights and tokenizer."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def weights_fingerprint(parameters: Iterator[Tensor]) -> str:
    """SHA-256 over up to 64 evenly spaced values of every tensor, whatever its name.

    Names and order do not enter, so a bridge has the fingerprint of the model it wraps; any
    fine-tuning that moves a sampled value changes it. Reading 64 values keeps it under a second
    for a model of any size.
    """
    digests = []
    for tensor in parameters:
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // 64)
        # Rounded to bfloat16, so that a model has one fingerprint in float32 and in bfloat16.
        sample = flat[::step][:64].to("cpu", torch.bfloat16).float()
        if not bool(sample.any()):
            continue  # the bridge adds biases of zeros that the checkpoint does not have
        digests.append(hashlib.sha256(sample.numpy().tobytes()).hexdigest() + str(tensor.numel()))
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 over vocabulary, merges, normaliser and pre-tokenizer (not padding or BOS policy)."""
    text = tokenizer.backend_tokenizer.to_str()
    # The vocabulary is the last and by far the largest field; parsing it would take seconds. Inside
    # a JSON string a quote is escaped, so the first match is the field.
    start = text.index('"model":')
    state = json.loads(text[:start].rstrip().rstrip(",") + "}")
    kept = {key: state.get(key) for key in ("normalizer", "pre_tokenizer", "added_tokens")}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    digest.update(text[start:].encode())
    return digest.hexdigest()


def chat_template_fingerprint(tokenizer: Any) -> str:
    """SHA-256 of the chat template, or ``"none"``."""
    template = getattr(tokenizer, "chat_template", None)
    return hashlib.sha256(str(template).encode()).hexdigest() if template else "none"
