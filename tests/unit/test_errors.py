"""The words of errors: unknown names, one line, the system's own."""

import errno

import pytest

from raykd.errors import (
    LabelFileError,
    StorageError,
    UserError,
    did_you_mean,
    for_the_reader,
    is_passing,
    of_store,
    one_line,
    why,
)


@pytest.mark.parametrize(
    ("given", "known", "said"),
    [
        ("pcorset", ["random", "pcoreset"], "did you mean 'pcoreset'?"),
        ("PCORESET", ["random", "pcoreset"], "did you mean 'pcoreset'?"),
        ("vit_b", ["ViT-B", "RN50"], "did you mean 'ViT-B'?"),
        ("zzz", ["b", "a", "b"], "known: a, b"),
        ("zzz", [], "there is none"),
        ("zzz", map(str, range(100)), "known: 0, 1, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19 and 88 more"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest_or_with_those_there_are(given, known, said):
    assert did_you_mean(given, known) == said


def test_only_what_a_user_can_mend_is_a_user_error():
    assert issubclass(StorageError, UserError)
    assert issubclass(LabelFileError, UserError)
    assert issubclass(UserError, ValueError)


def test_one_line_is_one_line_of_at_most_200_characters():
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert len(one_line(ValueError("x" * 999))) == 200


def test_why_is_what_the_system_says():
    assert (
        why(OSError(errno.ENOSPC, "[Errno 28] Error writing bytes to file. Detail: ...")) == "No space left on device"
    )
    assert why(OSError("no such\n bucket")) == "no such bucket"


# ---------------------------------------------------------------- of object stores

PUT = "When uploading object with key 'run/x' in bucket 'mine': AWS Error {} during PutObject operation: {}"


@pytest.mark.parametrize(
    ("code", "more", "said"),
    [
        ("INVALID_ACCESS_KEY_ID", "", "does not know the access key; check AWS_ACCESS_KEY_ID, AWS_PROFILE"),
        ("SIGNATURE_DOES_NOT_MATCH", "", "the secret key is not that of the access key"),
        ("ACCESS_DENIED", "No response body.", "may not do that"),
        ("NO_SUCH_BUCKET", "", "there is no such bucket"),
        ("UNKNOWN", "(HTTP status 301): PermanentRedirect", "in another region; give store.region"),
        ("UNKNOWN", "(HTTP status 411)", "set store.checksums: false"),
        ("NETWORK_CONNECTION", "curlCode: 7, Could not connect to server", "nobody listens there"),
        ("NETWORK_CONNECTION", "curlCode: 6, Could not resolve hostname", "no host of that name"),
        ("NETWORK_CONNECTION", "curlCode: 35, SSL connect error", "speaks no TLS"),
        ("NETWORK_CONNECTION", "curlCode: 28, Timeout was reached", "did not answer in time"),
        ("SLOW_DOWN", "", "refused for too long"),
        ("UNKNOWN", "something new", "something new"),
    ],
)
def test_what_an_object_store_refuses_is_told_with_bucket_and_what_to_do(code, more, said):
    error = OSError(PUT.format(code, more))
    words = for_the_reader(error)
    assert said in words
    assert words.startswith(f"object store, bucket 'mine', 'run/x' ({code} of PutObject): ")
    assert words.endswith("run the same command again to go on")
    assert is_passing(error) == ("too long" in said or "in time" in said)


def test_other_errors_are_no_object_stores():
    assert of_store(OSError("something else")) is None
    assert of_store(ValueError("AWS")) is None
    assert for_the_reader(OSError("something else")) is None


# ---------------------------------------------------------------- of machines that are gone


def test_what_ray_has_lost_is_a_line_and_any_other_error_of_ray_is_not():
    import ray.exceptions

    words = for_the_reader(ray.exceptions.ActorDiedError())
    assert words.startswith("Ray lost a process or a machine (ActorDiedError: ")
    assert words.endswith("run the same command again to go on")
    assert for_the_reader(ray.exceptions.NodeDiedError("gone")) is not None
    assert for_the_reader(ray.exceptions.RayError()) is None
