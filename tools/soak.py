"""The long campaigns: hundreds of seeded kills, every bit of artefacts, fuzzing, leaks, a cluster.

``make soak`` runs them all and writes ``docs/results/soak.json`` and ``soak.md``. Each part is kept
as it ends, with a hash of the code that it ran with, so a campaign that was cut goes on (``--anew``
begins again), and one after a change of the code is done again. A kill that fails names
its stage and seed: ``make soak ARGS="--replay 'fit:17'"`` does that one alone.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULT, PAGE = (ROOT / "docs" / "results" / f"soak.{kind}" for kind in ("json", "md"))
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

#: Tests that are longer with the profile of the campaign.
LONGER = ["tests/unit/test_exchange_fuzz.py", "tests/faults/test_fuzz.py",
          "tests/laws/test_align_properties.py"]  # fmt: skip
LEAKS = ["tests/generation/test_leaks.py"]
CLUSTER = ["tests/soak"]
#: Bits of a file that are turned one by one; of a longer one as many, spread over it.
MOST_BITS = 6000


def main() -> None:
    """Run what was asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=320, help="kill -9 in all (default 320)")
    parser.add_argument("--replay", metavar="STAGE:SEED", help="one kill alone")
    parser.add_argument("--only", choices=list(PARTS), help="one part alone")
    parser.add_argument("--anew", action="store_true", help="forget what an earlier one kept")
    options = parser.parse_args()
    if options.replay:
        replay(options.replay)
        return
    found = {} if options.anew or not RESULT.is_file() else json.loads(RESULT.read_text("utf-8"))
    found["machine"] = f"{platform.machine()}, one thread, {python()}"
    code = package_code()
    for name, part in PARTS.items():
        if options.only in (None, name):
            if found.get(name, {}).get("code") != code:
                found[name] = {"code": code}
            begin = time.monotonic()
            if part(found[name], found, options):
                found[name]["seconds"] = round(time.monotonic() - begin)
            keep(found)
    from soak_page import page

    PAGE.write_text(page(found), encoding="utf-8")
    print(f"written: {PAGE.relative_to(ROOT)}")


def kills(done, found, options):
    """Kill every job an equal number of times."""
    from tests.faults.jobs import JOBS, Campaign

    each = -(-options.kills // len(JOBS))
    new = False
    for name, job in JOBS.items():
        mine = done.setdefault(name, {})
        if sum(mine.get(kind, 0) for kind in ("event", "time")) >= each:
            continue
        new, seed = True, 0
        mine.clear()
        with tempfile.TemporaryDirectory() as folder:
            campaign = Campaign(job(), Path(folder))
            while sum(mine.get(kind, 0) for kind in ("event", "time")) < each:
                try:
                    happened = campaign.kill(seed)
                except AssertionError:
                    print(f"FAILED: make soak ARGS=\"--replay '{name}:{seed}'\"", flush=True)
                    raise
                for kind, n in happened.items():
                    mine[kind] = mine.get(kind, 0) + n
                seed += 1
        mine["seeds"] = seed
        print(f"{name}: {mine}", flush=True)
        keep(found)
    return new


def replay(which):
    """One kill, by stage and seed."""
    from tests.faults.jobs import JOBS, Campaign

    name, _, seed = which.rpartition(":")
    with tempfile.TemporaryDirectory() as folder:
        print(Campaign(JOBS[name](), Path(folder)).kill(int(seed)))


def ctrl_c(done, found, options):
    """Ctrl-C in every job."""
    from tests.faults.jobs import JOBS, Campaign

    new = False
    for name, job in JOBS.items():
        if name not in done:
            new = True
            with tempfile.TemporaryDirectory() as folder:
                campaign = Campaign(job(), Path(folder))
                done[name] = sum(campaign.interrupt(seed) for seed in range(10))
            print(f"ctrl-c in {name}: {done[name]} of 10 in time", flush=True)
            keep(found)
    return new


def bits(done, found, options):
    """Turn the bits of every artefact."""
    import tl_transfer as tt
    from tests import tiny
    from tests.faults.artefacts import kinds
    from tests.faults.test_damage import count_refused, written

    hf = tiny.tiny_hf("llama", n_layers=3)
    model = tt.load_model(hf, tokenizer=tiny.tiny_tokenizer("bos"), name="llama")
    new = False
    for name, kind in kinds(model).items():
        if name in done:
            continue
        new, tried, refused = True, 0, 0
        with tempfile.TemporaryDirectory() as folder:
            for file, size in written(kind, Path(folder)):
                step = max(1, -(-8 * size // MOST_BITS)) | 1  # odd: all eight bits of a byte occur
                places = [(bit // 8, 1 << bit % 8) for bit in range(0, 8 * size, step)]
                tried += len(places)
                refused += count_refused(kind, name, Path(folder), file, places)
        done[name] = {"turned": tried, "refused": refused}
        print(f"bits of {name}: {done[name]}", flush=True)
        keep(found)
    return new


def fuzz(done, found, options):
    """The fuzzing tests with many more examples."""
    return pytest(done, LONGER, {"HYPOTHESIS_PROFILE": "soak"})


def leaks(done, found, options):
    """The leak tests with ten times the cycles."""
    return pytest(done, LEAKS, {"TL_TRANSFER_CYCLES": "10000"})


def cluster(done, found, options):
    """Kills, lost nodes and Ctrl-C on a local Ray cluster."""
    if find_spec("ray") is None:
        print("cluster: left out, Ray is not installed (the extra ray)", flush=True)
        return False
    done["ray"] = version("ray")
    return pytest(done, CLUSTER, {}, "-m", "soak")


def pytest(done, files, environment, *more):
    """Run tests: whether anything was run."""
    if done.get("passed"):
        return False
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *more]
    command += [file for file in files if (ROOT / file).is_file()]
    out = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, text=True
    )
    print(out.stdout[-3000:], flush=True)
    if out.returncode:
        sys.exit(out.returncode)
    done["passed"] = int(out.stdout.rsplit(" passed", 1)[0].split()[-1])
    return True


def keep(found):
    """What is known so far."""
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def package_code():
    """Hash of the package that is tested."""
    from tl_transfer.evaluation.report import versions

    return versions()["code"]


def python():
    """Versions that matter to files."""
    names = ("safetensors", "torch")
    return f"Python {platform.python_version()}, " + ", ".join(f"{n} {version(n)}" for n in names)


PARTS = {
    "kills": kills, "ctrl-c": ctrl_c, "bits": bits, "fuzz": fuzz, "leaks": leaks,
    "cluster": cluster,
}  # fmt: skip


if __name__ == "__main__":
    main()
