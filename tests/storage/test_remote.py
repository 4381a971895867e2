"""Files at addresses: an S3 store that fails as told, and the store in memory."""

import fsspec
import pytest

from resnest_seg.errors import DatasetError
from resnest_seg.storage.opening import open_source
from resnest_seg.storage.remote import list_addresses, read_address, remove_address, write_address

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
