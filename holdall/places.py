"""What is at a path or URL: files, folders, sizes, patterns."""

from __future__ import annotations

from pathlib import Path

from holdall.files import _filesystem, is_local, local_path


def is_file(url: str) -> bool:
    """Whether a file is there."""
    if is_local(url):
        return local_path(url).is_file()
    fs, path = _filesystem(url)
    return bool(fs.isfile(path))


def is_folder(url: str) -> bool:
    """Whether a folder (or, in an object store, anything under that prefix) is there."""
    if is_local(url):
        return local_path(url).is_dir()
    fs, path = _filesystem(url)
    return bool(fs.isdir(path))


def size(url: str) -> int:
    """Bytes of a file, or of everything in a folder."""
    if is_local(url):
        where = local_path(url)
        return (
            where.stat().st_size
            if where.is_file()
            else sum(p.stat().st_size for p in where.rglob("*") if p.is_file())
        )
    fs, path = _filesystem(url)
    return int(fs.size(path) if fs.isfile(path) else fs.du(path))


def glob(pattern: str) -> list[str]:
    """Files that match, in order; local or remote."""
    if is_local(pattern):
        import glob as local

        found = local.glob(str(local_path(pattern)), recursive=True)  # noqa: PTH207 (absolute patterns too)
        return sorted(f for f in found if Path(f).is_file())
    fs, path = _filesystem(pattern)
    return sorted(fs.unstrip_protocol(f) for f in fs.glob(path) if fs.isfile(f))
