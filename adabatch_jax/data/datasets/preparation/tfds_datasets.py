"""Any other dataset of tfds, through its own preparation."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adabatch_jax.data.datasets.labelled_images import labelled_images
from adabatch_jax.data.datasets.preparation.network import require_reachable
from adabatch_jax.data.datasets.preparation.stage_progress import Report, StageProgress
from adabatch_jax.data.datasets.tfds_import import import_tfds
from adabatch_jax.system.errors import UsageError


def write(
    name: str, folder: Path, manual_dir: Path | None, download_dir: Path, report: Report
) -> Path:
    """Downloads and prepares a dataset of tfds as array_record; returns its folder.

    Raises:
      UsageError: no image or label, or no network.
      Exception: whatever tfds and its builders raise.
    """
    tfds = import_tfds()
    builder = tfds.builder(name, data_dir=folder, file_format="array_record")
    labelled_images(name, builder.info)
    _require_files(name, builder, manual_dir)
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    with _reporting_bytes(folder, download_dir, report):
        builder.download_and_prepare(
            download_dir=download_dir, download_config=config, file_format="array_record"
        )
    return Path(builder.data_dir)


def _require_files(name: str, builder: Any, manual_dir: Path | None) -> None:
    """Fails early where tfds would retry for minutes, or stop after a long download."""
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        if manual_dir is None:
            raise UsageError(
                f"the original files of {name!r} have to be fetched by hand (see "
                f"https://www.tensorflow.org/datasets/catalog/{builder.name}); put them into a "
                "folder and name it with --from FOLDER."
            )
        return
    at_hand = {path.name for path in manual_dir.iterdir()} if manual_dir else set()
    url_infos = (builder.url_infos or {}).items()
    require_reachable(name, [url for url, info in url_infos if info.filename not in at_hand])


@contextlib.contextmanager
def _reporting_bytes(folder: Path, download_dir: Path, report: Report) -> Iterator[None]:
    """Reports the growth of both folders: tfds tells its progress to the terminal only."""
    done = threading.Event()
    start = _num_bytes(folder) + _num_bytes(download_dir)

    def watch() -> None:
        while not done.wait(1.0):
            num_bytes = _num_bytes(folder) + _num_bytes(download_dir) - start
            report(StageProgress("Downloading and preparing", num_bytes, None, "bytes"))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _num_bytes(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):  # renamed or removed in the meantime
                total += os.path.getsize(os.path.join(root, file))
    return total
