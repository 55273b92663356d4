"""What a fit costs beside the two forward passes: sums, tokenising and pairing, memory.

Sums run on random rows of real widths, in six folds with the shuffled control, against a loop that
does float32 products of X and Y and nothing else. Memory is the peak of a process of its own.
"""

import subprocess
import sys
import time
from pathlib import Path

import torch
from timing import cost, median, pin, report, write

import tl_transfer as tt
from tl_transfer.data.texts import text_hash
from tl_transfer.data.tokens import read_tokens
from tl_transfer.models.batches import in_order, pad
from tl_transfer.models.capture import MAX_TOKENS, reading_order
from tl_transfer.models.pairs import ModelPairs
from tl_transfer.statistics import PairedMoments
from tl_transfer.streaming import MomentGrid

D_SOURCE, D_TARGET, BATCH, N_FOLDS = 576, 640, 4096, 6
N_ROWS = 24 * BATCH
#: A score card costs the same for any number of texts, so a fit of few of them shows it more.
N_TEXTS = (320, 960)


def sums() -> list[dict]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N_ROWS, D_SOURCE, generator=g)
    y = torch.randn(N_ROWS, D_TARGET, generator=g) + 0.5 * x[:, :1]
    text = torch.arange(N_ROWS) // 60
    fold = text % N_FOLDS

    def ours() -> PairedMoments:
        grid = MomentGrid({"x": D_SOURCE}, {"y": D_TARGET}, N_FOLDS)
        for rows in torch.arange(N_ROWS).split(BATCH):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            grid.add({"x": x[part]}, {"y": y[part]}, fold[part], key=text[part])
        return grid.folds("x", "y")[0]

    def bare() -> torch.Tensor:
        xx, yy = torch.zeros(D_SOURCE, D_SOURCE), torch.zeros(D_TARGET, D_TARGET)
        xy = torch.zeros(D_SOURCE, D_TARGET)
        for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True):
            xx += a.T @ a
            xy += a.T @ b
            yy += b.T @ b
        return xy

    truth = PairedMoments.of(x[fold == 0], y[fold == 0])
    assert float((ours().xy - truth.xy).norm() / truth.xy.norm()) < 1e-5
    return [
        report("streaming sums: centred, six folds, control", cost(ours, bare), goal=1.15,
               better="lower", against="bare float32 loop of X^T X, X^T Y and Y^T Y")
    ]  # fmt: skip


def whole_fit(n_texts: int) -> list[dict]:
    source, target = (tt.load_model(n) for n in ("smollm2-135m-instruct", "gemma-3-270m"))
    here, there = source.at("resid_post@15"), target.at("resid_post@9")
    task = tt.tasks.sentiment(n_fit=n_texts, n_contrast=4)
    texts = task.fit_texts
    ids = [
        [reading.ids for reading in read_tokens(list(texts), model.tokenizer, tt.Tokens())]
        for model in (source, target)
    ]
    widths = [max(len(a), len(b)) for a, b in zip(*ids, strict=True)]
    order = reading_order(
        [text_hash(text) for text in texts], [len(text.encode()) for text in texts],
        [len(row) for row in ids[0]],
    )  # fmt: skip
    batches = [index for part in order for index in in_order(part, widths, max_tokens=MAX_TOKENS)]

    def forwards() -> None:
        for index in batches:
            for site, rows in ((here, ids[0]), (there, ids[1])):
                batch = pad([rows[i] for i in index], side="right")
                site.model.residuals(batch.tokens, batch.mask, [site.point])

    def pairing() -> ModelPairs:
        return ModelPairs([here], [there], texts)

    def fit() -> None:
        tt.fit(here, there, texts=texts, documents=task.fit_documents, progress=False)

    shares, costs = [], []
    fit()
    for turn in range(3):
        times = {}
        for work in (forwards, pairing, fit)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            work()
            times[work] = time.perf_counter() - start
        shares.append(times[pairing] / times[forwards])
        costs.append(times[fit] / times[forwards])
    n_tokens = sum(len(row) for side in ids for row in side)
    against = f"the forward passes of both models, {n_tokens} tokens in {len(texts)} texts"
    return [
        report(f"tokenising and pairing, {n_texts} texts", median(shares), goal=0.05,
               better="lower", unit="of the forwards", against=against),
        report(f"a whole fit with its score card, {n_texts} texts", median(costs), goal=1.03,
               better="lower", against=against),
    ]  # fmt: skip


def memory() -> list[dict]:
    peaks = {
        scale: [
            float(subprocess.run([sys.executable, __file__, "peak", str(400 * scale)],
                                 capture_output=True, text=True, check=True).stdout.split()[-1])
            for _ in range(3)
        ]
        for scale in (1, 8)
    }  # fmt: skip
    growth = [many / few for few, many in zip(peaks[1], peaks[8], strict=True)]
    return [
        report("peak memory of a fit, 8 times the texts", median(growth), goal=1.05,
               better="lower", against="400 texts, same models, another process")
    ]  # fmt: skip


def peak(n_texts: int) -> None:
    """Fit two tiny models on so many texts and print the peak resident size."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests import tiny
    from tests.words import random_texts

    here, there = (
        tt.load_model(tiny.tiny_hf(family, seed=seed), name=family,
                      tokenizer=tiny.tiny_tokenizer("bos")).at("resid_post@1")
        for seed, family in ((0, "llama"), (1, "qwen2"))
    )  # fmt: skip
    texts = random_texts(n_texts, seed=1)
    # The peak of loading is forgotten. (ru_maxrss would be that of the process that started us,
    # which a child inherits through vfork: always the same.)
    Path("/proc/self/clear_refs").write_text("5")
    tt.fit(here, there, texts=texts, progress=False)
    status = Path("/proc/self/status").read_text().splitlines()
    print(next(line.split()[1] for line in status if line.startswith("VmHWM:")))


def main() -> None:
    if sys.argv[1:2] == ["peak"]:
        peak(int(sys.argv[2]))
        return
    pin()
    write([*sums(), *memory(), *(entry for n in N_TEXTS for entry in whole_fit(n))])


if __name__ == "__main__":
    main()
