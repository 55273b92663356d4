"""How long fuzzing tests are: seconds with every change, thousands of examples in ``make soak``."""

import os

from hypothesis import HealthCheck, settings

SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"


def examples(usual: int) -> settings:
    """Settings of a fuzzing test: so many examples, 3,000 in a campaign."""
    return settings(
        max_examples=3000 if SOAK else usual,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
