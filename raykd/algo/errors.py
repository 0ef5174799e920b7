"""What a caller can mend. Here, and not at the root, as the mathematics refuses too and imports nothing outside it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something that was given is wrong: the message says what, what was expected, and what to do.

    Jobs print it without a traceback and end with code 2. Every other error is our own mistake and keeps its traceback.
    """


def did_you_mean(given: str, known: Iterable[str], limit: int = 12) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or else the known ones.

    Example:
        >>> did_you_mean("pcorset", ["random", "pcoreset"])
        "did you mean 'pcoreset'?"
        >>> did_you_mean("x", ["random", "pcoreset"])
        'known: pcoreset, random'
    """
    names = sorted(set(known))
    lowered = {name.lower(): name for name in reversed(names)}
    if near := difflib.get_close_matches(given.lower(), lowered, n=1):
        return f"did you mean {lowered[near[0]]!r}?"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"known: {', '.join(names[:limit])}{more}" if names else "there is none"
