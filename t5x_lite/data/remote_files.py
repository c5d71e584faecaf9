"""Files on remote file systems (gs://, s3://, https://, …), through fsspec: their versions, and copies in the cache."""

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from t5x_lite.data.user_cache import atomic_file, cache_dir
from t5x_lite.errors import DataError, one_line

# Entries of fsspec's info() that change with the contents of a file: Google's, Amazon's, Azure's, HTTP's.
VERSION_MARKS = ("generation", "etag", "ETag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified")
FETCHED = "sha256="  # begins the version of a file for which its file system gives none of them
BLOCK_BYTES = 1 << 20  # read at a time


def is_remote(name: str) -> bool:
    return "://" in name


def size_and_version(name: str) -> tuple[int, str]:
    """The bytes of a remote file, and its version in the terms of its file system.

    If the file system gives nothing that changes with the contents, the version is the hash of the contents. Then the
    file is fetched once a process.
    """
    info = _with_file_system(name, lambda system, path: system.info(path))
    version = " ".join(f"{mark}={info[mark]}" for mark in VERSION_MARKS if info.get(mark) is not None)
    if version and info.get("size") is not None:
        return info["size"], version
    copy, version = fetch(name)
    return copy.stat().st_size, version


@functools.lru_cache(maxsize=4096)
def fetch(name: str) -> tuple[Path, str]:
    """(a copy of a remote file as it is now, its version). The copy is named after the hash of its contents."""
    directory, sha256 = cache_dir() / "files", hashlib.sha256()
    partial = directory / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}-{os.getpid()}"
    with atomic_file(partial) as out, _with_file_system(name, lambda system, path: system.open(path, "rb")) as raw:
        while block := raw.read(BLOCK_BYTES):
            sha256.update(block)
            out.write(block)
    return partial.replace(directory / f"{sha256.hexdigest()}.raw"), f"{FETCHED}{sha256.hexdigest()}"


def open_remote(name: str, version: str):
    """A remote file of this version, opened to read bytes: its copy if there is one, else the file itself."""
    if version.startswith(FETCHED):
        return fetch(name)[0].open("rb")
    return _with_file_system(name, lambda system, path: system.open(path, "rb"))


def _with_file_system(name: str, do: Callable[[Any, str], Any]) -> Any:
    """`do(file system, path)` for a URL. Whatever it raises becomes a DataError."""
    try:
        import fsspec

        return do(*fsspec.core.url_to_fs(name))
    except FileNotFoundError:
        raise DataError(f"cannot read {name}: there is no such file; is the path right?") from None
    except ImportError as error:
        raise DataError(
            f"cannot read {name}: {one_line(error)} (gs:// needs `pip install gcsfs`, s3:// `pip install s3fs`, "
            "https:// `pip install aiohttp requests`)"
        ) from error
    except Exception as error:  # every file system has its own kinds
        raise DataError(
            f"cannot read {name}: {one_line(error)}; is the address right, and are you logged in there?"
        ) from error
