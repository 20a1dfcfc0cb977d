"""Getting a dataset ready to be read: found or fetched, checked, written, moved into place."""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from adabatch_jax.data.datasets.known_datasets import is_known, open_builder, require_known
from adabatch_jax.data.datasets.preparation.stage_progress import (
    Report,
    discarded_output,
    with_current_output,
)
from adabatch_jax.data.datasets.prepared_folders import parse_name, prepared_path, resolve_data_dir
from adabatch_jax.system.errors import AdabatchError, StorageError, UsageError, one_line


def prepare(
    name: str,
    data_dir: str | os.PathLike | None = None,
    from_folder: str | os.PathLike | None = None,
    progress: Report | None = None,
    *,
    overwrite: bool = False,
    checksums: Mapping[str, str] | None = None,
) -> Path:
    """Prepares a dataset as array_record, unless that has been done, and returns its folder.

    `digits`, `mnist`, `fashion_mnist`, `cifar10` and `cifar100` are written without TensorFlow;
    any other dataset goes through tfds's own preparation, which may need it. The dataset appears
    when it is complete: an interruption leaves nothing that looks prepared, and two processes
    may prepare the same dataset at once. While it works, what is printed to stdout and stderr
    in this process is swallowed, as tfds can't be silenced otherwise.

    Args:
      name: a name such as `"cifar10"`, or `"dataset/config:version"` as tfds writes it.
      data_dir: where to put it; None means `default_data_dir()`.
      from_folder: a folder with the original files, under their original names; None takes
        them from an installed system package or from the network.
      progress: is called with a `StageProgress` now and then.
      overwrite: prepare anew, replacing what is there once the new one is complete.
      checksums: file name -> sha256 that the original files must have; None means those
        registered in tfds. For other files in the same layout, such as a test's.

    Raises:
      UsageError: an unknown name, files that aren't there, no network, a missing package.
      StorageError: files that aren't the originals, or can't be read or written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     prepare("digits", data_dir=folder).relative_to(folder).parts
    ('digits', '1.0.0')
    """
    require_known(name)
    if from_folder is not None and not Path(from_folder).expanduser().is_dir():
        raise UsageError(f"the folder {from_folder} with the original files isn't there.")
    root = resolve_data_dir(data_dir)
    manual_dir = None if from_folder is None else Path(from_folder).expanduser().absolute()

    def write(staging: Path, report: Report) -> Path:
        from adabatch_jax.data.datasets.preparation import (
            own_datasets,
            record_writing,
            tfds_datasets,
        )

        dataset, config, version = parse_name(name)
        download_dir = root / "downloads"
        if own_datasets.is_own(dataset) and config is None:
            base = own_datasets.builder_class(dataset, version)
            splits = own_datasets.read_splits(dataset, manual_dir, download_dir, checksums, report)
            return record_writing.write(base, splits, staging, report)
        return tfds_datasets.write(name, staging, manual_dir, download_dir, report)

    return _prepared(name, root, progress, overwrite, write)


def prepare_own(
    dataset: str,
    name: str,
    data_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
    progress: Report | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Prepares a user's own images as array_record under a name, and returns its folder.

    The images' own bytes are kept where they can be. Without a split to evaluate on, a fifth is
    one, see `shares`.

    Args:
      dataset: a path, as `--dataset` takes it.
      name: what the dataset is called from now on: small letters, digits and "_".
      data_dir, progress, overwrite: as in `prepare`.
      image_size: height and width to resize and crop the images to; None keeps them as they are.

    Raises:
      UsageError: another dataset has this name, or what is prepared under it is of other images;
        or something in the data can't work.
      StorageError: files can't be read or written.
    """
    path = Path(dataset).expanduser()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UsageError(f"--name: {name!r} must be of small letters, digits and '_'.")
    if is_known(name):
        raise UsageError(f"--name: {name!r} is another dataset's name; choose one of your own.")

    from adabatch_jax.data.datasets.preparation import own_images, record_writing

    root = resolve_data_dir(data_dir)
    if not overwrite and prepared_path(name, root) is not None:
        base, _ = own_images.described(dataset, path, name, image_size)
        metadata = open_builder(name, root).info.metadata or {}
        if metadata.get("own_images") != base.source_digest:
            raise UsageError(
                f"--name: {name!r} is there already, and not of the same images as {dataset}; "
                "choose another name, or add --overwrite to replace it."
            )

    def write(staging: Path, report: Report) -> Path:
        base, splits = own_images.described(dataset, path, name, image_size)
        return record_writing.write(base, splits, staging, report)

    return _prepared(name, root, progress, overwrite, write)


def _prepared(
    name: str,
    root: Path,
    progress: Report | None,
    overwrite: bool,
    write: Callable[[Path, Report], Path],
) -> Path:
    """The folder of a prepared dataset, written by `write` where there is none."""
    path = prepared_path(name, root)
    if path is not None and not overwrite:
        return path
    report = with_current_output(progress or (lambda _: None))
    with _one_sentence(name, root), discarded_output():
        _write(name, root, overwrite, lambda staging: write(staging, report))
    path = prepared_path(name, root)
    if path is None:
        raise StorageError(f"dataset {name!r} was prepared in {root}, but isn't there any more.")
    return path


def _write(name: str, root: Path, overwrite: bool, write: Callable[[Path], Path]) -> None:
    # Here, not above: with tfds they take half a second, which a prepared dataset doesn't cost.
    from adabatch_jax.data.datasets.file_digests import file_digests
    from adabatch_jax.data.datasets.preparation import record_writing
    from adabatch_jax.data.datasets.preparation.staging import publish, staging_folder

    dataset, *_ = parse_name(name)
    with staging_folder(root) as staging, record_writing.repeatable_records():
        staged = write(staging)
        file_digests(sorted(staged.glob("*.array_record*")), keep=True)
        publish(staged, root / staged.relative_to(staging), staging, overwrite)
        default_config = staging / dataset / ".config"
        if default_config.is_dir():
            shutil.copytree(default_config, root / dataset / ".config", dirs_exist_ok=True)


@contextlib.contextmanager
def _one_sentence(name: str, root: Path) -> Iterator[None]:
    """Turns what tfds, its builders, the disk and unpacking may raise into one sentence."""
    try:
        yield
    except AdabatchError:
        raise
    except ImportError as error:
        if "tensorflow" in str(error).lower():
            raise UsageError(
                f"preparing {name!r} needs TensorFlow (training doesn't); install it with "
                '`pip install "adabatch_jax[prepare]"` and run the same command again.'
            ) from error
        raise UsageError(f"preparing {name!r} needs a package: {one_line(error)}.") from error
    except PermissionError as error:
        raise StorageError(
            f"dataset {name!r} can't be prepared in {root}: {error.filename}: {error.strerror}; "
            "name a folder of yours with $ADABATCH_DATA_DIR, or --data-dir of prepare."
        ) from error
    except Exception as error:
        raise StorageError(
            f"dataset {name!r} can't be prepared in {root}: {one_line(error)}."
        ) from error
