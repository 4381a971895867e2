"""Files at addresses: an S3 store that fails as told, and the store in memory."""

import dataclasses
import io
import pickle
import types
from typing import ClassVar

import fsspec
import pytest
from support.object_store import KEY, SECRET

from resnest_seg.errors import DatasetError
from resnest_seg.storage.opening import open_source
from resnest_seg.storage.remote import RemoteSource, Store, list_addresses, read_address, remove_address, write_address
from resnest_seg.storage.retries import Limits

HOSTILE = ["a b.txt", "ü.txt", "x [1].txt", "50%.txt", "a%20b.txt", "a#b.txt", "a?b.txt", "a+b.txt", "deep/é/*.txt"]
CHAIN = "a::b.txt"  # the store in memory takes the name for an address

pytestmark = pytest.mark.slow


@pytest.fixture(params=["s3", "memory"])
def address(request):
    if request.param == "s3":
        store = request.getfixturevalue("object_store")
        store.heal()
        yield store.put("one-by-one", {})
    else:
        yield "memory://one-by-one"
        fsspec.filesystem("memory").store.clear()


def test_addresses_are_written_listed_read_and_removed(address):
    names = [*HOSTILE, CHAIN] if address.startswith("s3") else HOSTILE
    for name in names:
        write_address(f"{address}/mine/{name}", name.encode())
    listed = list(list_addresses(f"{address}/mine", (".txt",)))
    assert listed == sorted(f"{address}/mine/{name}" for name in names)
    assert [read_address(each) for each in listed] == [
        each.removeprefix(f"{address}/mine/").encode() for each in listed
    ]
    assert list(list_addresses(f"{address}/mine", (".png",))) == []
    assert list(list_addresses(f"{address}/mine/a b.txt")) == [f"{address}/mine/a b.txt"]
    assert list(list_addresses(f"{address}/none")) == []
    write_address(f"{address}/mine/ü.txt", b"another")
    assert read_address(f"{address}/mine/ü.txt") == b"another"
    remove_address(f"{address}/mine/ü.txt")
    remove_address(f"{address}/mine/ü.txt")
    with pytest.raises(DatasetError, match=r"cannot read .*/mine/ü.txt: there is no such file"):
        read_address(f"{address}/mine/ü.txt")
    assert sorted(open_source(f"{address}/mine", zips=()).names("")) == sorted(set(names) - {"ü.txt"})


QUICK = Limits(tries=3, wait=0.01, pace=1 << 20)
"""With the patience of a user, for a machine that is busy for a moment."""


class Impatient(Limits):
    """As often and as long as `QUICK`, but for the next tries of a file: `coming` are their seconds."""

    coming: ClassVar[list[float]] = []

    def seconds(self, size):
        return self.coming.pop() if self.coming else super().seconds(size)


FILES = {"mine/a.bin": bytes(range(256)) * 200, "mine/b/c.bin": b"2"}


@pytest.fixture
def store(object_store):
    object_store.put("bucket", FILES)
    object_store.heal()
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # which keeps the credentials of the first use
    yield object_store
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    object_store.heal()


def test_what_a_data_set_costs(store):
    source = RemoteSource("s3://bucket/mine")
    assert store.requests == ["GET /bucket?list-type=2&prefix=mine%2F&encoding-type=url"]
    assert source.has("a.bin")
    assert source.names("b") == ["b/c.bin"]
    assert store.count() == 1
    assert pickle.loads(pickle.dumps(source)).read("a.bin") == FILES["mine/a.bin"]
    assert store.requests[1:] == ["GET /bucket/mine/a.bin"]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["503", "500", "cut", "slow", "hang"])
def test_what_passes_is_tried_again(kind, store):
    # Only the tries that meet a slow store are short, so that none of the others passes for one of them.
    short = [1.0] if kind in ("slow", "hang") else []
    source = RemoteSource("s3://bucket/mine", limits=Impatient(**dataclasses.asdict(QUICK)))
    Impatient.coming[:] = short * 2
    store.trouble(kind, times=2, match="a.bin", seconds=3.0)
    assert source.read("a.bin") == FILES["mine/a.bin"]
    assert store.count("a.bin") == 3
    Impatient.coming[:] = short * 3
    store.trouble(kind, times=3, match="a.bin", seconds=3.0)
    with pytest.raises(DatasetError, match=r"cannot read s3://bucket/mine/a.bin after 3 tries in \d s: .*\.") as caught:
        source.read("a.bin")
    assert {"503": "503 SlowDown", "500": "500 InternalError"}.get(kind, "") in str(caught.value)
    assert store.count("a.bin") == 6
    assert source.read("a.bin") == FILES["mine/a.bin"]


def test_a_listing_is_tried_again_page_by_page(store, monkeypatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "5")
    store.put("bucket", {f"many/{number}": b"" for number in range(9)})
    store.heal()
    store.trouble("503", times=2, match="continuation-token")
    names = RemoteSource("s3://bucket/many", limits=QUICK).names("")
    assert names == [str(number) for number in range(9)]
    assert store.count() == 4  # two pages, the second one three times


REFUSED = {
    "403": r"permission was denied \(403 AccessDenied: Access Denied\).*s3:GetObject",
    "key": r"does not know the access key \(403 InvalidAccessKeyId: .*\). Check AWS_ACCESS_KEY_ID",
    "secret": r"\(403 SignatureDoesNotMatch: .*\). Check AWS_SECRET_ACCESS_KEY",
    "expired": r"have expired .*ExpiredToken.*AWS_SESSION_TOKEN",
    "region": r"in another region .*Set AWS_DEFAULT_REGION",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_is_not_tried_again(kind, store):
    store.trouble(kind, times=9)
    with pytest.raises(DatasetError, match=f"cannot list s3://bucket/mine: .*{REFUSED[kind]}") as caught:
        RemoteSource("s3://bucket/mine", limits=QUICK)
    assert store.count() == 1
    assert SECRET not in str(caught.value)
    assert KEY not in str(caught.value)


def test_environments_that_do_not_fit(store, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for changes, message in (
        ({"AWS_ACCESS_KEY_ID": "somebody else"}, "does not know the access key .*InvalidAccessKeyId"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, r"after 3 tries in .*127.0.0.1:1.*right \(AWS_ENDPOINT_URL\)"),
        ({"AWS_PROFILE": "nobody"}, r"profile \(nobody\) could not be found. Set AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "unable to locate credentials.*aws configure"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "missing: AWS_SECRET_ACCESS_KEY"),
    ):
        with monkeypatch.context() as patch:
            for name, value in changes.items():
                patch.delenv(name) if value is None else patch.setenv(name, value)
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            with pytest.raises(DatasetError, match=message) as caught:
                RemoteSource("s3://bucket/mine", limits=QUICK)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://nowhere/mine", r"cannot list s3://nowhere/mine: there is no such bucket \(404 NoSuchBucket"),
        ("s3://bucket/nothing", "no files at s3://bucket/nothing"),
        ("s3://", "cannot be the name of a bucket"),
        (f"s3://{KEY}:{SECRET}@bucket/mine", "s3://bucket/mine: this cannot be the name of a bucket.*without keys"),
    ],
)
def test_places_that_do_not_exist(address, message, store):
    with pytest.raises(DatasetError, match=message) as caught:
        RemoteSource(address, limits=QUICK)
    assert SECRET not in str(caught.value)


def test_files_that_change_are_named(store):
    source, client = RemoteSource("s3://bucket/mine", limits=QUICK), store.client()
    client.put_object(Bucket="bucket", Key="mine/a.bin", Body=bytes(len(FILES["mine/a.bin"])))  # as many bytes
    with pytest.raises(DatasetError, match=r"mine/a.bin: it was changed while this runs \(412.*Start again"):
        source.read("a.bin")
    client.delete_object(Bucket="bucket", Key="mine/a.bin")
    with pytest.raises(DatasetError, match=r"cannot read s3://bucket/mine/a.bin: there is no such file"):
        source.read("a.bin")
    client.put_object(Bucket="bucket", Key="mine/new.bin", Body=b"4")
    assert RemoteSource("s3://bucket/mine").names("") == ["b/c.bin", "new.bin"]  # in the same process
    fsspec.filesystem("memory").pipe("/changing/a", b"12")
    source = RemoteSource("memory://changing", limits=QUICK)
    fsspec.filesystem("memory").pipe("/changing/a", b"123")
    with pytest.raises(DatasetError, match=r"3 bytes came, and the listing says 2.*start again"):
        source.read("a")
    fsspec.filesystem("memory").store.clear()


def test_a_try_that_broke_off_leaves_nothing_behind():
    bodies = [b"twelve bytes", b"four"]
    system = types.SimpleNamespace(open=lambda path, mode: io.BytesIO(bodies.pop(0)))
    store = Store("memory://x", limits=QUICK)
    store.opened = lambda: (system, "")
    assert store.read("/x", size=4) == b"four"
