"""Storage of files by name: a folder, zip files, an address such as s3://bucket/mine.

Data sets and bulk predictions read through it, so that they do not know where their files lie.
"""

from resnest_seg import lazy_exports

_HOMES = {
    "Cache": "cache",
    "FolderSource": "sources",
    "JoinedSource": "sources",
    "RemoteSource": "remote",
    "Source": "sources",
    "TarShards": "tar_shards",
    "ZipSource": "sources",
    "is_address": "remote",
    "list_addresses": "remote",
    "open_source": "opening",
    "read_address": "remote",
    "remove_address": "remote",
    "write_address": "remote",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
