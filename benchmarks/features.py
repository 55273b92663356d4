"""Correlating two dictionaries of 16k features: throughput beside capture alone, and peak memory.

The dictionaries are random top-32 ones of the right size: what they say does not matter here. Both
passes read the same texts in one process, in turns, after one turn that is not counted; the target
is that the pass with encoding and sums runs at 0.8 of the speed of capture, and that correlating
and matching add less than 4 GB to the two models.
"""

import os
import threading
import time
from dataclasses import replace

import torch
from timing import median, pin, report, write

import tl_transfer as tt
from tl_transfer.data.corpora import general
from tl_transfer.models.sources import pairs_of

D_SAE, K, N_TEXTS, TURNS = 16384, 32, 60, 5


def dictionary(site: tt.models.surface.Site, seed: int) -> tt.Dictionary:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(
        torch.randn(D_SAE, site.model.d_model, generator=generator), dim=-1
    )
    zero = torch.zeros(site.model.d_model)
    coder = tt.SparseCoder(
        directions.T.contiguous(), torch.zeros(D_SAE), directions, zero, zero, "topk", K
    )
    return replace(tt.Dictionary.of(coder), space=site.space)


class Peak:
    """Largest resident memory of this process while the block runs, looked at every 20 ms."""

    def __enter__(self) -> "Peak":
        self.first = self.bytes = resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.bytes = max(self.bytes, resident())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    pin()
    here = tt.load_model("smollm2-135m-instruct").at("resid_post@15")
    there = tt.load_model("gemma-3-270m").at("resid_post@9")
    source, target = dictionary(here, 0), dictionary(there, 1)
    texts = [d.text for d in general(N_TEXTS, seed=0, min_chars=250, max_chars=600)]
    capture, matching, sums = [], [], None
    for turn in range(TURNS + 1):
        start = time.perf_counter()
        for _batch in pairs_of([here], [there], texts).batches(progress=False):
            pass
        capture.append(time.perf_counter() - start)
        del sums
        with Peak() as watched:
            start = time.perf_counter()
            sums = tt.correlate_features(here, there, source, target, texts=texts, progress=False)
            matching.append(time.perf_counter() - start)
            if turn == TURNS:  # matching takes half a minute and is not what is timed
                found = tt.match_features(sums, min_active=5)
    ratios = [a / b for a, b in zip(capture[1:], matching[1:], strict=True)]
    peak = (watched.bytes - watched.first) / 1e9
    shape = f"16k x 16k features, {sums.n} training rows, {len(found)} matches"
    write(
        [
            report("speed of the matching pass over that of capture", median(ratios), goal=0.8,
                   against=shape, better="higher", unit="x"),
            report("memory that matching adds to the two models", (peak,) * 3, goal=4.0,
                   against=shape, better="lower", unit="GB"),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
