"""Make `.venv` from nothing: the right torch build first, then the package at the pinned versions.

Torch goes first because a plain `pip install` of the package would take PyPI's build, which on
Linux brings several GB of CUDA libraries that a CPU user does not want.

Standard library only, and syntax that Python 3.6 reads, so that it can say that it is too old.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OLDEST = (3, 11)
#: Everything a developer needs; the demo needs none of it.
ALL_EXTRAS = "dev,docs,notebooks,ray,sae,viz"
#: Byte-compiling is more than half of an installation's processor time; Python does it as needed.
INSTALL = ["install", "--no-compile"]
LOCK_HEADER = """\
# One known-good environment: TransformerLens 3.9 with SAELens. `make` installs exactly this.
# Written by `make lock`; edit pyproject.toml (or the torch line here) and run it again.
"""


def main():
    """Read the command line and bring the environment up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=pathlib.Path, default=ROOT / ".venv")
    parser.add_argument("--torch", choices=["cpu", "cuda"], default="cpu", help="build of torch")
    parser.add_argument("--extras", default="", help="comma-separated extras of pyproject.toml")
    parser.add_argument(
        "--replace",
        action="append",
        default=[],
        metavar="REQUIREMENT",
        help="install this in place of the pin of that package",
    )
    parser.add_argument("--lock", action="store_true", help="resolve anew, write constraints.txt")
    options = parser.parse_args()
    require_python()
    if options.lock:
        lock()
    else:
        create(options.venv)
        install_torch(options.venv, options.torch)
        install_package(options.venv, options.extras, options.replace)


def require_python():
    """Refuse an interpreter older than the package supports."""
    if sys.version_info < OLDEST:
        sys.exit(
            f"tl_transfer needs Python {OLDEST[0]}.{OLDEST[1]} or newer; "
            f"{sys.executable} is {platform.python_version()}.\n"
            "Next: name a newer one, for instance: make PYTHON=python3.12 demo"
        )


def create(venv):
    """Create the virtual environment unless a working one is there."""
    if python_of(venv).exists() and run_quiet(venv, "import pip") == 0:
        return
    say(f"creating {venv.name} with Python {platform.python_version()}")
    if subprocess.call([sys.executable, "-m", "venv", "--clear", str(venv)]) != 0:
        sys.exit(
            f"could not create a virtual environment with {sys.executable}.\n"
            "Next: install Python's venv module (Debian and Ubuntu: apt-get install python3-venv)"
        )


def install_torch(venv, build):
    """Install the pinned torch as a CPU or CUDA build; keep what is there if it is right."""
    version = pinned("torch")
    have = installed_torch(venv)
    if have == (version, build):
        return
    if have:
        say(f"torch {have[0]} ({have[1]}) is installed, {version} ({build}) is wanted")
        pip(venv, "uninstall", "-q", "-y", "torch")
    say(f"installing torch {version} ({build})")
    if build == "cuda":
        # `===` refuses builds with a local tag such as 2.13.0+cpu: PyPI's own is the CUDA one.
        pip(venv, *INSTALL, "--no-deps", f"torch==={version}")
    else:
        wanted = [*INSTALL, "--no-deps", f"torch=={version}"]
        # Short patience: behind a closed firewall the next index must get its turn soon.
        short = ["--index-url", CPU_INDEX, "--timeout", "5", "--retries", "1"]
        if pip(venv, *wanted, *short, check=False) != 0:
            say(f"{CPU_INDEX} did not answer; taking torch from the configured index")
            pip(venv, *wanted)
    report_torch(venv, build)


def report_torch(venv, wanted):
    """Say which build was found, and what to do if it is not the one asked for."""
    version, build = installed_torch(venv)
    say(f"torch {version} is installed, a {build} build")
    if build == wanted:
        return
    if wanted == "cuda":
        say("warning: the configured index has no CUDA build for this platform")
    else:
        say("warning: it will bring several GB of CUDA libraries, and works on a CPU all the same")


def install_package(venv, extras, replaced=()):
    """Install the package in place, every dependency at its pin but for those replaced."""
    what = "tl_transfer and its dependencies" + (f" ({extras})" if extras else "")
    say(f"installing {what}; a few minutes the first time")
    target = str(ROOT) + (f"[{extras}]" if extras else "")
    freed = {canonical(re.split(r"[<>=!~\[ ]", requirement)[0]) for requirement in replaced}
    lines = CONSTRAINTS.read_text().splitlines()
    kept = [line for line in lines if canonical(line.split("==")[0]) not in freed]
    with tempfile.TemporaryDirectory() as folder:
        pins = pathlib.Path(folder) / "constraints.txt"
        pins.write_text("\n".join(kept) + "\n")
        pip(venv, *INSTALL, "-qq", "-c", str(pins), "-e", target, *replaced)


def lock():
    """Resolve every extra in a fresh environment and write the result to constraints.txt."""
    torch = pinned("torch")
    folder = pathlib.Path(tempfile.mkdtemp())
    try:
        create(folder)
        install_torch(folder, "cpu")
        say("resolving every extra")
        pip(folder, *INSTALL, "-qq", "-e", f"{ROOT}[{ALL_EXTRAS}]", f"torch=={torch}")
        freeze = [str(python_of(folder)), "-m", "pip", "freeze", "--exclude-editable"]
        frozen = subprocess.check_output(freeze).decode().splitlines()
        # A local tag (+cpu) would forbid the CUDA build of the same version.
        pins = {re.sub(r"\+\S+", "", line) for line in frozen if "==" in line}
        say("resolving what the CUDA build adds")
        pins |= cuda_pins(folder, torch, pins)
    finally:
        shutil.rmtree(str(folder))
    CONSTRAINTS.write_text(LOCK_HEADER + "\n".join(sorted(pins, key=str.lower)) + "\n")
    say(f"wrote {CONSTRAINTS.name}: {len(pins)} pins")


def cuda_pins(folder, torch, pins):
    """Pins of the CUDA build's own requirements, which are resolved without installing them."""
    given, report = folder / "given.txt", folder / "report.json"
    given.write_text("\n".join(pins))
    dry = ["--dry-run", "--ignore-installed", "--report", str(report), "-c", str(given)]
    pip(folder, *INSTALL, "-qq", *dry, f"torch==={torch}")
    found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    names = {canonical(pin.split("==")[0]) for pin in pins}
    return {f"{m['name']}=={m['version']}" for m in found if canonical(m["name"]) not in names}


def canonical(name):
    """A distribution name as the package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(name):
    """Version of a package in constraints.txt."""
    found = re.search(rf"^{re.escape(name)}==(\S+)$", CONSTRAINTS.read_text(), re.M)
    if not found:
        sys.exit(f"constraints.txt pins no {name}.\nNext: add a line {name}==VERSION")
    return found.group(1)


def installed_torch(venv):
    """``(version, "cpu" or "cuda")`` of the torch in `venv`, or None; torch is not imported."""
    for path in venv.glob("lib*/python*/site-packages/torch/version.py"):
        facts = runpy.run_path(str(path))
        build = "cuda" if facts.get("cuda") else "cpu"
        return str(facts["__version__"]).split("+")[0], build
    return None


def python_of(venv):
    """Interpreter of a virtual environment."""
    return venv / "bin" / "python"


def pip(venv, *arguments, check=True):
    """Run pip inside `venv`; end the program on failure if `check`."""
    command = [str(python_of(venv)), "-m", "pip", *arguments]
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
    code = subprocess.call(command, env=environment)
    if check and code != 0:
        sys.exit(f"pip {arguments[0]} failed (exit {code}); see its message above")
    return code


def run_quiet(venv, code):
    """Exit status of a line of Python in `venv`."""
    return subprocess.call([str(python_of(venv)), "-c", code], stderr=subprocess.DEVNULL)


def say(line):
    """Tell the user what is going on."""
    print("[env] " + line, flush=True)


if __name__ == "__main__":
    main()
