"""The texts of a store: what they are known by, and which of their tokens were chosen."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tl_transfer.data.shards import map_shard, require_checksum, write_shard
from tl_transfer.errors import ArtefactError
from tl_transfer.sealed import MALFORMED

TEXTS = "texts.safetensors"


@dataclass(frozen=True)
class TextTable:
    """Texts in the order in which they are read.

    Attributes:
        hashes: SHA-256 of every text.
        documents: Document of every text.
        n_chosen: Tokens asked for in it, with those whose bytes could not be verified.
        n_dropped: Tokens whose bytes could not be verified.
        keys: What each chosen token has read, whether or not its row was kept.
    """

    hashes: list[str]
    documents: list[str]
    n_chosen: list[int]
    n_dropped: list[int]
    keys: list[np.ndarray]

    def write(self, folder: Path) -> str:
        """Write the table; returns the SHA-256 of the file."""
        names = json.dumps([self.hashes, self.documents]).encode()
        columns = {
            "names": torch.frombuffer(bytearray(names), dtype=torch.uint8),
            "n_chosen": torch.tensor(self.n_chosen),
            "n_dropped": torch.tensor(self.n_dropped),
            "n_keys": torch.tensor([len(keys) for keys in self.keys]),
            "key": torch.from_numpy(np.concatenate(self.keys)),
        }
        return write_shard(folder / TEXTS, columns)

    @classmethod
    def read(cls, folder: Path, sha256: str | None) -> "TextTable":
        """Read a table and compare it with its checksum, if there is one.

        Raises:
            ArtefactError: it is missing or changed.
        """
        if sha256 is not None:
            require_checksum(folder / TEXTS, sha256)
        columns = map_shard(folder / TEXTS)
        try:
            hashes, documents = json.loads(bytes(columns["names"].numpy()))
            ends = np.cumsum(columns["n_keys"].numpy())
            table = cls(
                hashes,
                documents,
                columns["n_chosen"].tolist(),
                columns["n_dropped"].tolist(),
                np.split(columns["key"].numpy(), ends[:-1]),
            )
            sizes = {len(part) for part in vars(table).values()}
            if len(sizes) != 1 or ends[-1:].sum() != len(columns["key"]):
                raise ValueError(f"columns of {sorted(sizes)} texts")
        except MALFORMED as error:
            raise ArtefactError(
                f"{folder / TEXTS}: not the texts of a store",
                got=f"{type(error).__name__}: {error}"[:200],
                valid="a file written by tl_transfer.capture",
                hint="capture again",
            ) from error
        return table
