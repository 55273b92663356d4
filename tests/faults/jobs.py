"""The long jobs of this package at toy size, each with what must be true of its folder.

A job works in a folder of its own and can be called again on what a killed one left there. `sound`
is asked after a kill: whatever has a final name must be whole. `result` is asked at the end: two
runs of a job are equal if their results are, and nothing hidden may be left over.
"""

import hashlib
import json
import os
import random
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

import tl_transfer as tt
from tests import tiny
from tests.faults.victim import Moment, Usual, fork, interrupt, kill, measure, require_done
from tests.maps import rows, sums
from tests.toy_task import toy_task
from tests.unit.registry import Registry, wheel
from tests.unit.test_load_gguf import write_gguf
from tests.words import random_texts
from tl_transfer import pipeline, tasks
from tl_transfer.data import store_writer, transport
from tl_transfer.data.packages import PackageFile, fetch_package
from tl_transfer.data.store_texts import TextTable
from tl_transfer.errors import ArtefactError
from tl_transfer.evaluation.result import TransferReport
from tl_transfer.mappers import train as map_train
from tl_transfer.mappers.registry import solve
from tl_transfer.models import bundled, dequantise, origin
from tl_transfer.models.pins import BUNDLED, BundledModel
from tl_transfer.recipe import Recipe
from tl_transfer.sae import run as sae_run
from tl_transfer.sae.corpus import texts_corpus
from tl_transfer.sealed import is_sound, read_tensors, write_tensors

Result = dict[str, str]


class Job(ABC):
    """One stage. `prepare` is called once, in the process whose forks are the victims."""

    name: str

    def prepare(self, folder: Path) -> None:  # noqa: B027 (most need nothing)
        """Make what the job reads."""

    def alone(self) -> None:  # noqa: B027
        """Change what the package does, in a process that does nothing but this job."""

    @abstractmethod
    def run(self, folder: Path) -> object:
        """Do it, or go on with it."""

    def work(self, folder: Path) -> Callable[[], object]:
        """What a process of its own does: one thread, for the pools of the parent are not there."""

        def work() -> object:
            torch.set_num_threads(1)
            self.alone()
            return self.run(folder)

        return work

    @abstractmethod
    def result(self, folder: Path) -> Result:
        """What a finished folder holds; raises if something is not whole."""

    def sound(self, folder: Path, whole: Result) -> None:
        """After a kill: files under their final names are those of an undisturbed run."""
        for name, digest in digests(folder).items():
            if name in whole and name not in self.growing:
                assert digest == whole[name], f"{self.name}: {name} is there, and not whole"

    #: Files that change while the job runs; `sound` of the job looks at them.
    growing: tuple[str, ...] = ()

    def before(self, folder: Path) -> None:  # noqa: B027
        """Something good that is there already and must not be lost."""


def digests(folder: Path) -> Result:
    """Relative path -> SHA-256, of everything whose name and folders are not hidden."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not _hidden(path.relative_to(folder))
    }


def leftovers(folder: Path) -> list[str]:
    """Hidden files other than locks. A kill after the last rename may leave an empty folder."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and _hidden(path.relative_to(folder)) and not path.name.endswith(".lock")
    ]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _model(family: str = "llama", kind: str = "bos", seed: int = 0) -> tt.HookedModel:
    hf = tiny.tiny_hf(family, seed=seed)
    return tt.load_model(hf, tokenizer=tiny.tiny_tokenizer(kind), name=family)


class _Cached(Job):
    """A job that fills the cache folder."""

    def run(self, folder: Path) -> object:
        os.environ["TL_TRANSFER_CACHE"] = str(folder)
        return self.fill()

    @abstractmethod
    def fill(self) -> object:
        """Fill the cache that the environment names."""

    def result(self, folder: Path) -> Result:
        found = digests(folder)
        assert not [name for name in found if ".work" in name or "partial" in name], found
        return found


class Fetch(_Cached):
    """A package from a registry on this machine, over plain http in small answers."""

    name = "fetch"

    def prepare(self, folder: Path) -> None:
        data = bytes(range(256)) * 8000
        content = wheel("tiny-part", {"tiny_part/data/part01.bin": data})
        self.registry = Registry()
        filename = "tiny_part-1.0-py3-none-any.whl"
        self.registry.add("tiny-part", filename, content)
        digest = hashlib.sha256(content).hexdigest()
        self.package = PackageFile("tiny-part", "1.0", filename, digest, len(content))

    def alone(self) -> None:
        os.environ |= {"PIP_INDEX_URL": f"{self.registry.url}/simple", "NO_PROXY": "127.0.0.1"}
        os.environ.pop("TL_TRANSFER_OFFLINE", None)
        transport.pip_is_here = lambda: False
        transport._BLOCK = 1 << 16

    def fill(self) -> object:
        return fetch_package(self.package, progress=False)


class Convert(_Cached):
    """A GGUF file into the folder of a bundled model, in the victim itself."""

    name = "convert"

    def prepare(self, folder: Path) -> None:
        self.gguf = folder / "tiny.gguf"
        tokenizer = tiny.tiny_tokenizer("bos")
        hf = tiny.tiny_hf("llama", d_model=64, n_layers=2, vocab_size=len(tokenizer))
        write_gguf(hf, tokenizer, self.gguf)
        content = self.gguf.read_bytes()
        self.model = BundledModel(
            name="tiny-gguf", family="Tiny", gguf="tiny.gguf", size=len(content), marker="/none",
            sha256=hashlib.sha256(content).hexdigest(), packages=(), quantisation="Q8_0",
            licence="MIT", n_params=1000, context=64, notes="none",
        )  # fmt: skip
        dequantise.convert(self.gguf, folder / "warm")  # imports what it needs, once

    def alone(self) -> None:
        BUNDLED["tiny-gguf"] = self.model
        bundled.convert_apart = lambda gguf, into, progress: dequantise.convert(gguf, into)
        origin.obtain = lambda model, progress: (self.gguf, "a test")

    def fill(self) -> object:
        return bundled.fetch("tiny-gguf", progress=False)


class Capture(Job):
    """Texts through a model into a store."""

    name, growing = "capture", ("manifest.json",)

    def prepare(self, folder: Path) -> None:
        self.site, self.texts = _model().at("resid_post@1"), random_texts(24, seed=4)

    def run(self, folder: Path) -> object:
        return tt.capture(
            self.site, self.texts, store=folder, shard_rows=40, max_tokens=100, progress=False
        )

    def result(self, folder: Path) -> Result:
        tt.ActivationStore(folder).verify()
        return digests(folder)

    def sound(self, folder: Path, whole: Result) -> None:
        super().sound(folder, whole)
        complete = digests(folder).get("manifest.json") == whole["manifest.json"]
        try:
            tt.ActivationStore(folder).verify()
        except ArtefactError:
            assert not complete
        else:
            assert complete, "a store that is not finished was accepted"


class Store(Capture):
    """Rows into the shards of a store, without a model between them."""

    name = "store"

    def prepare(self, folder: Path) -> None:
        g = torch.Generator().manual_seed(0)
        self.rows = [torch.randn(50, 48, generator=g) for _ in range(30)]
        site = _model().at("resid_post@1")
        keys = [torch.arange(50).numpy() for _ in self.rows]
        hashes = [f"{i:064d}" for i in range(30)]
        self.table = TextTable(hashes, hashes, [50] * 30, [0] * 30, keys)
        self.spec = {
            "spaces": [site.space.to_json()],
            "tokens": tt.Tokens().to_json(),
            "dtype": "float32",
        }

    def run(self, folder: Path) -> object:
        with store_writer.claimed(folder):
            writer = store_writer.StoreWriter(folder, self.spec, self.table, 70)
            if writer.complete:
                return writer
            for number in range(writer.next_batch, len(self.rows)):
                n = torch.full((50,), number, dtype=torch.int32)
                key = torch.arange(50)
                columns = {"blocks.1.hook_resid_post": self.rows[number], "text": n, "key": key}
                writer.add({**columns, "position": key.int()}, number, {"position_0": number})
            writer.finish({"n_tokens": 1500, "position_0": 30})
        return writer


class Fit(Job):
    """A map from two stores, written over an older one that is good."""

    name = "fit"

    def prepare(self, folder: Path) -> None:
        texts = random_texts(60, seed=1)
        sites = _model().at("resid_post@1"), _model("qwen2", "nobos", 1).at("resid_post@2")
        self.stores = [
            tt.capture(site, texts, store=folder / str(i), progress=False)
            for i, site in enumerate(sites)
        ]
        self.older = tt.save(tt.fit(*self.stores, method="ols", progress=False), folder / "older")

    def before(self, folder: Path) -> None:
        (folder / "map.safetensors").write_bytes(self.older.read_bytes())

    def run(self, folder: Path) -> object:
        mapper = tt.fit(*self.stores, progress=False)
        return tt.save(mapper, folder / "map.safetensors")

    def sound(self, folder: Path, whole: Result) -> None:
        found = digests(folder)["map.safetensors"]
        old = hashlib.sha256(self.older.read_bytes()).hexdigest()
        assert found in (old, whole["map.safetensors"]), "neither the old map nor the new one"

    def result(self, folder: Path) -> Result:
        tt.load(folder / "map.safetensors")
        return digests(folder)


class Autoencoder(Job):
    """Training a map, its state on the disk after every step."""

    name = "autoencoder training"
    growing = ("final.safetensors", "choose.safetensors")

    def prepare(self, folder: Path) -> None:
        x, y, _ = rows("linear", noise=0.5, n=400)
        self.training = sums(x, y)

    def alone(self) -> None:
        map_train.EVERY = 0.0

    def run(self, folder: Path) -> object:
        training = replace(self.training, checkpoint=folder)
        solution = solve("autoencoder", training, hidden=6, epochs=6, batch_rows=64)
        return write_tensors(folder / "solution.safetensors", {}, solution.parameters)

    def sound(self, folder: Path, whole: Result) -> None:
        super().sound(folder, whole)
        for name in self.growing:
            if (folder / name).is_file():
                assert is_sound(*read_tensors(folder / name, written_by="", hint=""))

    def result(self, folder: Path) -> Result:
        return {"solution.safetensors": digests(folder)["solution.safetensors"]}


class Sae(Job):
    """Capture, training and card of an SAE, its state on the disk after every step."""

    name = "SAE training"
    growing = ("training.safetensors", "card.json")

    def prepare(self, folder: Path) -> None:
        self.site = tt.load_model(tiny.tiny_bridge("llama", seed=3)).at("resid_post@1")
        self.corpus = texts_corpus(random_texts(60, seed=1))
        self.settings = tt.SaeSettings(
            d_sae=64, k=4, epochs=2, batch_rows=64, dead_after_rows=256, seed=0
        )
        self.run(folder / "warm")  # imports what it needs, once

    def alone(self) -> None:
        sae_run.EVERY = 0.0

    def run(self, folder: Path) -> object:
        return tt.train_sae(
            self.site, folder=folder, corpus=self.corpus, settings=self.settings, loss=False,
            progress=False,
        )  # fmt: skip

    def sound(self, folder: Path, whole: Result) -> None:
        if (folder / "card.json").is_file():
            assert tt.load_sae(folder).identity == whole["identity"]

    def result(self, folder: Path) -> Result:
        names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        assert names == ["card.json", "cfg.json", "sae_weights.safetensors", "training.json"], names
        return {
            "identity": tt.load_sae(folder, site=self.site).identity,
            "weights": digests(folder)["sae_weights.safetensors"],
        }


class Report(Job):
    """A whole run: two models, a map, a vector, and the report of what they do."""

    name = "run and report"

    def prepare(self, folder: Path) -> None:
        for name, family, kind in (("source", "llama", "bos"), ("target", "gemma3", "nobos")):
            tokenizer = tiny.tiny_tokenizer(kind)
            hf = tiny.tiny_hf(family, seed=3, n_layers=2, vocab_size=len(tokenizer))
            hf.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
        self.task = toy_task(tiny.tiny_tokenizer("nobos"))
        self.recipe = Recipe(
            source=str(folder / "source"), target=str(folder / "target"), task="toy",
            source_layers=("resid_post@0",), target_layers=("resid_post@0",), budgets=(0.002,),
            main_budget=0.002, n_random=2, n_generate=2, max_new_tokens=2,
        )  # fmt: skip

    def alone(self) -> None:
        tasks.TASKS["toy"] = lambda **settings: self.task

    def run(self, folder: Path) -> object:
        return pipeline.run(self.recipe, folder, progress=False)

    def sound(self, folder: Path, whole: Result) -> None:
        found = pipeline._reusable(self.recipe, folder)
        if found is not None:
            assert self.result(folder) == whole

    def result(self, folder: Path) -> Result:
        report = TransferReport.load(folder / "report.json").data
        assert (folder / "report.html").read_text().rstrip().endswith("</html>")
        kept = {name: report[name] for name in ("pair", "matched", "mapper", "verdict")}
        text = json.dumps(kept, sort_keys=True, default=str)
        mapper = tt.load(folder / "mapper.safetensors")
        vector = tt.load(folder / "vector.safetensors")
        assert isinstance(mapper, tt.AffineMap) and isinstance(vector, tt.SteeringVector)
        return {
            "report": hashlib.sha256(text.encode()).hexdigest(),
            "map": hashlib.sha256(mapper.weight.numpy().tobytes()).hexdigest(),
            "vector": hashlib.sha256(vector.direction.numpy().tobytes()).hexdigest(),
        }


class Campaign:
    """One job, what it does undisturbed, and kills of it.

    Args:
        job: What is killed.
        folder: Where everything happens.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self._folder = job, folder
        given = folder / "given"
        given.mkdir(parents=True)
        job.prepare(given)

    @cached_property
    def undisturbed(self) -> tuple[Usual, Result]:
        """What the job usually does, and its result."""
        folder = self._fresh("undisturbed")
        usual = measure(self.job.work(folder), folder)
        return usual, self.job.result(folder)

    def _fresh(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir()
        self.job.before(folder)
        return folder

    def interrupt(self, seed: int) -> bool:
        """Ctrl-C at a moment of this seed: it ends at once, cleanly, and can be gone on with.

        Returns:
            Whether it came in time.
        """
        usual, whole = self.undisturbed
        at = random.Random(f"{self.job.name} ctrl-c {seed}").randrange(usual.events)
        folder = self._fresh(f"ctrl-c-{seed}")
        ended = interrupt(self.job.work(folder), at)
        self.job.sound(folder, whole)
        assert leftovers(folder) == [], f"{self.job.name}, ctrl-c {seed}: {leftovers(folder)}"
        require_done(fork(self.job.work(folder)))
        assert self.job.result(folder) == whole, f"{self.job.name}, ctrl-c {seed}: another result"
        shutil.rmtree(folder)
        return ended

    def kill(self, seed: int) -> dict[str, int]:
        """Kill the job at a moment of this seed, perhaps again while it recovers, and look.

        Returns:
            How often it was killed, by kind of moment; and how often it had ended before.
        """
        usual, whole = self.undisturbed
        chance = random.Random(f"{self.job.name} {seed}")
        folder = self._fresh(f"seed-{seed}")
        happened: dict[str, int] = {}
        for _ in range(1 + (chance.random() < 0.3)):
            moment = Moment.draw(chance, usual)
            killed = kill(self.job.work(folder), moment)
            name = moment.kind if killed else "ended before"
            happened[name] = happened.get(name, 0) + 1
            self.job.sound(folder, whole)
        require_done(fork(self.job.work(folder)))
        found = self.job.result(folder)
        assert found == whole, f"{self.job.name}, seed {seed}: {found} instead of {whole}"
        assert leftovers(folder) == [], f"{self.job.name}, seed {seed}: {leftovers(folder)}"
        shutil.rmtree(folder)
        return happened


JOBS: dict[str, type[Job]] = {
    job.name: job for job in (Fetch, Convert, Capture, Store, Fit, Autoencoder, Sae, Report)
}
