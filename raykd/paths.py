"""What a path that people write means: where a relative one begins, and what ``~`` and ``$NAME`` stand for.

Paths in a config begin at the config's folder, those on a command line (``--set``) at the current one. Once a config is
loaded, all of its local paths are absolute, so that it means the same wherever the next job is started.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from raykd.errors import UserError

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")
OUR_OWN = ("demo:", "{raykd}")  # what comes with raykd
IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # there in a job that was submitted to a cluster
COPY = "a submitted job runs in a temporary copy of its working dir"


@dataclass(frozen=True)
class IsPath:
    """Marks the text of a config's field as a path: ``Annotated[str, IsPath()]``.

    Args:
        after: What stands before the path; a text without it is no path.
        or_name: The text may also be a name; names have neither dot nor slash.
        lasting: Jobs or people write there for later jobs to find.
        holds: What a folder holds, to be more than any folder of that name.
    """

    after: str = ""
    or_name: bool = False
    lasting: bool = False
    holds: str = "."

    def absolute(self, text: str, field: str, folder: str) -> str:
        """What is meant, as an absolute path; a URI, a name or what comes with raykd as it is.

        Raises:
            UserError: It names an environment variable that is not set.
        """
        path = self._written(text, field)
        if path is None or "://" in path or os.path.isabs(path):
            return text if path is None else self.after + path
        place = os.path.normpath(os.path.join(os.path.abspath(folder), path))
        is_name = self.or_name and not ("/" in path or "." in path or os.path.isfile(place))
        return text if is_name else self.after + place

    def checked(self, text: str, field: str, folder: str) -> str:
        """As :meth:`absolute`; refuses what would be looked for, or written, in the wrong place.

        Raises:
            UserError: A submitted job could lose, or cannot find, what a relative path leads to; or nothing is there,
                but it is where the path led to when relative ones still began at the current folder.
        """
        found, path = self.absolute(text, field, folder), self._written(text, field)
        if path is None or found == text or "://" in path or os.path.isabs(path):
            return found
        place, before = found.removeprefix(self.after), os.path.abspath(path)
        if IN_JOB in os.environ and self.lasting:
            raise UserError(
                f"{field} {text!r} is relative, and {COPY}: give an absolute path that all nodes share, or s3://..., "
                f"by --set {field}=..."
            )
        if self._is_at(place):
            return found
        if self._is_at(before):
            what, other = "nothing" if self.holds == "." else f"no {self.holds}", os.path.relpath(before, folder)
            raise UserError(
                f"{field}: {text!r} in a config begins at the config's folder, so it is {place}, and {what} is there; "
                f"but there is {before}, where it led to from the current folder. If you mean that, write "
                f"{self.after + other!r} or the absolute path"
            )
        if IN_JOB in os.environ:
            raise UserError(
                f"{field}: {text!r} is relative, and {COPY}: there is no {place}. Give an absolute path that all nodes "
                "share, or submit from a folder that has it"
            )
        return found

    def _written(self, text: str, field: str) -> str | None:
        """The path in a text, ``~`` and variables replaced; None where there is none."""
        if not text.startswith(self.after):
            return None
        path = os.path.expanduser(VARIABLE.sub(lambda found: _value(found, field), text.removeprefix(self.after)))
        return None if not path or path.startswith(OUR_OWN) else path

    def _is_at(self, path: str) -> bool:
        return os.path.lexists(Path(path, self.holds))


def _value(found: re.Match[str], field: str) -> str:
    name = found[1] or found[2]
    if name not in os.environ:
        raise UserError(f"{field}: {found.string!r} names ${name}, which is not set here; set it, or write the path")
    return os.environ[name]
