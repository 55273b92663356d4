"""Install repeng, steering-vectors and nnsight in their own environment; make the golden files.

They need numpy below 2 and transformers below 5, so they cannot be beside TransformerLens. Run it
in the development environment: ``.venv/bin/python tools/foreign_tools.py``. The environment goes to
the cache; the files of ``tests/data/exchange`` are written anew.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.foreign import our_side  # noqa: E402

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PACKAGES = ("repeng==0.4.0", "steering-vectors==0.12.2", "nnsight==0.8.1", "transformers<5",
            "numpy<2", "jaxtyping", "safetensors", "gguf")  # fmt: skip
KEPT = ("repeng.gguf", "ours.gguf", "theirs.safetensors", "tokens.safetensors")


def main():
    """Make what is missing, then the golden files."""
    if not our_side.INTERPRETER.is_file():
        install(our_side.INTERPRETER.parents[1])
    with tempfile.TemporaryDirectory() as folder:
        our_side.hand_over(Path(folder))
        our_side.run_theirs(Path(folder))
        for name in KEPT:
            shutil.copy(Path(folder) / name, ROOT / "tests" / "data" / "exchange" / name)
            print(f"tests/data/exchange/{name}")


def install(venv):
    """A virtual environment with the CPU build of torch, and the tools."""
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "-q"]
    if subprocess.run([*pip, "torch", "--index-url", CPU_INDEX], check=False).returncode:
        print("the index of CPU builds did not answer; taking torch from the configured index")
        subprocess.run([*pip, "torch"], check=True)
    subprocess.run([*pip, *PACKAGES], check=True)


if __name__ == "__main__":
    main()
