"""Session-wide tiny models, the refusal of sockets, and the ``real`` marker.

The session fixtures share one model between tests: read, capture, attach and detach at will, but
change its weights only on a fresh one from `tests.tiny`.
"""

import socket
from collections.abc import Callable
from typing import Any

import pytest

from tests import tiny

try:
    from transformer_lens import HookedTransformer  # noqa: F401

    HAS_HOOKED_TRANSFORMER = True
except ImportError:  # TransformerLens 4 removed the class
    HAS_HOOKED_TRANSFORMER = False

needs_hooked_transformer = pytest.mark.skipif(
    not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer"
)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker here too, so that a single file runs without the project settings."""
    config.addinivalue_line("markers", "real: needs real model weights from a package registry")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every attempt to open a connection or resolve a name fail the test."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError(f"network use: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session", params=tiny.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each model family in turn."""
    return request.param


@pytest.fixture(scope="session")
def hf_of() -> Callable[[str], Any]:
    """``hf_of(family)``: the shared Hugging Face model of a family (no host has touched it)."""
    return _cached(tiny.tiny_hf)


@pytest.fixture(scope="session")
def bridge_of() -> Callable[[str], Any]:
    """``bridge_of(family)``: the shared TransformerBridge of a family, same weights as `hf_of`."""
    return _cached(tiny.tiny_bridge)


@pytest.fixture(scope="session")
def hooked_of() -> Callable[[str], Any]:
    """``hooked_of(family)``: the shared HookedTransformer of a family; skips on TL 4."""
    get = _cached(tiny.tiny_hooked)

    def or_skip(family: str) -> Any:
        # Only when it is called: tests of both hosts ask for this fixture in the bridge's turn too.
        if not HAS_HOOKED_TRANSFORMER:
            pytest.skip("TransformerLens 4 has no HookedTransformer")
        return get(family)

    return or_skip


@pytest.fixture(scope="session", params=("bridge", "hooked"))
def host(request: pytest.FixtureRequest) -> str:
    """Each host class in turn; ``hooked`` skips on TL 4."""
    if request.param == "hooked" and not HAS_HOOKED_TRANSFORMER:
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    return request.param


@pytest.fixture(scope="session")
def host_model(
    host: str, family: str, bridge_of: Callable[[str], Any], hooked_of: Callable[[str], Any]
) -> Any:
    """Every family on every host: the shared model."""
    return (bridge_of if host == "bridge" else hooked_of)(family)


def _cached(make: Callable[[str], Any]) -> Callable[[str], Any]:
    built: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family not in built:
            built[family] = make(family)
        return built[family]

    return get
