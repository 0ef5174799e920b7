"""The templates of pages: jinja2, all escaped; ``style.css`` and the macros of ``parts.html.j2`` are every page's."""

from __future__ import annotations

from importlib.resources import files

import jinja2

from raykd.report.words import duration, head_and_tail, number, percent, points


def template_named(name: str) -> jinja2.Template:
    """A template of this package."""
    folder = files("raykd.report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda each: folder.joinpath(each).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "points": points, "duration": duration}
    environment.filters |= {"ends": head_and_tail}
    return environment.get_template(name)
