"""``python -m raykd.images``: which images are read, what is done to them on their way, and why one is not read."""

from __future__ import annotations

import inspect
import re
import textwrap

from raykd.images import decoding
from raykd.images.decoding import UNREACHABLE


def page() -> str:
    """What :mod:`raykd.images.decoding` says of itself, for people."""
    said = re.sub(r":\w+:`([^`]+)`|``", r"\1", inspect.cleandoc(decoding.__doc__ or ""))
    rules = "\n\n".join(text for text in said.split("\n\n") if text.startswith(("- ", "Memory")))
    reasons = dict.fromkeys(words for _, words in decoding.SIGNATURES)
    return "\n".join(
        [
            "Files that are read, by their endings, in any case:",
            textwrap.fill(" ".join(decoding.SUFFIXES), 100, initial_indent="  ", subsequent_indent="  "),
            "\nHow they are read:\n",
            textwrap.indent(rules, "  "),
            "\nWhat the lines about a pool count:\n",
            *(f"  {kind:<13} so many images {words}" for kind, words in decoding.CHANGES.items()),
            "\nReasons in quarantine.parquet, among others (the rest are Pillow's own words):\n",
            *(f"  {words}" for words in (*decoding.REASONS, *reasons)),
            f"  {UNREACHABLE}not found, {UNREACHABLE}permission denied: it may come back, so it is looked for again",
        ]
    )


if __name__ == "__main__":
    print(page())
