"""Waiting between the tries of a request."""

import pytest

from resnest_seg.errors import DatasetError
from resnest_seg.storage.retries import LIMITS, Limits, explained, passes, persist, without_secrets


def failing(times, error):
    left = [error] * times

    def action():
        if left:
            raise left.pop()
        return "done"

    return action


@pytest.mark.parametrize("times", range(8))
def test_waits_double_and_are_random_by_half(times):
    waits = []
    assert persist(failing(times, TimeoutError()), "there", pause=waits.append) == "done"
    expected = [0.5, 1, 2, 4, 8, 16, 16][:times]
    assert all(wait / 2 <= waited <= wait for waited, wait in zip(waits, expected, strict=True))
    assert len(set(waits)) == times  # not all alike


def test_the_last_try_is_told():
    waits = []
    with pytest.raises(DatasetError, match=r"cannot read there after 8 tries in 0 s: .*\(ConnectionResetError\)"):
        persist(failing(8, ConnectionResetError("gone")), "there", pause=waits.append)
    assert sum(waits) <= 47.5
    assert len(waits) == LIMITS.tries - 1


def answered(status, code=""):
    error = OSError("no")
    error.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code, "Message": "no"}}
    return error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (answered(503, "SlowDown"), True),
        (answered(500), True),
        (answered(429), True),
        (answered(400, "RequestTimeout"), True),
        (answered(501), False),
        (answered(403, "AccessDenied"), False),
        (answered(404), False),
        (answered(400, "InvalidToken"), False),
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (ValueError(), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_what_passes(error, again):
    assert passes(error) is again
    wrapped = OSError("translated")
    wrapped.__cause__ = error
    assert passes(wrapped) is again  # as s3fs does


def test_generators_of_samples_are_not_touched():
    import random

    random.seed(3)
    state = random.getstate()
    persist(failing(3, TimeoutError()), "there", pause=lambda seconds: None)
    assert random.getstate() == state


def test_the_time_of_a_try_grows_with_the_file():
    limits = Limits(patience=2, pace=100)
    assert limits.seconds(1000) == 12
    assert limits.seconds(None) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:pass@bucket/a b@c.jpg", "s3://bucket/a b@c.jpg"),
        ("s3://key:pa@ss@bucket/mine", "s3://bucket/mine"),
        ("https://h/x.zip?X-Amz-Signature=12ab&part=1", "https://h/x.zip?X-Amz-Signature=***&part=1"),
        ("https://h/x?sig=a%2Fb&se=2", "https://h/x?sig=***&se=2"),
        ("s3://bucket/what?.jpg", "s3://bucket/what?.jpg"),
        ("cannot open ftp://me:word@host/x", "cannot open ftp://host/x"),
        ("s3://AKIAIOSFODNN7EXAMPLE:wJalr/K7MDENG/bPx@bucket/mine", "s3://bucket/mine"),
        ("zip://a.png::s3://AKIA:wJalr/K7@bucket/x@2.zip", "zip://a.png::s3://bucket/x@2.zip"),
        ("cannot read s3://AKIA:12/K7@bucket/mine: no", "cannot read s3://bucket/mine: no"),
        ("zip://a.png::s3://bucket/x@2.zip", "zip://a.png::s3://bucket/x@2.zip"),
        ("https://host:8080/a@b.jpg", "https://host:8080/a@b.jpg"),
        ("https://me:wo/rd@host:8080/a.jpg", "https://host:8080/a.jpg"),
        ("http://[2001:db8::1]:80/a@b.jpg", "http://[2001:db8::1]:80/a@b.jpg"),
        ("s3://arn:aws:s3:us-east-1:1:accesspoint/x/a@2.jpg", "s3://arn:aws:s3:us-east-1:1:accesspoint/x/a@2.jpg"),
        ("cannot list s3://bucket: ask a@b.org", "cannot list s3://bucket: ask a@b.org"),
    ],
)
def test_secrets_are_not_shown(text, shown):
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("s3://b/x", "pip install 'resnest-seg[remote]'"),
        ("gs://b/x", "pip install gcsfs"),
        ("abfs://b/x", "pip install adlfs"),
        ("zip://::gs://b/x.zip", "pip install gcsfs"),
        ("odd://b", "the library of fsspec for odd://"),
    ],
)
def test_missing_libraries_are_named(where, line):
    assert line in explained(ImportError("Install it"), where)
