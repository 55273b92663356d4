"""Audit of the installed packages: pins, sources, recorded hashes, licences, known vulnerabilities.

Offline it checks that the environment is the one that ``constraints.txt`` names, that nothing came
from an address of its own, and that the Python files of our direct dependencies are those that
their wheels recorded. The advisories of osv.dev are asked when they can be reached; when not, that
is said, and is no failure. Standard library only.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import sys
import tomllib
import urllib.request
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ADVISORIES = "https://api.osv.dev/v1/querybatch"
SECONDS = 3.0
#: Part of every environment, and pinned by nobody.
TOOLS = {"pip", "setuptools", "wheel", "uv"}


def main():
    """Print what was found; end with 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--advisories", choices=["fail", "report"], default="report",
        help="whether a known vulnerability is a failure (default: it is reported)",
    )  # fmt: skip
    options = parser.parse_args()
    found = {canonical(d.metadata["Name"]): d for d in metadata.distributions()}
    ours = canonical(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"])
    packages = {name: d for name, d in found.items() if name not in TOOLS | {ours}}
    direct = [packages[name] for name in direct_names() if name in packages]
    wrong = unpinned(packages) + elsewhere(packages)
    n_files, altered = changed_files(direct)
    wrong += altered
    say(f"{len(packages)} packages, {n_files} files of {len(direct)} direct dependencies hashed")
    unknown = [name for name, d in packages.items() if not licence(d)]
    say(f"licences: {len(packages) - len(unknown)} declared; not said: {', '.join(unknown) or '-'}")
    known, advisories = vulnerable(packages)
    say(known)
    for line in [*wrong, *advisories]:
        say(line)
    sys.exit(int(bool(wrong) or (options.advisories == "fail" and bool(advisories))))


def unpinned(packages):
    """Packages that `constraints.txt` does not name in this version."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    pins = {canonical(name): version.split(";")[0].strip() for name, version in pins.items()}
    return [
        f"WRONG {name} {d.version}: {'pinned to ' + pins[name] if name in pins else 'not pinned'}"
        for name, d in sorted(packages.items())
        if public(d.version) != public(pins.get(name, ""))
    ]


def elsewhere(packages):
    """Packages that came from an address or a folder instead of the index."""
    return [
        f"WRONG {name}: installed from {json.loads(source)['url']}"
        for name, d in sorted(packages.items())
        if (source := d.read_text("direct_url.json"))
        # The build of torch for CPUs may be named by its wheel.
        and not (name == "torch" and "download.pytorch.org" in source)
    ]


def changed_files(distributions):
    """How many files were hashed, and those that are not what the wheel recorded."""
    n, wrong = 0, []
    for d in distributions:
        for file in d.files or ():
            path = Path(d.locate_file(file))
            # Code in Python alone: the libraries of torch are half a gigabyte.
            if file.suffix != ".py" or file.hash is None or file.hash.mode != "sha256":
                continue
            if not path.is_file():
                wrong.append(f"WRONG {d.metadata['Name']}: {file} is missing")
            else:
                n += 1
                digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest())
                if digest.decode().rstrip("=") != file.hash.value:
                    wrong.append(f"WRONG {d.metadata['Name']}: {file} has changed")
    return n, wrong


def vulnerable(packages):
    """What the advisories say: one line of summary, and one a package."""
    if os.environ.get("TL_TRANSFER_OFFLINE"):
        return "advisories: not asked (TL_TRANSFER_OFFLINE is set)", []
    names = sorted(packages)
    queries = [
        {"package": {"name": name, "ecosystem": "PyPI"}, "version": public(packages[name].version)}
        for name in names
    ]
    body = json.dumps({"queries": queries}).encode()
    request = urllib.request.Request(ADVISORIES, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            results = json.load(answer)["results"]
    except (OSError, ValueError, KeyError) as error:
        return f"advisories: not asked ({ADVISORIES} cannot be reached: {error})", []
    hits = {n: r["vulns"] for n, r in zip(names, results, strict=True) if r.get("vulns")}
    lines = [
        f"KNOWN {name} {packages[name].version}: {', '.join(v['id'] for v in found)}"
        for name, found in hits.items()
    ]
    return f"advisories: {len(names)} packages asked, {len(hits)} named", lines


def direct_names():
    """Names of what `pyproject.toml` asks for, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    wanted += [line for extra in project["optional-dependencies"].values() for line in extra]
    return sorted({canonical(re.split(r"[\[<>=!~; ]", line)[0]) for line in wanted})


def licence(distribution):
    """What a package says of its licence."""
    said = distribution.metadata
    classified = [c for c in said.get_all("Classifier") or () if c.startswith("License ::")]
    return said.get("License-Expression") or said.get("License") or classified


def canonical(name):
    """As the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def public(version):
    """Without the part that names a build (``+cpu``)."""
    return version.split("+")[0]


def say(line):
    """One line on the terminal."""
    print(f"audit: {line}")


if __name__ == "__main__":
    main()
