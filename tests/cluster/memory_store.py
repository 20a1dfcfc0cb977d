"""Processes that are threads of a test, which talk through a dict in place of JAX's store."""

import threading
import time

from adabatch_jax.cluster import processes as processes_module
from adabatch_jax.cluster.processes import Processes


class MemoryStore:
    """What `Processes` uses of JAX's key-value store, with its errors."""

    def __init__(self):
        self._values, self._changed = {}, threading.Condition()
        self.num_requests = 0

    def key_value_set(self, key, value, allow_overwrite=False):
        with self._changed:
            self.num_requests += 1
            if key in self._values and not allow_overwrite:
                raise RuntimeError(f"ALREADY_EXISTS: {key}")
            self._values[key] = value
            self._changed.notify_all()

    def key_value_delete(self, key):
        with self._changed:
            for name in [n for n in self._values if n == key or n.startswith(f"{key}/")]:
                del self._values[name]
            if key.endswith("/"):
                self.key_value_delete(key.rstrip("/"))

    def key_value_try_get(self, key):
        with self._changed:
            self.num_requests += 1
            if key not in self._values:
                raise RuntimeError(f"NOT_FOUND: {key}")
            return self._values[key]

    def key_value_dir_get(self, folder):
        with self._changed:
            self.num_requests += 1
            return [(k, v) for k, v in self._values.items() if k.startswith(folder)]

    def blocking_key_value_get(self, key, milliseconds):
        until = time.monotonic() + milliseconds / 1000
        with self._changed:
            self.num_requests += 1
            while key not in self._values:
                if not self._changed.wait(max(0.0, until - time.monotonic())):
                    raise RuntimeError(f"DEADLINE_EXCEEDED: {key}")
            return self._values[key]


def together(monkeypatch, count, body, seconds=20):
    """What `body(processes)` returns or raises in each of so many threads; and the store."""
    store, results = MemoryStore(), [None] * count
    monkeypatch.setattr(processes_module, "store", lambda: store)

    def run(index):
        try:
            results[index] = body(Processes(index, count))
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
        assert not thread.is_alive(), "a process waits for ever"
    return results, store
