"""pyproject.toml, constraints.txt and the Makefile agree with each other and with this machine."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tl_transfer

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
DIRECT = [Requirement(line) for line in sum(EXTRAS.values(), PROJECT["dependencies"])]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): pin for name, pin in pairs}


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda r: r.name)
def test_every_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    pin = pins().get(canonicalize_name(requirement.name))
    assert pin, f"constraints.txt does not pin {requirement.name}; run: make lock"
    assert requirement.specifier.contains(pin), f"{requirement} excludes the pin {pin}"


def test_pins_carry_no_build_tag_and_no_path() -> None:
    odd = [f"{name}=={pin}" for name, pin in pins().items() if not re.fullmatch(r"[\w.!]+", pin)]
    assert odd == [], "a tag such as +cpu would forbid the other builds of that version"


def test_the_make_targets_install_every_extra() -> None:
    (named,) = re.findall(r"--extras (\S+)", (ROOT / "Makefile").read_text())
    assert set(named.split(",")) == set(EXTRAS)


def test_the_console_command_points_into_the_package() -> None:
    assert PROJECT["scripts"] == {"tl-transfer": "tl_transfer.cli:main"}


def test_the_package_tells_the_declared_version() -> None:
    assert tl_transfer.__version__ == PROJECT["version"]


def test_every_public_name_is_there() -> None:
    missing = [name for name in tl_transfer.__all__ if not hasattr(tl_transfer, name)]
    assert missing == []


def test_the_installed_version_is_the_declared_one() -> None:
    try:
        installed = version("tl-transfer")
    except PackageNotFoundError:
        pytest.skip("tl-transfer is not installed here; make test installs it")
    assert installed == PROJECT["version"]


def test_the_environment_script_refuses_torch_without_a_pin(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    script = tmp_path / "tools" / "environment.py"
    script.write_text((ROOT / "tools" / "environment.py").read_text())
    (tmp_path / "constraints.txt").write_text("numpy==2.0\n")
    code = f"import runpy; runpy.run_path({str(script)!r})['pinned']('torch')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "constraints.txt pins no torch" in done.stderr
    assert "Next: add a line torch==VERSION" in done.stderr
