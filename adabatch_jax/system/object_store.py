"""A folder in an object store, gs://bucket/folder: whole objects by name, no rename, no lock.

Through tensorstore, which Orbax brings along. An object is there whole or not at all, and a write
may say which state of it it replaces: that is all a store offers to those who share it.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from adabatch_jax.system.errors import StorageError, UsageError, one_line

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/+)(.*)", re.DOTALL)
_AT_ONCE = 8  # objects, each of which is in memory meanwhile
# tensorstore's own 32 tries would take a quarter of an hour.
_RETRIES = {"max_retries": 6, "initial_delay": "500ms", "max_delay": "16s"}


def is_url(path: Any) -> bool:
    """Whether a path names no folder of this machine but an object store, rightly or not.

    >>> is_url("gs://bucket/run"), is_url("runs/a"), is_url("runs:a/b")
    (True, False, False)
    """
    return _URL.fullmatch(str(path)) is not None


def parsed(url: str, flag: str) -> tuple[str, str]:
    """The bucket and the folder in it that a URL names.

    Raises a UsageError where it is none of Google Cloud Storage; `flag` is where the user gave it.

    >>> parsed("gs://bucket/runs/a/", "--workdir")
    ('bucket', 'runs/a')
    >>> parsed("s3://bucket/a", "--workdir")
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: --workdir: 's3://bucket/a' ... mount the bucket ...
    """
    scheme, slashes, rest = _URL.fullmatch(url).groups()
    if scheme != "gs":
        raise UsageError(
            f"{flag}: {url!r} can't be written to, of object stores only Google's can, "
            "gs://bucket/folder; mount the bucket (s3fs-fuse, JuiceFS) and give the folder that it "
            "then is."
        )
    bucket, _, folder = rest.partition("/")
    folder = folder.strip("/")
    if slashes != "//" or not bucket or not _is_plain(folder):
        raise UsageError(
            f"{flag}: {url!r} names no folder in a bucket; write it as a text like "
            "'gs://bucket/folder'."
        )
    return bucket, folder


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file below a folder: no placeholder "a/", and no way out."""
    return not {"", ".", ".."}.intersection(name.split("/"))


@dataclasses.dataclass(frozen=True)
class Seen:
    """An object as it was read.

    Attributes:
      content: None where there is none.
      state: which state of the object this is, for `replace`; None where the store doesn't tell.
    """

    content: bytes | None
    state: bytes | None


class ObjectFolder:
    """The objects below `gs://bucket/folder/`, by the rest of their names.

    Every method raises a StorageError where the store refuses, or can't be reached in a minute.

    Args:
      url: the folder.
      flag: where the user named it, for errors.
    """

    def __init__(self, url: str, flag: str):
        import tensorstore

        bucket, folder = parsed(url, flag)
        self._url, self._prefix = url, f"{folder}/"
        # "0" follows "/": all names that begin with the prefix.
        self._range = tensorstore.KvStore.KeyRange(self._prefix, f"{folder}0")
        spec = {
            "driver": "gcs",
            "bucket": bucket,
            "context": {"gcs_request_retries": _RETRIES},
        }
        self._store = self._done("open", "", tensorstore.KvStore.open(spec))

    def names(self) -> list[str]:
        """The names of all objects that can be files, sorted."""
        found = self._done("list", "", self._store.list(self._range))
        names = (name.decode(errors="surrogateescape") for name in found)
        # Emulators answer with all of the bucket.
        own = (name[len(self._prefix) :] for name in names if name.startswith(self._prefix))
        return sorted(filter(_is_plain, own))

    def see(self, name: str) -> Seen:
        """Reads an object, and which state of it that is."""
        read = self._done("read", name, self._store.read(self._prefix + name))
        state = read.stamp.generation
        is_told = read.state == "missing" or any(state[1:])  # emulators leave it out
        content = None if read.state == "missing" else read.value
        return Seen(content, state if is_told else None)

    def replace(self, name: str, content: bytes | None, state: bytes | None) -> bytes | None:
        """Writes an object, or deletes it (None), if it is in a state; returns the new one.

        None says that it was in another. Where `state` is None it may be in any.
        """
        written = self._store.write(self._prefix + name, content, if_equal=state)
        return self._done("write", name, written).generation or None

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Reads objects, some at a time; those that have gone meanwhile are left out."""

        def begin(name: str) -> Any:
            return self._store.read(self._prefix + name)

        for name, read in self._some_at_a_time("read", names, begin):
            if read.state != "missing":
                yield name, read.value

    def write(self, contents: Mapping[str, Callable[[], bytes]]) -> None:
        """Writes objects, some at a time, in no order; each content is asked for just before."""

        def write(name: str) -> Any:
            return self._store.write(self._prefix + name, contents[name]())

        for _ in self._some_at_a_time("write", contents, write):
            pass

    def delete(self, names: Iterable[str]) -> None:
        """Deletes objects, in no order; those that aren't there are no error."""

        def delete(name: str) -> Any:
            return self._store.write(self._prefix + name, None)

        for _ in self._some_at_a_time("delete", names, delete):
            pass

    def _some_at_a_time(
        self, action: str, names: Iterable[str], begin: Callable[[str], Any]
    ) -> Iterator[tuple[str, Any]]:
        left = iter(names)
        while some := list(itertools.islice(left, _AT_ONCE)):
            begun = [(name, begin(name)) for name in some]
            for name, future in begun:
                yield name, self._done(action, name, future)

    def _done(self, action: str, name: str, future: Any) -> Any:
        try:
            return future.result()
        except Exception as error:  # tensorstore raises many kinds
            where = f"{self._url}/{name}".rstrip("/")
            reason = one_line(error).partition(" [")[0]
            raise StorageError(f"cannot {action} {where}: {reason}.") from error
