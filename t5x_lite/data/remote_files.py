"""Reads files on remote file systems (gs://, s3://, https://, …) through fsspec: their versions and cached copies."""

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
FETCHED = "sha256="  # prefix of the version of a file whose file system reports none of VERSION_MARKS
BLOCK_BYTES = 1 << 20  # read at a time


def is_remote(name: str) -> bool:
    """Returns whether a file's name is a URL."""
    return "://" in name


def size_and_version(name: str) -> tuple[int, str]:
    """Returns the size of a remote file in bytes, and its version as its file system reports it.

    If the file system reports nothing that changes with the contents, the version is the hash of the contents. To
    compute it, each process fetches the file once. Raises DataError if the file cannot be read.
    """
    info = _with_file_system(name, lambda system, path: system.info(path))
    version = " ".join(f"{mark}={info[mark]}" for mark in VERSION_MARKS if info.get(mark) is not None)
    if version and info.get("size") is not None:
        return info["size"], version
    copy, version = fetch(name)
    return copy.stat().st_size, version


@functools.cache
def fetch(name: str) -> tuple[Path, str]:
    """Copies a remote file into the cache and returns (path of the copy, version). The copy is named after the hash of
    its contents.

    Raises DataError if the file cannot be read or the copy cannot be written.
    """
    directory, sha256 = cache_dir() / "files", hashlib.sha256()
    partial = directory / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}-{os.getpid()}"
    with atomic_file(partial) as out, _with_file_system(name, lambda system, path: system.open(path, "rb")) as raw:
        while block := raw.read(BLOCK_BYTES):
            sha256.update(block)
            out.write(block)
    return partial.replace(directory / f"{sha256.hexdigest()}.raw"), f"{FETCHED}{sha256.hexdigest()}"


def open_remote(name: str, version: str):
    """Opens a remote file of this version for reading bytes: its cached copy if there is one, else the file itself.

    Raises DataError if the file cannot be read.
    """
    if version.startswith(FETCHED):
        return fetch(name)[0].open("rb")
    return _with_file_system(name, lambda system, path: system.open(path, "rb"))


def _with_file_system(name: str, do: Callable[[Any, str], Any]) -> Any:
    """Returns `do(file system, path)` for a URL. If `do` raises any error, raises DataError."""
    try:
        import fsspec

        return do(*fsspec.core.url_to_fs(name))
    except FileNotFoundError:
        raise DataError(f"cannot read {name}: there is no such file; check the path") from None
    except ImportError as error:
        raise DataError(
            f"cannot read {name}: {one_line(error)} (gs:// needs `pip install gcsfs`, s3:// `pip install s3fs`, "
            "https:// `pip install aiohttp requests`)"
        ) from error
    except Exception as error:  # every file system raises its own classes
        raise DataError(
            f"cannot read {name}: {one_line(error)}; check the address, and that you are logged in"
        ) from error
