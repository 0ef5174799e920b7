"""How hard hypothesis tries: ``dev`` with at most 25 examples a test, ``ci`` with all that a test asks for.

``ci`` is taken where CI is set, as most such services do; HYPOTHESIS_PROFILE names another. No test has a deadline: the
machines that run them are shared, and pytest-timeout ends what hangs.
"""

import os

from hypothesis import settings

DEV_EXAMPLES = 25

settings.register_profile("dev", max_examples=DEV_EXAMPLES, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None, print_blob=True)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
settings.load_profile(PROFILE)


def examples(count: int, dev: int = DEV_EXAMPLES, **more) -> settings:
    """``settings`` with so many examples under ``ci``, and at most ``dev`` under ``dev``: fewer where each is slow."""
    return settings(max_examples=min(count, dev) if PROFILE == "dev" else count, deadline=None, **more)
