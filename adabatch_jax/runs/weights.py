"""The weights of a run or a file as named arrays, with what is known of them; written to a file."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adabatch_jax.runs.checkpoints.restoring import read_arrays
from adabatch_jax.runs.checkpoints.verifying import Found
from adabatch_jax.runs.chosen_checkpoint import config_of, from_checkpoint
from adabatch_jax.runs.weight_files import SUFFIXES, read_arrays_of_file, write_arrays
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.files import read_file, storage_errors, write_json
from adabatch_jax.system.object_store import is_url
from adabatch_jax.training.weights_digest import digest_of_named

_KEYS = {"network", "class_names", "normalization", "step"}


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters and model state, wherever they come from.

    Attributes:
      arrays: by name, "params.conv1.kernel" or "model_state.bn1.mean"; of a file that another
        program wrote, as they are called there.
      about: what export's JSON says of them; empty where nothing is known.
    """

    arrays: Mapping[str, np.ndarray]
    about: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """A hash of names, types, shapes and values, in hex."""
        return digest_of_named(self.arrays)


def is_of_network(name: str) -> bool:
    """Whether an array of this name is a parameter or a part of the model state.

    >>> is_of_network("params.fc.kernel"), is_of_network("opt_state.0.trace.fc.kernel")
    (True, False)
    """
    return name.startswith(("params.", "model_state."))


def weights_of_run(
    workdir: str | os.PathLike, best: bool = False, step: int | None = None
) -> Weights:
    """Reads the weights of a run, also of one of `fit`; raises as `from_checkpoint` does."""

    def read(found: Found) -> Weights:
        names = [
            name
            for name, array in found.arrays.items()
            if is_of_network(name)
            and not array.description.startswith("key<")  # which are no weights
        ]
        return Weights(read_arrays(found, names), about_checkpoint(found))

    return from_checkpoint(workdir, best, step, read)


def weights_of(source: str, setting: str) -> Weights:
    """Reads the weights of a run's folder, or of a file.

    Raises:
      UsageError: there is neither.
      StorageError: the file is damaged, or can't be read.
      RestoreError: the run has no sound checkpoint.
    """
    if is_url(source):
        return weights_of_run(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return weights_of_run(path)
    if path.suffix not in SUFFIXES or not path.is_file():
        raise UsageError(
            f"{setting}: {source!r} is neither a run's folder nor a file {' or '.join(SUFFIXES)}."
        )
    return Weights(read_arrays_of_file(path), _about_file(path))


def about_checkpoint(found: Found) -> dict[str, Any]:
    """What is known of a checkpoint's weights, as JSON values."""
    config, data = config_of(found), found.run["dataset"] or {}
    pixels = {"divide_by": 255 if data.get("image_type") == "uint8" else 1}
    normalization = {**pixels, "mean": data.get("mean"), "std": data.get("std")}
    return {
        "network": None if config is None else config.model,
        "compute_dtype": None if config is None else config.compute_dtype,
        "dataset": data.get("name"),
        "num_classes": data.get("num_classes"),
        "class_names": data.get("class_names"),
        "image_shape": data.get("image_shape"),
        "image_size": None if config is None else config.data.image_size,
        "normalization": normalization if data.get("mean") else None,
        "step": found.step,
        "samples": found.run["samples"],
        "score": found.run.get("score"),
    }


def export_weights(path: Path, weights: Weights, has_torch_names: bool) -> Path:
    """Writes weights to a file, and what is known of them to a JSON beside it, which is returned.

    Raises:
      UsageError: an array is of a type that the file can't hold, or the JSON's place is taken.
      StorageError: a file can't be written.
    """
    beside = path.with_suffix(".json")
    if beside.exists() and not _about_file(path):
        raise UsageError(
            f"--to: {str(beside)!r}, where what is known of the weights is written, is there and "
            "something else; choose another name."
        )
    write_arrays(path, weights.arrays, "pt" if has_torch_names else "flax")
    names = "torch" if has_torch_names else "adabatch_jax"
    write_json(beside, {**weights.about, "names": names, "weights_digest": weights.digest})
    return beside


def _about_file(path: Path) -> dict[str, Any]:
    """What the JSON beside a file says; nothing where it isn't one of ours."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}
    with storage_errors(beside, action="read"):
        content = read_file(beside)
    try:
        about = json.loads(content)
        return about if about.keys() >= _KEYS else {}
    except (ValueError, AttributeError, RecursionError):
        return {}
