"""How object stores are opened, by every process of a job: said once in the config, handed on in the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

OPTIONS = "RAYKD_STORE"  # of the environment: JSON
OLDER = {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required"}


def in_environment(options: Mapping[str, Any]) -> dict[str, str]:
    """Environment variables with which a process opens stores so; they must be there before its first request.

    Args:
        options: ``store`` of the config: ``endpoint``, ``region``, ``anonymous``, ``profile``, ``checksums``.

    Example:
        >>> in_environment({"region": "eu-west-1", "anonymous": False, "profile": None, "checksums": True})
        {'RAYKD_STORE': '{"region": "eu-west-1"}'}
    """
    given = {name: value for name, value in options.items() if value and name != "checksums"}
    found = {OPTIONS: json.dumps(given, sort_keys=True)} if given else {}
    if "profile" in given:
        found["AWS_PROFILE"] = given["profile"]
    return found | ({} if options.get("checksums", True) else OLDER)


def use(options: Mapping[str, Any]) -> None:
    """Open stores so in this process from now on, and in those that it starts; of :func:`in_environment`."""
    os.environ |= in_environment(options)


def options_now() -> dict[str, Any]:
    """What this process was told; options that were left out are missing."""
    given: dict[str, Any] = json.loads(os.environ.get(OPTIONS, "{}"))
    return given


def handed_on() -> dict[str, str]:
    """What this process was told, for those that it starts on other machines."""
    names = (OPTIONS, *OLDER, "AWS_PROFILE") if OPTIONS in os.environ or OLDER.keys() & os.environ.keys() else ()
    return {name: os.environ[name] for name in names if name in os.environ}
