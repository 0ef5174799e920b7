"""The words of errors: unknown names, one line, the system's own."""

import errno

import pytest

from raykd.errors import LabelFileError, StorageError, UserError, did_you_mean, one_line, why


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
