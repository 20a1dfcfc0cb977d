"""An object store in memory, by tensorstore's own driver: with conditions, and a record of writes."""

import tensorstore


class MemoryStore:
    """Stands in for Google's in a test.

    Attributes:
      writes: (bucket/name, content or None) of each object written or deleted, in this order.
    """

    def __init__(self, monkeypatch):
        self.writes = []
        self._context = tensorstore.Context()
        self._open = tensorstore.KvStore.open
        monkeypatch.setattr(tensorstore.KvStore, "open", self.folder)

    def folder(self, spec, **arguments):
        if not isinstance(spec, dict) or spec["driver"] != "gcs":  # Orbax's
            return self._open(spec, **arguments)
        return _Folder(self, f"{spec['bucket']}/")

    def opened(self, path):
        spec = {"driver": "memory", "path": path}
        return self._open(spec, context=self._context).result()

    def objects(self, path=""):
        """All objects below a path, by name."""
        there = self.opened(path)
        return {name.decode(): there[name] for name in there.list().result()}

    def fill(self, path, objects):
        """Makes these all that there is below a path."""
        there = self.opened(path)
        for name in there.list().result():
            there.write(name, None).result()
        for name, content in objects.items():
            there.write(name, content).result()


class _Folder:
    """A folder of the store as `ObjectFolder` uses it; also the future that it comes from."""

    def __init__(self, store, path):
        self._store, self._path, self._objects = store, path, store.opened(path)
        self.list, self.read = self._objects.list, self._objects.read

    def result(self):
        return self

    def write(self, name, content, if_equal=None):
        future = self._objects.write(name, content, if_equal=if_equal)
        if future.result().generation:  # none where it was in another state
            self._store.writes.append((self._path + name, content))
        return future
