"""Sources of a dataset's files: folders and archives, which need not be unpacked.

A source is a folder, a zip file or a tar file (plain, or compressed with gzip, bzip2 or xz), or
several of them. An archive directly inside a source folder is part of that source.

Members of a zip or a plain tar are read in place. A compressed tar has no random access: it is
decompressed once, to an unnamed temporary file that vanishes when the process ends.
"""

import bz2
import dataclasses
import functools
import gzip
import lzma
import os
import pathlib
import posixpath
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib

from kseg.errors import option
from pipelines.errors import DataError

_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz")
_COMPRESSIONS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))
_MAX_DEPTH = 3
_MAX_FOLDERS = 5000  # Limit on the search for the data set's folder.
_SHOWN = 6
_LITTER = ("__MACOSX", "@eaDir")  # Folders that macOS adds to archives, and Synology's drives.


@dataclasses.dataclass(frozen=True)
class Member:
    """A file in an archive; reads like a `pathlib.Path`.

    Attributes:
        archive: `Archive`.
        path: str, path in the archive, separated by `/`.
    """

    archive: "Archive"
    path: str

    def __str__(self):
        return f"{self.archive.path}:{self.path}"

    @property
    def name(self):
        """The last part of the path."""
        return posixpath.basename(self.path)

    @property
    def stem(self):
        """The name without its suffix."""
        return posixpath.splitext(self.name)[0]

    @property
    def suffix(self):
        """The suffix, including the dot."""
        return posixpath.splitext(self.name)[1]

    @property
    def fingerprint(self):
        """The name and what the archive states about the content: size, and checksum or time."""
        return [self.name, *self.archive.state(self.path)]

    def read_bytes(self):
        """The content.

        Raises:
            DataError: if this part of the archive is damaged.
        """
        return self.archive.read(self.path)

    def read_head(self, size):
        """Returns the first bytes of the content, at most `size`; the rest is not decompressed.

        Raises:
            DataError: if this part of the archive is damaged.
        """
        return self.archive.read(self.path, size)


def fingerprint(file):
    """Returns JSON-able values that change when a file changes.

    Args:
        file: object with a `fingerprint`, such as `Member`; or a `pathlib.Path`, for which name,
            size and modification time are returned.

    Raises:
        DataError: if the file is missing.
    """
    if hasattr(file, "fingerprint"):
        return file.fingerprint
    try:
        state = file.stat()
    except OSError as error:
        link = ", a link" * file.is_symlink()
        raise DataError(
            f"{file}{link}: {error.strerror}. Restore it, or leave out its image ({option('skip')})"
        ) from None
    return [file.name, state.st_size, state.st_mtime_ns]


@dataclasses.dataclass(frozen=True)
class SourceFolder:
    """A folder, on disk or in an archive.

    Attributes:
        tree: `_Folder` or `Archive`.
        path: str, relative to the tree's root, separated by `/`; empty for the root.
    """

    tree: object
    path: str = ""

    def __str__(self):
        separator = ":" if self.in_archive else "/"
        return f"{self.tree.path}{separator}{self.path}" if self.path else str(self.tree.path)

    def __truediv__(self, name):
        return SourceFolder(self.tree, posixpath.join(self.path, name))

    @property
    def in_archive(self):
        """True if the folder is in an archive, not on disk."""
        return isinstance(self.tree, Archive)

    def has(self, name):
        """Returns True if a file or folder of that name exists; the name may be a path."""
        head, tail = posixpath.split(posixpath.join(self.path, name))
        return self.tree.is_folder(posixpath.join(head, tail)) or tail in self.tree.files(head)

    def folders(self):
        """Returns the sorted names of the subfolders, without hidden ones."""
        return sorted(self.tree.folders(self.path))

    def files(self):
        """Returns the files of the folder, not hidden ones: dict from name to file, sorted."""
        return dict(sorted(self.tree.files(self.path).items()))

    def file(self, name):
        """Returns the file of that name, or None if missing; the name may be a path."""
        head, tail = posixpath.split(posixpath.join(self.path, name))
        return self.tree.files(head).get(tail)


class Source:
    """All folders and archives that a data set is read from.

    Args:
        paths: list of `pathlib.Path`, folders and archives.

    Attributes:
        paths: list of str.
        name: str, all of them.

    Raises:
        DataError: if a path is missing, is neither, or is a damaged archive.
    """

    def __init__(self, paths):
        self._folders, self._archives = [], []
        for path in paths:
            if os.path.isdir(path):  # Unlike `is_dir`, no error for a name that is too long.
                self._folders.append(_Folder(path))
                inside = sorted(path.iterdir())
                self._archives += [p for p in inside if _looks_like_archive(p) and p.is_file()]
            elif not os.path.exists(path):
                raise DataError(f"{path} does not exist. Give a folder, or a zip or tar file")
            elif _looks_like_archive(path):
                self._archives.append(path)
            else:
                raise DataError(f"{path} is neither a folder nor a zip or tar file")
        self.paths = list(map(str, paths))
        self.name = ", ".join(self.paths)

    def find(self, *names):
        """Finds the folder that contains all the given names.

        Folders on disk take precedence over archives, and shallower folders over deeper ones.

        Args:
            *names: str, names of files or folders; may be paths.

        Returns:
            `SourceFolder`, or None if there is no such folder.

        Raises:
            DataError: if several folders match equally well, or an archive cannot be used.
        """
        for trees in (self._folders, (open_archive(path) for path in self._archives)):
            parents = {}
            for tree in trees:
                for depth, parent in tree.parents_of(names[0]):
                    if all(parent.has(name) for name in names):
                        parents.setdefault(depth, []).append(parent)
            if parents:
                best = parents[min(parents)]
                if len(best) > 1:
                    wanted = " and ".join(names)
                    raise DataError(
                        f"{wanted} must be in one place. They are in {best[0]} and in {best[1]}. "
                        "Give the right one as source"
                    )
                return best[0]
        return None

    def find_all(self, name):
        """Finds the shallowest folders that contain a file.

        Args:
            name: str, name of a file; may be a path.

        Returns:
            list of `SourceFolder`, all at the smallest depth that has any; folders in archives
            only if none on disk matches; empty if nothing matches.
        """
        for trees in (self._folders, (open_archive(path) for path in self._archives)):
            parents = {}
            for tree in trees:
                for depth, parent in tree.parents_of(name):
                    if parent.file(name) is not None:
                        parents.setdefault(depth, []).append(parent)
            if parents:
                return parents[min(parents)]
        return []

    def tops(self):
        """Returns the root of each folder and archive as `SourceFolder`, folders on disk first."""
        return [SourceFolder(tree) for tree in [*self._folders, *map(open_archive, self._archives)]]

    def describe(self):
        """Returns a short description of the content."""
        names = []
        for tree in [*self._folders, *map(open_archive, self._archives)]:
            inside = [f"{name}/" for name in tree.folders("")] + list(tree.files(""))
            if isinstance(tree, Archive) and (self._folders or len(self._archives) > 1):
                inside = [f"{tree.path.name}:{name}" for name in inside]
            names += sorted(inside)
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return (", ".join(names[:_SHOWN]) or "nothing") + more


def open_source(source):
    """Opens a source.

    Args:
        source: path of a folder or archive, a list of such paths, or a `Source`.

    Returns:
        `Source`.

    Raises:
        DataError: as `Source`.
    """
    if isinstance(source, Source):
        return source
    paths = [source] if isinstance(source, (str, os.PathLike)) else source
    return Source([pathlib.Path(os.path.expanduser(path)) for path in paths])


def is_hidden(name):
    """Returns True for the name of a file or folder that is no part of a data set."""
    return name.startswith(".") or name in _LITTER


def _check_name(name, where):
    """Raises a DataError for a name in another encoding than UTF-8: records cannot hold it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"Names of files must be UTF-8. In {where} there is {os.fsencode(name)!r}. Rename it; "
            "the tool convmv does so for whole folders"
        ) from None


def leads_up(link):
    """Returns True for a link to a folder that holds the link: following it has no end."""
    target, place = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return os.path.commonpath([target, place]) == target


def _kind_of(entry):
    """`folder` or `file`; None for anything else, such as a pipe or a link that leads up."""
    try:
        if entry.is_dir():
            return None if entry.is_symlink() and leads_up(entry.path) else "folder"
        # A link to a missing file is reported when the file is read.
        return "file" if entry.is_file() or entry.is_symlink() else None
    except OSError:  # A link to itself.
        return "file"


class _Folder:
    """A tree of folders on disk."""

    def __init__(self, path):
        self.path = path

    def is_folder(self, path):
        return os.path.isdir(self.path / path)

    def folders(self, path):
        return self._scan(path)[0]

    def files(self, path):
        return self._scan(path)[1]

    @functools.cache  # noqa: B019 (a source lives as long as the preparation)
    def _scan(self, path):
        folders, files = [], {}
        try:
            with os.scandir(self.path / path) as entries:
                for entry in entries:
                    if is_hidden(entry.name):
                        continue
                    _check_name(entry.name, self.path / path)
                    kind = _kind_of(entry)
                    if kind == "folder":
                        folders.append(entry.name)
                    elif kind == "file":
                        files[entry.name] = self.path / path / entry.name
        except OSError:  # A folder without read permission counts as empty.
            pass
        return folders, files

    def parents_of(self, name):
        """Yields `(depth, folder)` for each folder that contains a name, down to a limit."""
        level, looked = [""], 0
        for depth in range(_MAX_DEPTH + 1):
            below = []
            for path in level:
                if os.path.exists(self.path / path / name):
                    yield depth, SourceFolder(self, path)
                looked += 1
                if depth < _MAX_DEPTH and looked + len(below) < _MAX_FOLDERS:
                    below += [posixpath.join(path, folder) for folder in self.folders(path)]
            level = sorted(below)


class Archive:
    """A tree of folders in a zip or tar file. Use `open_archive`.

    Args:
        path: `pathlib.Path`.

    Raises:
        DataError: if the file is not an archive or is damaged, or a member lies or points outside.
    """

    def __init__(self, path):
        self.path = path
        self._files = {"": {}}
        self._folders = {"": set()}
        self._entries = {}
        links = {}
        try:
            entries = self._read_zip() if zipfile.is_zipfile(path) else self._read_tar()
            for name, kind, target, entry in entries:
                clean = self._check(name)
                if clean is None:
                    continue
                if kind == "link":
                    links[clean] = self._check(target, name)
                elif kind == "folder":
                    self._add_folder(clean)
                else:
                    self._entries[clean] = entry
        except (
            tarfile.TarError,
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            lzma.LZMAError,
        ) as error:
            raise DataError(f"{path} cannot be read as an archive: {error}") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read as an archive: {error}") from None
        for name, target in links.items():
            seen = set()
            while target in links and target not in seen:
                seen.add(target)
                target = links[target]
            if target in self._entries:
                self._entries[name] = self._entries[target]
        for name in self._entries:
            head, tail = posixpath.split(name)
            self._add_folder(head)
            self._files[head][tail] = Member(self, name)

    def __reduce__(self):
        return open_archive, (self.path,)

    def is_folder(self, path):
        """Returns True if the path is a folder in the archive."""
        return path in self._folders

    def folders(self, path):
        """Returns the names of the subfolders of a folder."""
        return self._folders.get(path, ())

    def files(self, path):
        """Returns the files in a folder, as a dict from name to `Member`."""
        return self._files.get(path, {})

    def parents_of(self, name):
        """Yields `(depth, folder)` for each folder that contains a name."""
        for path in self._folders:
            if SourceFolder(self, path).has(name):
                yield (path.count("/") + 1 if path else 0), SourceFolder(self, path)

    def state(self, path):
        """Returns a member's size and its checksum (zip) or modification time (tar)."""
        return self._entries[path].state

    def read(self, path, size=None):
        """Returns the content of a member, or its first `size` bytes.

        Raises:
            DataError: if it is damaged.
        """
        try:
            return self._entries[path].read(size)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise DataError(f"{self.path}:{path} is damaged: {error}") from None

    def _add_folder(self, path):
        parts = path.split("/") if path else []
        for i, part in enumerate(parts):
            self._folders["/".join(parts[:i])].add(part)
            self._folders.setdefault("/".join(parts[: i + 1]), set())
            self._files.setdefault("/".join(parts[: i + 1]), {})

    def _check(self, name, link=None):
        """Returns a member's path without `.` parts, or None for a hidden member.

        Raises:
            DataError: if the path leads outside the archive.
        """
        parts = name.replace("\\", "/").split("/")
        outside = ".." in parts or not parts[0] or re.match(r"[A-Za-z]:", name)
        if outside and name:
            what = f"the link {link!r} to {name!r}" if link else repr(name)
            raise DataError(
                f"No member of an archive may lie or point outside of it. {self.path} has {what}. "
                "Do not unpack it; get it from its publisher again"
            )
        parts = [part for part in parts if part not in ("", ".")]
        if not parts or any(map(is_hidden, parts)):
            return None
        _check_name("/".join(parts), self.path)
        return "/".join(parts)

    def _read_zip(self):
        archive = zipfile.ZipFile(self.path)
        for info in archive.infolist():
            if info.flag_bits & 1:
                raise DataError(f"{self.path} is encrypted. Unpack it and give the folder")
            kind, target = "folder" if info.is_dir() else "file", None
            if stat.S_ISLNK(info.external_attr >> 16):
                kind, target = "link", archive.read(info).decode("utf-8", "replace")
                target = _resolve(info.filename, target)
            yield info.filename, kind, target, _ZipEntry(archive, info)

    def _read_tar(self):
        file = self.path.open("rb")
        head = file.read(6)
        file.seek(0)
        for magic, opener in _COMPRESSIONS:
            if head.startswith(magic):
                with file, opener(file) as packed:
                    file = tempfile.TemporaryFile()  # noqa: SIM115 (kept open until exit)
                    shutil.copyfileobj(packed, file, 1 << 20)
                file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                kind, target = "file" if info.isreg() else "folder", None
                if info.issym():
                    kind, target = "link", _resolve(info.name, info.linkname)
                elif info.islnk():
                    kind, target = "link", info.linkname
                elif not info.isreg() and not info.isdir():
                    raise DataError(
                        f"An archive may hold files and folders only. {self.path} has "
                        f"{info.name!r}, a device or pipe"
                    )
                yield info.name, kind, target, _TarEntry(file, info)


class _ZipEntry:
    def __init__(self, archive, info):
        self._archive, self._info = archive, info
        self.state = [info.file_size, info.CRC]

    def read(self, size=None):
        # Threads may read from one ZipFile: it locks the file, and decompresses outside the lock.
        if size is None:
            return self._archive.read(self._info)
        with self._archive.open(self._info) as stream:
            return stream.read(size)


class _TarEntry:
    def __init__(self, file, info):
        self._file, self._offset, self._size = file, info.offset_data, info.size
        self.state = [info.size, info.mtime]

    def read(self, size=None):
        size = self._size if size is None else min(size, self._size)
        content = os.pread(self._file.fileno(), size, self._offset)
        if len(content) < size:
            raise EOFError("the archive is truncated")
        return content


def open_archive(path):
    """Opens an archive, or returns it if it is already open.

    Args:
        path: `pathlib.Path`.

    Returns:
        `Archive`.

    Raises:
        DataError: as `Archive`.
    """
    state = path.stat()
    return _open_archive(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _open_archive(path, size, time):
    return Archive(path)


def _resolve(name, target):
    """Resolves a symbolic link to a path from the archive's root; leaves absolute targets."""
    target = target.replace("\\", "/")
    if target.startswith("/"):
        return target
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), target))


def _looks_like_archive(path):
    return path.name.lower().endswith(_SUFFIXES)
