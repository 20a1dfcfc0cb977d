"""What a path that a user gave as a dataset holds."""

import contextlib
from pathlib import Path

from adabatch_jax.config.value_texts import is_path
from adabatch_jax.data.datasets.known_datasets import KNOWN_DATASETS, is_known
from adabatch_jax.data.datasets.own.csv_files import open_csv
from adabatch_jax.data.datasets.own.image_folders import open_image_folder
from adabatch_jax.data.datasets.own.npz_files import open_npz
from adabatch_jax.data.datasets.own.records import OwnData
from adabatch_jax.data.datasets.own.tables import is_saved_by_datasets, open_parquet, open_saved
from adabatch_jax.data.datasets.prepared_folders import is_prepared
from adabatch_jax.system.errors import UsageError

_FILES = {".npz": open_npz, ".csv": open_csv, ".parquet": open_parquet}


def own_path(dataset: str, data_dir: str | None) -> Path | None:
    """The path that a dataset's text means; None where it is a name.

    A name that is prepared, or known to us or to tfds, wins over a file or folder called so.

    >>> own_path("./digits", None), own_path("digits", None)
    (PosixPath('digits'), None)
    """
    path = Path(dataset).expanduser()
    if is_path(dataset):
        return path
    if dataset in KNOWN_DATASETS or is_prepared(dataset, data_dir) or not path.exists():
        return None
    with contextlib.suppress(UsageError):  # without tfds nothing else has a name
        if is_known(dataset):
            return None
    return path


def open_own(dataset: str, path: Path) -> OwnData:
    """Opens a user's own file or folder; `dataset` is how the user named it.

    Raises:
      UsageError: there is none, or it holds no images with labels.
      StorageError: it can't be read.
    """
    of = dataset.rstrip("/") or "/"
    if path.is_dir():
        if is_saved_by_datasets(path):
            return open_saved(path, of)
        if any(path.glob("*.parquet")):
            return open_parquet(path, of)
        return open_image_folder(path, of)
    if not path.is_file():
        raise UsageError(f"dataset: there is no file or folder {of!r}.")
    opener = _FILES.get(path.suffix.lower())
    if opener is None:
        raise UsageError(
            f"dataset: {of!r} is neither a folder of images nor a file of the kinds "
            f"{', '.join(_FILES)}; a text, or tokens, are given as text:{of}."
        )
    return opener(path, of)
