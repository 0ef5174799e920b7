"""From a URI to pyarrow's filesystem, with patience: what an object store refuses for a while is asked for again.

One set of options for all that is on an object store (``store`` of the config) is handed to every process in the
environment (:mod:`raykd.store.options`): workers open what the driver names. A URI's own query comes first
(``s3://bucket/folder?region=eu-west-1&endpoint_override=host:9000&scheme=http&anonymous=true``).

All retrying is done by the stores' own clients, whose backoff doubles up to 20 s: images, tables, markers, the lease
and Ray Train's checkpoints alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from raykd.errors import StorageError, UserError, is_passing, of_store
from raykd.store.options import options_now

ATTEMPTS = 9  # of a request to S3: a minute and a half of an overloaded store, 45 s of one that does not answer at all
PATIENCE = timedelta(seconds=90)  # the same, of Google's
QUICK = 2  # attempts of the first look, when nobody has waited for anything yet
OF_A_URI = (  # what a query may say, as S3FileSystem calls it
    *("allow_bucket_creation", "anonymous", "endpoint_override", "force_virtual_addressing", "profile", "region"),
    *("scheme", "tls_ca_file_path"),
)


class Address(NamedTuple):
    """Where an object is, of a URI: all that decides on the filesystem, and the path inside it."""

    scheme: str
    user: str | None
    password: str | None
    bucket: str
    path: str
    query: tuple[tuple[str, str], ...]


def address_of(uri: str) -> Address:
    """The parts of ``s3://user:password@bucket/folder?query`` and of ``gs://``."""
    parts = urlsplit(uri)
    userinfo, _, bucket = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    path = unquote(f"{bucket}{parts.path}").rstrip("/")
    query = tuple(sorted(parse_qsl(parts.query, keep_blank_values=True)))
    return Address(parts.scheme, unquote(user) or None, unquote(password) or None, bucket, path, query)


def open_uri(uri: str, attempts: int = ATTEMPTS) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a URI and the path inside it; filesystems are made once in a process.

    Raises:
        UserError: There is no such filesystem, or its options are none.
        StorageError: The store does not say where the bucket is.
    """
    try:
        if uri.startswith(("s3://", "gs://", "gcs://")):
            address = address_of(uri)
            make = _s3 if address.scheme == "s3" else _gcs
            now = tuple(sorted(options_now().items()))
            return make(address._replace(path=""), now, attempts), address.path
        return pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError) as error:
        why = (isinstance(error, OSError) and of_store(error)) or str(error)
        raise (StorageError if isinstance(error, OSError) else UserError)(
            f"cannot reach {uri!r}: {why}; expected a local path, s3://..., gs://... or another filesystem that "
            "pyarrow knows"
        ) from error


def s3_options(address: Address, given: Mapping[str, Any]) -> dict[str, Any]:
    """How a place on S3 is opened, by S3FileSystem's names, and ``profile``; its URI's own query comes first.

    Raises:
        ArrowInvalid: The query has an option that there is not.
    """
    query = dict(address.query)
    if unknown := query.keys() - set(OF_A_URI):
        raise pa.ArrowInvalid(f"unknown options {sorted(unknown)} behind ?; known: {', '.join(OF_A_URI)}")
    values: dict[str, Any] = {name: given[name] for name in ("region", "anonymous") if name in given}
    values |= endpoint_of(given)
    values |= {name: value if value not in ("true", "false") else value == "true" for name, value in query.items()}
    if address.user:
        values |= {"access_key": address.user, "secret_key": address.password or ""}
    return values


def endpoint_of(given: Mapping[str, Any]) -> dict[str, str]:
    """``endpoint`` of the options, ``host:port`` or a URL, by pyarrow's names."""
    scheme, mark, host = given.get("endpoint", "").rpartition("://")
    return ({"endpoint_override": host.rstrip("/")} if host else {}) | ({"scheme": scheme} if mark else {})


@lru_cache(maxsize=64)
def _s3(address: Address, options: tuple[tuple[str, Any], ...], attempts: int) -> pafs.S3FileSystem:
    values = s3_options(address, dict(options))
    profile = values.pop("profile", None)
    own_endpoint = "endpoint_override" in values or "AWS_ENDPOINT_URL" in os.environ
    if "region" not in values and not own_endpoint and not {"AWS_REGION", "AWS_DEFAULT_REGION"} & os.environ.keys():
        values["region"] = region_of(address.bucket, attempts)
    retry = pafs.AwsStandardS3RetryStrategy(max_attempts=attempts)
    with profiled(profile):
        return pafs.S3FileSystem(**values, retry_strategy=retry, allow_delayed_open=True)  # small files in one request


def region_of(bucket: str, attempts: int) -> str:
    """Where a bucket is, asked of S3 as patiently as anything else is. Raises OSError."""
    for pause_s in [min(20.0, 0.5 * 2.0**attempt) for attempt in range(attempts - 1)]:
        try:
            return str(pafs.resolve_s3_region(bucket))
        except OSError as error:
            if not is_passing(error):
                raise
        time.sleep(pause_s)
    return str(pafs.resolve_s3_region(bucket))


@contextmanager
def profiled(profile: str | None) -> Iterator[None]:
    """What is made in the block has the credentials of this profile, and nothing else has."""
    before = os.environ.get("AWS_PROFILE")
    if profile:
        os.environ["AWS_PROFILE"] = profile
    try:
        yield
    finally:
        if profile and before is None:
            del os.environ["AWS_PROFILE"]
        elif profile and before is not None:
            os.environ["AWS_PROFILE"] = before


@lru_cache(maxsize=64)
def _gcs(address: Address, options: tuple[tuple[str, Any], ...], attempts: int) -> pafs.GcsFileSystem:
    given, query = dict(options), dict(address.query)
    values: dict[str, Any] = {"anonymous": True} if given.get("anonymous") or address.user == "anonymous" else {}
    values |= {name: query[name] for name in ("scheme", "endpoint_override", "project_id") if name in query}
    return pafs.GcsFileSystem(**values, retry_time_limit=PATIENCE if attempts > QUICK else timedelta(seconds=5))
