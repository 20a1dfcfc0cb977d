"""Without a network it fails at once; a download is complete or not there."""

import functools
import hashlib
import http.server
import os
import socket
import threading
import time

import pytest

from adabatch_jax.data.datasets.preparation import StageProgress, network, prepare
from adabatch_jax.system.errors import UsageError


@pytest.mark.parametrize("name", ["cifar10", "mnist", "kmnist"])
def test_without_a_network_it_fails_at_once(name, offline, tmp_path):
    started = time.monotonic()
    with pytest.raises(UsageError, match=f"'{name}' .* can't be reached"):
        prepare(name, tmp_path)
    assert time.monotonic() - started < 10


def test_a_hanging_name_server_is_not_waited_for(monkeypatch, offline):
    fail = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: time.sleep(5) or fail())
    started = time.monotonic()
    with pytest.raises(UsageError, match="host.invalid can't be reached .no answer."):
        network.require_reachable("x", ["http://host.invalid/file"], seconds=0.2)
    assert time.monotonic() - started < 2


def test_a_host_that_never_answers_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        started = time.monotonic()
        with pytest.raises(UsageError, match="can't be reached"):
            network.require_reachable("x", [url], seconds=0.3)
    assert time.monotonic() - started < 3


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder and the address under which its files are served."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def end_headers(self):
            if self.path.startswith("/short"):
                self.send_header("Content-Length", "1000000")
            super().end_headers()

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_download_appears_when_it_is_complete(served, tmp_path):
    folder, address = served
    data = os.urandom(600_000)
    (folder / "file.bin").write_bytes(data)
    reports = []
    arguments = ("x", f"{address}/file.bin", tmp_path / "to", hashlib.sha256(data).hexdigest())
    umask = os.umask(0o027)
    try:
        path = network.download(*arguments, reports.append)
    finally:
        os.umask(umask)
    assert path.read_bytes() == data
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o640, 0o750)
    assert reports[-1] == StageProgress("Downloading file.bin", 600_000, 600_000, "bytes")
    (folder / "file.bin").unlink()
    assert network.download(*arguments, reports.append) == path  # not asked for again


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("file.bin", "its sha256 is .* instead of 0000"),
        ("missing.bin", "missing.bin answers 404"),
    ],
)
def test_a_bad_download_leaves_nothing(name, match, served, tmp_path, files_in):
    folder, address = served
    (folder / "file.bin").write_bytes(b"other data")
    with pytest.raises(UsageError, match=match):
        network.download("x", f"{address}/{name}", tmp_path / "to", "0000", print)
    assert files_in(tmp_path / "to") == []


def test_a_download_without_an_end_is_given_up(served, tmp_path, files_in, monkeypatch):
    folder, address = served
    (folder / "file.bin").write_bytes(bytes(600_000))
    monkeypatch.setattr(network, "MAX_ORIGINAL_BYTES", 500_000)
    with pytest.raises(UsageError, match="500,000 bytes"):
        network.download("x", f"{address}/file.bin", tmp_path / "to", "0000", lambda _: None)
    assert files_in(tmp_path / "to") == []


def test_mnist_from_the_network(
    served, miniature, tmp_path, monkeypatch, as_sorted_examples, prepared_examples
):
    import tensorflow_datasets as tfds

    small = miniature("mnist")
    folder, address = served
    infos = tfds.builder_cls("mnist").url_infos
    for path in small.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(
        tfds.builder_cls("mnist"),
        "url_infos",
        {f"{address}/{info.filename}": info for info in infos.values()},
    )
    prepare("mnist", tmp_path / "data", checksums=small.checksums)
    assert prepared_examples("mnist", "test", tmp_path / "data") == as_sorted_examples(
        small.images["test"], small.labels["test"]
    )
