"""Declares the marker of this folder, so that a single file runs without the project settings."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: needs playwright and an installed chromium")
