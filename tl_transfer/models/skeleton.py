"""A model without weights: the real classes on the meta device, from a published shape or a folder.

Names, widths, layers and hook points are those of the model itself, and no byte of a weight is
read, so a plan can be checked anywhere in a second.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tl_transfer.errors import InputError
from tl_transfer.models import bundled
from tl_transfer.models.published import PUBLISHED
from tl_transfer.models.surface import HookedModel


@dataclass(frozen=True)
class Skeleton:
    """A model of the right shape on the meta device.

    Attributes:
        name: As in the recipe.
        model: The Hugging Face model.
        known_from: Where its shape comes from.
        stated: Parameters that its makers state; None: nobody did.
    """

    name: str
    model: Any
    known_from: str
    stated: int | None = None

    @property
    def n_params(self) -> int:
        """Parameters, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def n_cached(self) -> int:
        """Numbers that the key/value cache keeps for a token."""
        config = self.model.config
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        return 2 * config.num_hidden_layers * config.num_key_value_heads * width

    def hooked(self) -> HookedModel:
        """Inside a bridge, with a tokenizer that only stands in: for names of hook points."""
        from transformer_lens.model_bridge import TransformerBridge

        with _stand_in() as tokenizer:
            host = TransformerBridge.boot_transformers(
                f"tl_transfer/{Path(self.name).name}",
                hf_model=self.model,
                tokenizer=tokenizer,
                dtype=torch.bfloat16,
                device="meta",
            )
        return HookedModel(host, tokenizer, name=self.name, weights="none")


def skeleton(name: str) -> Skeleton | None:
    """The skeleton of a model by bundled name, hub id or folder; None if its shape is not known.

    The hub is not asked: only what is published here, in the cache or in a folder.

    Raises:
        InputError: a folder or an architecture that cannot be read.
    """
    if known := PUBLISHED.get(name):
        found = _built(name, known.architecture, known.config)
        return Skeleton(name, found, "published shape", known.n_params)
    stated = None
    if name in bundled.BUNDLED:
        if not bundled.plan(name).cached:
            return None
        stated = bundled.BUNDLED[name].n_params
        folder = bundled.fetch(name)
    else:
        folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        return None
    try:
        values = json.loads((folder / "config.json").read_text("utf-8"))
        found = _built(name, values["architectures"][0], values)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(
            f"source: the config.json of {name} cannot be read",
            got=f"{type(error).__name__}: {error}"[:200],
            valid="the configuration of a causal language model",
            hint="get the folder again",
        ) from error
    return Skeleton(name, found, "its config.json", stated)


def _built(name: str, architecture: str, values: dict[str, Any]) -> Any:
    import transformers

    kind = getattr(transformers, architecture, None)
    if kind is None:
        raise InputError(
            f"source: transformers {transformers.__version__} has no class for {name}",
            got=architecture,
            valid="an architecture of transformers",
            hint="upgrade transformers",
        )
    config = kind.config_class(**values)
    config.architectures = [architecture]
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return kind(config).to(torch.bfloat16).eval()


@contextmanager
def _stand_in() -> Iterator[Any]:
    """A fast tokenizer of bytes: hosts want one, and skeletons are asked for names only.

    In a folder, since a bridge reads its tokenizer once more from where it came from.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(["<s>", *symbols])}
    bytewise = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, bos_token="<s>", eos_token="<s>", pad_token="<s>"
    )
    with TemporaryDirectory() as folder:
        fast.save_pretrained(folder)
        yield AutoTokenizer.from_pretrained(folder, local_files_only=True)
