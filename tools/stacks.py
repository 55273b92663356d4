"""Run the core tests on the other stacks: TransformerLens 4 without SAELens, and Python 3.13.

Each stack has its own environment under ``.stacks/``, made by ``tools/environment.py`` from the
same pins. A stack whose interpreter is not on this machine is named and left out; asked for by
name, that is an error. Standard library only.

``python tools/stacks.py [tl4] [python313] [-- pytest arguments]``
"""

import argparse
import glob
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
#: What every stack must pass. Real models, documentation and browser are checked on the first one.
CORE = ["tests/contracts", "tests/unit", "tests/laws", "tests/generation"]
#: Name -> interpreter (None: the one that runs this), extras, and requirements in place of pins.
STACKS = {
    "tl4": (None, "dev,viz,tune", ["transformer-lens>=4,<5"]),
    "python313": ("python3.13", "dev,sae,viz,tune", []),
}


def main():
    """Run the stacks that were named, or all; end with 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="STACK", help=" or ".join(STACKS))
    parser.add_argument("--workers", default="2", help="test processes of pytest-xdist")
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    options, rest = parser.parse_args(given[:cut]), given[cut + 1 :]
    unknown = sorted(set(options.names) - set(STACKS))
    if unknown:
        sys.exit(f"no stack {unknown[0]!r}; there are: {', '.join(STACKS)}")
    results = {name: run(name, options.workers, rest) for name in options.names or STACKS}
    for name, code in results.items():
        say(f"{name}: {'no interpreter, not run' if code is None else CODES.get(code, 'failed')}")
    missing = [name for name, code in results.items() if code is None and name in options.names]
    sys.exit(int(bool(missing) or any(results.values())))


CODES = {0: "passed", 2: "interrupted", 5: "no tests were found"}


def run(name, workers, rest):
    """Make the environment of a stack and run the tests in it: pytest's exit code, or None."""
    wanted, extras, replaced = STACKS[name]
    python = sys.executable if wanted is None else interpreter(wanted)
    if python is None:
        say(f"{name}: there is no working {wanted} on the PATH or under pyenv")
        return None
    venv = ROOT / ".stacks" / name
    make = [python, str(ROOT / "tools" / "environment.py"), "--venv", str(venv)]
    make += ["--extras", extras, *(part for one in replaced for part in ("--replace", one))]
    code = subprocess.call(make)
    if code != 0:
        return code
    inside = str(venv / "bin" / "python")
    versions = "import sys, importlib.metadata as m; print(sys.version.split()[0], *(f'{n} '"
    versions += " + m.version(n) for n in ('transformer-lens', 'transformers', 'torch')))"
    say(f"{name}: Python " + subprocess.check_output([inside, "-c", versions]).decode().strip())
    tests = [inside, "-m", "pytest", "-m", "not real", "-q", "-n", workers, "--dist", "worksteal"]
    environment = dict(os.environ, OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"))
    return subprocess.call([*tests, *CORE, *rest], cwd=ROOT, env=environment)


def interpreter(name):
    """A Python of this name that starts: on the PATH, or one that pyenv has."""
    root = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    version = name[len("python") :]
    found = [shutil.which(name), *glob.glob(f"{root}/versions/{version}*/bin/{name}")]
    for path in found:
        # A shim of pyenv is there for every version, and fails for those that are not chosen.
        if path and subprocess.call([path, "-c", ""], stderr=subprocess.DEVNULL) == 0:
            return path
    return None


def say(line):
    """Tell the user what is going on."""
    print("[stacks] " + line, flush=True)


if __name__ == "__main__":
    main()
