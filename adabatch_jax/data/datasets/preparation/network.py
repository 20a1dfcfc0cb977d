"""Downloads that fail within seconds where there is no network."""

import hashlib
import http.client
import os
import queue
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from adabatch_jax.data.datasets.preparation.stage_progress import Report, StageProgress
from adabatch_jax.system.errors import UsageError

_ANSWER_SECONDS = 10.0
_STALL_SECONDS = 30.0
_BLOCK_BYTES = 1 << 18
# The largest original that is downloaded here, CIFAR-10's, has 170 MB.
MAX_ORIGINAL_BYTES = 2**29


def require_reachable(dataset: str, urls: Iterable[str], seconds: float = _ANSWER_SECONDS) -> None:
    """Raises a UsageError unless a host answers in time, through the user's proxy if there is one.

    Threads ask, as looking up a host's name has no time limit of its own.
    """
    url_of_host = {urlsplit(url).netloc: url for url in urls}
    answers: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()

    def ask(host: str, url: str) -> None:
        answers.put((host, _why_unreachable(url, seconds)))

    for host_and_url in url_of_host.items():
        threading.Thread(target=ask, args=host_and_url, daemon=True).start()
    try:
        for _ in url_of_host:
            host, reason = answers.get(timeout=seconds)
            if reason is None:
                return
    except queue.Empty:
        host, reason = next(iter(url_of_host)), "no answer"
    if url_of_host:
        raise UsageError(_unreachable(dataset, host, reason))


def download(dataset: str, url: str, folder: Path, sha256: str, report: Report) -> Path:
    """Downloads a file into `folder` unless it is there, and returns its path.

    The file appears under its name when it is complete and its checksum is right, so that a
    killed or a parallel download leaves nothing wrong behind.

    Raises:
      UsageError: the host can't be reached, the download breaks off, or brings other bytes.
    """
    path = folder / urlsplit(url).path.rsplit("/", 1)[-1]
    if path.exists():
        return path
    require_reachable(dataset, [url])
    folder.mkdir(parents=True, exist_ok=True)
    # Not by mkstemp, whose files nobody else may read, whatever the user's umask says.
    partial = folder / f"{path.name}.{uuid.uuid4().hex}.part"
    try:
        with open(partial, "xb") as file:
            digest = _copy(dataset, url, file, report)
        if digest != sha256:
            raise UsageError(
                f"{url} is not the original file of {dataset!r} any more: its sha256 is {digest} "
                f"instead of {sha256}; get the file elsewhere and use --from FOLDER."
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _copy(dataset: str, url: str, file: BinaryIO, report: Report) -> str:
    digest, done, total = hashlib.sha256(), 0, None
    stage = f"Downloading {urlsplit(url).path.rsplit('/', 1)[-1]}"
    for block, total in _blocks(dataset, url):
        done += len(block)
        if done > MAX_ORIGINAL_BYTES:
            raise UsageError(
                f"{url} is not the original file of {dataset!r}: it has more than "
                f"{MAX_ORIGINAL_BYTES:,} bytes; get the file elsewhere and use --from FOLDER."
            )
        digest.update(block)
        file.write(block)
        report(StageProgress(stage, done, total, "bytes"))
    if total is not None and done < total:
        raise UsageError(f"the download of {url} broke off after {done} of {total} bytes.")
    return digest.hexdigest()


def _blocks(dataset: str, url: str) -> Iterator[tuple[bytes, int | None]]:
    """Yields the file's blocks, each with the file's size; only the network's errors are caught."""
    try:
        with urllib.request.urlopen(url, timeout=_STALL_SECONDS) as response:
            length = response.headers.get("Content-Length")
            while block := response.read(_BLOCK_BYTES):
                yield block, int(length) if length else None
    except urllib.error.HTTPError as error:
        raise UsageError(
            f"{url} answers {error.code} {error.reason}; get the original files of {dataset!r} "
            "elsewhere and use --from FOLDER."
        ) from error
    except (http.client.HTTPException, OSError) as error:
        raise UsageError(_unreachable(dataset, urlsplit(url).netloc, _reason(error))) from error


def _why_unreachable(url: str, seconds: float) -> str | None:
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=seconds).close()
    except urllib.error.HTTPError:
        return None  # an answer, if a refusal: the download itself will tell
    except (OSError, ValueError) as error:
        return _reason(error)
    return None


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__)


def _unreachable(dataset: str, host: str, reason: str) -> str:
    return (
        f"{dataset!r} has to be downloaded and {host} can't be reached ({reason}); check the "
        "network, or name a folder that has the original files with --from FOLDER."
    )
