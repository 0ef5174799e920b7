"""From a URI and the config's options to the filesystem that is opened; none is reached."""

import json

import pyarrow.fs as pafs
import pytest

from raykd.errors import StorageError, UserError
from raykd.store import filesystems
from raykd.store.filesystems import ATTEMPTS, Address, address_of, open_uri
from raykd.store.options import OLDER, OPTIONS, handed_on, in_environment


@pytest.fixture
def opened(monkeypatch):
    """What S3FileSystem and GcsFileSystem would have been called with."""
    calls = []

    def noting(name):
        def make(**values):
            calls.append((name, values))
            return pafs.LocalFileSystem()

        return make

    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", OPTIONS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(filesystems.pafs, "S3FileSystem", noting("s3"))
    monkeypatch.setattr(filesystems.pafs, "GcsFileSystem", noting("gs"))
    monkeypatch.setattr(filesystems.pafs, "resolve_s3_region", lambda bucket: f"region-of-{bucket}")
    for cached in (filesystems._s3, filesystems._gcs):
        cached.cache_clear()
    yield calls
    for cached in (filesystems._s3, filesystems._gcs):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("s3://bucket/a/b", Address("s3", None, None, "bucket", "bucket/a/b", ())),
        ("s3://bucket", Address("s3", None, None, "bucket", "bucket", ())),
        ("s3://bucket/a%20b%23/", Address("s3", None, None, "bucket", "bucket/a b#", ())),
        (
            "s3://key:s%2Fcret@bucket/a?region=eu&scheme=http",
            Address("s3", "key", "s/cret", "bucket", "bucket/a", (("region", "eu"), ("scheme", "http"))),
        ),
        ("gs://anonymous@bucket/a", Address("gs", "anonymous", None, "bucket", "bucket/a", ())),
    ],
)
def test_a_uri_has_these_parts(uri, address):
    assert address_of(uri) == address


def test_without_options_the_region_is_the_buckets_and_small_files_are_one_request(opened):
    assert open_uri("s3://bucket/a/b")[1] == "bucket/a/b"
    ((name, values),) = opened
    retry = values.pop("retry_strategy")
    assert isinstance(retry, pafs.AwsStandardS3RetryStrategy)
    assert retry.max_attempts == ATTEMPTS
    assert (name, values) == ("s3", {"region": "region-of-bucket", "allow_delayed_open": True})


def test_a_filesystem_is_made_once_for_all_places_on_it(opened):
    for path in ("a", "b/c"):
        open_uri(f"s3://bucket/{path}?region=eu")
    assert len(opened) == 1
    open_uri("s3://bucket/a?region=us")
    assert len(opened) == 2


def test_options_of_the_config_are_those_of_every_place_and_a_uris_own_come_first(opened, monkeypatch):
    options = {"endpoint": "http://host:9000", "region": "eu", "anonymous": True, "profile": None, "checksums": True}
    for name, value in in_environment(options).items():
        monkeypatch.setenv(name, value)
    open_uri("s3://bucket/a")
    open_uri("s3://bucket/a?endpoint_override=other:1&scheme=https&anonymous=false")
    open_uri("gs://bucket/a")
    kept = [{k: v for k, v in values.items() if "retry" not in k and "delayed" not in k} for _, values in opened]
    assert kept == [
        {"region": "eu", "anonymous": True, "endpoint_override": "host:9000", "scheme": "http"},
        {"region": "eu", "anonymous": False, "endpoint_override": "other:1", "scheme": "https"},
        {"anonymous": True},  # an S3-compatible store has no buckets of Google's
    ]


def test_an_option_that_there_is_not_is_told_with_the_known_ones(opened):
    with pytest.raises(UserError, match=r"unknown options \['regoin'\] behind \?; known: .*region"):
        open_uri("s3://bucket/a?regoin=eu")
    assert opened == []


@pytest.mark.parametrize("checksums", [True, False])
def test_other_processes_are_told_what_this_one_was(monkeypatch, checksums):
    for name in (OPTIONS, "AWS_PROFILE", *OLDER):
        monkeypatch.delenv(name, raising=False)
    assert handed_on() == {}
    told = in_environment({"profile": "team", "checksums": checksums, "region": None})
    assert json.loads(told[OPTIONS]) == {"profile": "team"}
    assert told["AWS_PROFILE"] == "team"
    assert OLDER.keys() <= told.keys() or checksums
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert handed_on() == told


def test_a_profile_of_one_place_is_not_that_of_the_next(opened, monkeypatch):
    seen = []
    monkeypatch.setattr(
        filesystems.pafs, "S3FileSystem", lambda **values: seen.append(filesystems.os.environ.get("AWS_PROFILE"))
    )
    monkeypatch.setenv("AWS_PROFILE", "everybody")
    for query in ("profile=mine&region=eu", "region=eu"):
        open_uri(f"s3://bucket/a?{query}")
    monkeypatch.delenv("AWS_PROFILE")
    for query in ("profile=mine&region=us", "region=us"):
        open_uri(f"s3://bucket/a?{query}")
    assert seen == ["mine", "everybody", "mine", None]


def test_where_a_bucket_is_is_asked_patiently(opened, monkeypatch):
    pauses, answers = [], ["AWS Error SLOW_DOWN", "AWS Error SERVICE_UNAVAILABLE", None]

    def resolve(bucket):
        if answer := answers.pop(0):
            raise OSError(answer)
        return "eu"

    monkeypatch.setattr(filesystems.time, "sleep", pauses.append)
    monkeypatch.setattr(filesystems.pafs, "resolve_s3_region", resolve)
    open_uri("s3://bucket/a")
    assert opened[0][1]["region"] == "eu"
    assert pauses == [0.5, 1.0]


def test_a_bucket_that_is_none_is_told_at_once_as_the_storages_fault(opened, monkeypatch):
    def resolve(bucket):
        raise OSError("Bucket 'bucket' not found")

    monkeypatch.setattr(filesystems.time, "sleep", lambda seconds: pytest.fail("waited"))
    monkeypatch.setattr(filesystems.pafs, "resolve_s3_region", resolve)
    with pytest.raises(StorageError, match=r"cannot reach 's3://bucket/a': .*not found"):
        open_uri("s3://bucket/a")
