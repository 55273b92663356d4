"""Bring one file of a package registry into a folder: pip or npm if present, else plain https.

pip and npm come first because they already know the user's mirrors, proxies and certificates.
Nothing is installed. pip runs the ``setup.py`` of a source archive to read its metadata, but only
after the archive has passed the pinned SHA-256 (``--require-hashes``), so only a known file runs;
pip may get setuptools into a temporary environment for it.
Without pip (environments made by uv have none) or npm, the same file is read over https, and an
interrupted download goes on where it stopped.
"""

import http.client
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from tl_transfer.errors import FetchError

Progress = Callable[[int], None]  # called with the bytes on disk so far

_BLOCK = 1 << 20
_TIMEOUT = 60.0
_BROKEN = (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException)
_NO_NETWORK = (
    "NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ReadTimeoutError",
    "Connection refused", "Connection broken", "ProxyError", "ENOTFOUND", "ECONNREFUSED",
    "ETIMEDOUT", "EAI_AGAIN", "Temporary failure in name resolution", "Network is unreachable",
)  # fmt: skip
_VANISHED = ("No matching distribution", "Could not find a version", "E404", "404 Client Error")


def pip_is_here() -> bool:
    """Whether this interpreter can run ``python -m pip``."""
    return importlib.util.find_spec("pip") is not None


def pip_download(
    requirement: str, sha256: str, *, source: bool, folder: Path, progress: Progress
) -> Path:
    """Download one wheel or source archive with pip, refusing any other SHA-256.

    Args:
        requirement: ``name==version``.
        sha256: The only hash accepted.
        source: Take the source archive instead of the wheel.
        folder: Empty folder that pip fills; its temporary files go there too.
        progress: Told the bytes on disk.

    Raises:
        FetchError: pip failed; the message says why.
    """
    name = requirement.split("==")[0]
    wanted = folder / "requirement.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    binary = ["--no-binary", name] if source else ["--only-binary", ":all:"]
    command = [
        sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir", "--no-input",
        "--retries", "2", "--require-hashes", *binary, "-d", str(folder / "got"), "-r", str(wanted),
    ]  # fmt: skip
    _run(command, requirement, folder, progress)
    return _only_file(folder / "got", requirement)


def npm_pack(spec: str, *, folder: Path, progress: Progress) -> Path:
    """Download one npm tarball with ``npm pack``, which runs no script of the package.

    Args:
        spec: ``name@version``.
        folder: Empty folder that npm fills.
        progress: Told the bytes on disk.

    Raises:
        FetchError: npm failed; the message says why.
    """
    (folder / "got").mkdir(exist_ok=True)
    npm = shutil.which("npm") or "npm"
    command = [npm, "pack", spec, "--silent", "--ignore-scripts"]
    _run(command, spec, folder, progress, cwd=folder / "got")
    return _only_file(folder / "got", spec)


def https_download(url: str, partial: Path, *, progress: Progress) -> Path:
    """Download a URL into ``partial``, going on where an earlier attempt stopped.

    Args:
        url: What to read.
        partial: The growing file; what it holds already is kept if the server allows ranges.
        progress: Told the bytes on disk.

    Raises:
        FetchError: no connection, gone, or the connection broke (call again to resume).
    """
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            resumed = have > 0 and answer.status == 206
            expected = int(answer.headers.get("Content-Length") or 0) + (have if resumed else 0)
            with partial.open("ab" if resumed else "wb") as out:
                while block := answer.read(_BLOCK):
                    out.write(block)
                    progress(out.tell())
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the range starts after the end: the part is stale or complete
            partial.unlink()
            if have:
                return https_download(url, partial, progress=progress)
        raise _http_failure(url, error) from error
    except _BROKEN as error:
        raise _unreachable(url, str(getattr(error, "reason", error))) from error
    if expected and partial.stat().st_size < expected:
        raise _unreachable(
            url, f"connection closed at {partial.stat().st_size} of {expected} bytes"
        )
    return partial


def pypi_url(name: str, filename: str) -> str:
    """The address of one file, read from the package's page in the simple index.

    Args:
        name: Project name.
        filename: Exact file name.

    Raises:
        FetchError: no connection, no such project, or no such file any more.
    """
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    page = f"{index}/{re.sub(r'[-_.]+', '-', name).lower()}/"
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
    request = urllib.request.Request(page, headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            body = answer.read().decode("utf-8")
            is_json = "json" in (answer.headers.get("Content-Type") or "")
    except urllib.error.HTTPError as error:
        raise _http_failure(page, error) from error
    except _BROKEN as error:
        raise _unreachable(page, str(getattr(error, "reason", error))) from error
    links = [file["url"] for file in json.loads(body)["files"]] if is_json else _links(body)
    for link in links:
        if unquote(Path(urlsplit(link).path).name) == filename:
            return urljoin(page, link)
    raise _vanished(filename, f"not among the {len(links)} files of {page}")


def npm_url(name: str, version: str) -> str:
    """The address of a package's tarball in the npm registry."""
    registry = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org").rstrip("/")
    return f"{registry}/{name}/-/{name.split('/')[-1]}-{version}.tgz"


def _run(
    command: list[str], what: str, folder: Path, progress: Progress, *, cwd: Path | None = None
) -> None:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    # Temporary files beside the goal: the final rename must not cross file systems.
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_REQUIRE_VIRTUALENV": "0"}
    log = folder / "log.txt"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environment, cwd=cwd
        )
        try:
            while process.poll() is None:
                progress(_bytes_below(folder))
                time.sleep(0.1)
        finally:
            if process.poll() is None:  # interrupted from the keyboard
                process.kill()
                process.wait()
    if process.returncode:
        raise _explain(log.read_text(encoding="utf-8", errors="replace"), what)


def _explain(log: str, what: str) -> FetchError:
    if "No space left on device" in log or "ENOSPC" in log:
        return FetchError(f"{what}: the disk is full", hint="free some space and call again")
    if "DO NOT MATCH THE HASHES" in log:
        expected, got = (
            "".join(re.findall(rf"{word}\s+(?:sha256\s+)?(\w{{64}})", log)[:1])
            for word in ("Expected", "Got")
        )
        return wrong_hash(what, got=got, expected=expected)
    if any(sign in log for sign in _NO_NETWORK):
        return _unreachable(what, _last_lines(log))
    if any(sign in log for sign in _VANISHED):
        return _vanished(what, _last_lines(log))
    return FetchError(f"{what}: could not be downloaded", got=_last_lines(log))


def wrong_hash(what: str, *, got: str, expected: str) -> FetchError:
    """The error for a file that is not the pinned one."""
    return FetchError(
        f"{what}: the file has another SHA-256 than the pinned one; it was deleted",
        got=got,
        valid=expected,
        hint="call again; if it stays so, the published file was replaced: do not use it",
    )


def _vanished(what: str, detail: str) -> FetchError:
    return FetchError(
        f"{what}: the registry does not have it (any more)",
        got=detail,
        hint="packages can be withdrawn; copy the cache folder of a machine that has it",
    )


def _unreachable(what: str, detail: str) -> FetchError:
    return FetchError(
        f"{what}: the registry cannot be reached, or the connection broke",
        got=detail,
        hint="check the network, proxy and mirror settings (pip config list), then call again",
    )


def _http_failure(url: str, error: urllib.error.HTTPError) -> FetchError:
    if error.code in (404, 410):
        return _vanished(url, f"HTTP {error.code}")
    return _unreachable(url, f"HTTP {error.code} {error.reason}")


def _last_lines(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return " | ".join((errors or lines)[-2:])[:500] or "no message"


def _only_file(folder: Path, what: str) -> Path:
    files = [path for path in folder.iterdir() if path.is_file()]
    if len(files) != 1:
        raise FetchError(f"{what}: expected one file", got=sorted(path.name for path in files))
    return files[0]


def _bytes_below(folder: Path) -> int:
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.path.getsize(os.path.join(place, name))
            except OSError:  # moved meanwhile
                continue
    return total


def _links(page: str) -> list[str]:
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(value for key, value in attrs if tag == "a" and key == "href" and value)

    Reader().feed(page)
    return found
