"""A folder to work in: one of this machine, or the copy here of one in an object store.

Who works in a folder writes files as on any disk. Where it is a copy, `push` brings the store's
folder up to it, in an order that leaves it usable whenever the process dies: what an object speaks
of is there before it, and goes after it.
"""

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from adabatch_jax.system.errors import AdabatchError
from adabatch_jax.system.file_locks import try_lock
from adabatch_jax.system.files import read_file, storage_errors
from adabatch_jax.system.object_lock import LOCK, ObjectLock
from adabatch_jax.system.object_store import ObjectFolder

_COPY = "adabatch_jax-copy-"


class WorkFolder(os.PathLike):
    """A folder of this machine, which needs nothing to be kept up to date.

    >>> folder = WorkFolder(Path("runs/a"))
    >>> str(folder), folder / "config.json"
    ('runs/a', PosixPath('runs/a/config.json'))
    """

    def __init__(self, path: Path):
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def named(self, text: str) -> str:
        """A text about files in this folder as users know them."""
        return text

    def fetch(self) -> None:
        """Makes the copy what is in the store, before anything is changed in it."""

    def complete(self, folder: Path) -> None:
        """Adds to a folder what other processes have put into the store, and isn't here."""

    def clear(self, folder: Path | None = None) -> None:
        """Removes a folder from the store alone, before it is written anew.

        None: what a kill has left there of what was never completed.
        """

    def push(self, only: Collection[str] | None = None) -> None:
        """Brings the store up to what is here; `only`: files of these names, or below them."""

    def push_part(self, folder: Path, target: Path) -> None:
        """Brings a folder to the store, under the name that it will have."""

    def drop(self, folder: Path) -> None:
        """Removes what needs to be in the store alone."""


class MirroredFolder(WorkFolder):
    """The copy of a folder in an object store, of this process alone.

    Args:
      url: the folder in the store.
      path: the copy, an empty folder.
      flag: where the user named it.
      mark_of: the name of the object without which one of this name is worth nothing; or None.
      rank: a name's place in the order of writing: an object speaks of those of lower ranks; below
        0 is what stays here.
    """

    def __init__(
        self,
        url: str,
        path: Path,
        flag: str,
        mark_of: Callable[[str], str | None],
        rank: Callable[[str], int],
    ):
        super().__init__(path)
        self.url = url
        self._mark_of, self._rank = mark_of, rank
        self._store = ObjectFolder(url, flag)
        self._known: dict[str, tuple[int, ...]] = {}  # what is in the store as it is here
        self._lock: ObjectLock | None = None
        self._one_at_a_time = threading.RLock()  # checkpoints are written by a thread

    def __str__(self) -> str:
        return self.url

    def named(self, text: str) -> str:
        return text.replace(str(self.path), self.url)

    @contextlib.contextmanager
    def locked(
        self,
        flag: str,
        wait_seconds: float,
        take_over: bool,
    ) -> Iterator[None]:
        """Keeps other processes out of the store's folder; see `ObjectLock`.

        The copy then is what is there now.
        """
        with ObjectLock(self._store, self.url, flag, wait_seconds, take_over) as self._lock:
            try:
                self.fetch()
                yield
            finally:
                self._lock = None

    def names(self) -> list[str]:
        """What is in the store."""
        return self._store.names()

    def fetch(self) -> None:
        with self._one_at_a_time:
            there = dict.fromkeys(self._store.names())
            for name in self._here().keys() - there.keys():
                (self.path / name).unlink()
            self._known = {name: facts for name, facts in self._known.items() if name in there}
            marks = {self._mark_of(name) for name in there} - {None}
            changed = self._changed(marks & there.keys())
            wanted = [name for name in there if self._is_wanted(name, there, changed)]
            self._read(wanted)
            # The marks come last: what was deleted meanwhile is then not taken for damaged.
            self._read(sorted(changed))
            self._read([LOCK])
            self._known.pop(LOCK, None)  # which is not for `push`
            for mark in marks:
                if not (self.path / mark).exists():
                    self.drop((self.path / mark).parent)

    def _changed(self, marks: Iterable[str]) -> set[str]:
        """The marks that aren't here as they are in the store."""
        marks = sorted(marks)
        here = {name: read_file(self.path / name) for name in marks if (self.path / name).exists()}
        return {name for name, content in self._store.read(marks) if here.get(name) != content}

    def _is_wanted(self, name: str, there: Collection[str], changed: Collection[str]) -> bool:
        """Whether an object is to be read, being no mark and not here as it is in the store."""
        mark = self._mark_of(name)
        if mark is None:
            return not name.startswith(".")
        is_complete = mark in there and name != mark
        return is_complete and (mark in changed or not (self.path / name).exists())

    def complete(self, folder: Path) -> None:
        with self._one_at_a_time:
            below = self._below(folder)
            self._read(name for name in below if not (self.path / name).exists())

    def _read(self, names: Iterable[str]) -> None:
        for name, content in self._store.read(names):
            path = self.path / name
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                self._known[name] = _facts(path)

    def clear(self, folder: Path | None = None) -> None:
        with self._one_at_a_time:
            self._check_is_ours()
            if folder is None:
                there = {name: self._mark_of(name) for name in self._store.names()}
                self._delete(name for name, mark in there.items() if mark and mark not in there)
            else:
                self._delete(self._below(folder))

    def push(self, only: Collection[str] | None = None) -> None:
        with self._one_at_a_time:
            self._check_is_ours()
            here = {name: facts for name, facts in self._here().items() if _is_below(name, only)}
            new = [name for name, facts in here.items() if self._known.get(name) != facts]
            for rank in sorted({self._rank(name) for name in new}):
                if rank:
                    self._check_is_ours()
                self._write({name: self.path / name for name in new if self._rank(name) == rank})
            gone = [name for name in self._known if _is_below(name, only) and name not in here]
            if gone:
                marks = [name for name in gone if self._mark_of(name) == name]
                below = [name for name in self._store.names() if self._mark_of(name) in marks]
                self._delete([*gone, *below])

    def push_part(self, folder: Path, target: Path) -> None:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        with self._one_at_a_time:
            self._write({self._name(target / path.relative_to(folder)): path for path in files})

    def drop(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    def _below(self, folder: Path) -> list[str]:
        """The objects in a folder."""
        return [name for name in self._store.names() if _is_below(name, [self._name(folder)])]

    def _check_is_ours(self) -> None:
        if self._lock is not None:  # that of the first of several processes
            self._lock.check()

    def _write(self, paths: dict[str, Path]) -> None:
        facts = {name: _facts(path) for name, path in paths.items()}  # before they are read

        def content(path: Path) -> Callable[[], bytes]:
            def read() -> bytes:
                with storage_errors(path, action="read"):
                    return read_file(path)

            return read

        self._store.write({name: content(path) for name, path in paths.items()})
        self._known |= facts

    def _delete(self, names: Iterable[str]) -> None:
        names = dict.fromkeys(names)
        for rank in sorted({self._rank(name) for name in names}, reverse=True):
            self._store.delete(name for name in names if self._rank(name) == rank)
        for name in names:
            self._known.pop(name, None)

    def _here(self) -> dict[str, tuple[int, ...]]:
        """The files that belong into the store: no lock, nothing unfinished, nothing empty.

        A file without content is worth an object only where something counts on it.
        """
        files = {}
        for path in sorted(self.path.rglob("*")):
            name = self._name(path)
            if not name.startswith(".") and self._rank(name) >= 0:
                with contextlib.suppress(FileNotFoundError):  # the run goes on meanwhile
                    is_counted_on = self._mark_of(name) is not None
                    if path.is_file() and (path.stat().st_size or is_counted_on):
                        files[name] = _facts(path)
        return files


@contextlib.contextmanager
def mirrored(
    url: str, flag: str, mark_of: Callable[[str], str | None], rank: Callable[[str], int]
) -> Iterator[MirroredFolder]:
    """An empty copy of a folder in an object store, in the system's folder for temporary files.

    It is removed at the end; one that a kill has left is by whoever makes the next. Errors name
    the store's folder where they would name the copy.
    """
    name = url.rstrip("/").rpartition("/")[2]
    with _own_copy() as copies:
        path = copies / name  # reports call a run after its folder
        path.mkdir()
        folder = MirroredFolder(url, path, flag, mark_of, rank)
        try:
            yield folder
        except AdabatchError as error:
            error.args = tuple(folder.named(str(text)) for text in error.args)
            raise


@contextlib.contextmanager
def _own_copy() -> Iterator[Path]:
    folder = Path(tempfile.gettempdir())
    with storage_errors(folder):
        for left in folder.glob(f"{_COPY}*"):
            with contextlib.suppress(OSError), _held(left) as is_free:
                if is_free:
                    shutil.rmtree(left, ignore_errors=True)
        while True:
            path = Path(tempfile.mkdtemp(prefix=_COPY))
            fd = os.open(path, os.O_RDONLY)
            if try_lock(fd) is not False and path.exists():  # else another start took it for left
                break
            os.close(fd)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(fd)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[bool]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield bool(try_lock(fd))
    finally:
        os.close(fd)


def _facts(path: Path) -> tuple[int, ...]:
    """What changes with a file's content."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _is_below(name: str, folders: Collection[str] | None) -> bool:
    return folders is None or any(name == f or name.startswith(f"{f}/") for f in folders)
