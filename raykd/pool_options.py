"""The options that jobs on any pool share: which images, how they are read, and where the table goes. Knows no Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from raykd.config import Config, Format, Section, Source
from raykd.errors import UserError

if TYPE_CHECKING:
    from raykd.store.place import Place

SOURCE_FIELDS = ("format", "id_column", "image_column", "uri_column", "label_column", "split_file", "label_values")


def same(name: str, section: type[Section] = Source, default: Any = None) -> Any:
    """An option that a config has under this name."""
    return Field(default, description=section.model_fields[name].description)


class PoolOptions(Section):
    """Any pool, without a campaign."""

    pool: str = Field(description="folder, Parquet file, tars or a list of the images; local, s3:// or gs://")
    format: Format | None = same("format")
    id_column: str | None = same("id_column")
    image_column: str | None = same("image_column")
    uri_column: str | None = same("uri_column")
    label_column: str | None = same("label_column")
    split_file: str | None = same("split_file")
    label_values: Literal["sorted", "index"] | None = same("label_values")
    decode: Literal["reduced", "exact"] = same("decode", Config, "reduced")
    local_cpus: int | None = same("local_cpus", Config)
    stall_s: float = Field(1800, gt=0, description=Config.model_fields["stall_s"].description)
    cache: str | None = Field(None, description="folder of what is done, part by part; else OUT.cache")
    out: str = Field(description="folder of the table to write; never overwritten")

    @property
    def places(self) -> tuple[Place, Place]:
        """Of the table, and of the cache."""
        from raykd.store.place import Place

        out = Place.of(self.out)
        return out, Place.of(self.cache) if self.cache else out.sibling(f"{out.path.rstrip('/')}.cache")

    def source(self, classes: Sequence[str] | None, say: Callable[[str, str], None]) -> Source:
        """The source, looked at where the options do not say what it is.

        Args:
            classes: The names, where they are known.
            say: Called with a topic and a line for people: what was found.
        """
        from raykd.store.place import Place

        given = {name: value for name in SOURCE_FIELDS if (value := getattr(self, name)) is not None}
        given = {name: None if value == "null" else value for name, value in given.items()}
        if "format" in given:
            return Source(path=Place.of(self.pool).uri, **given)
        if given:
            option = next(iter(given)).replace("_", "-")
            raise UserError(f"--{option} says how to read a source of one format: give --format, too")
        from raykd.images.survey import survey

        found = survey(Place.of(self.pool).uri, None if classes is None else list(classes))
        for line in found.lines:
            say("pool", line)
        return Source(**found.pool)
