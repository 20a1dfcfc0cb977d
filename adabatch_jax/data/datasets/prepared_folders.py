"""Where prepared datasets lie, and which of them are there; no third-party import."""

import json
import os
import re
from pathlib import Path

from adabatch_jax.system.command_lines import command_text
from adabatch_jax.system.files import read_file

_NAME = re.compile(r"(?P<name>[a-z0-9_]+)(/(?P<config>\w[\w.+-]*))?(:(?P<version>\d+\.\d+\.\d+))?")


def default_data_dir() -> Path:
    """Returns the folder that prepared datasets are kept in unless another is given.

    `$ADABATCH_DATA_DIR` where that is set, else `adabatch_jax/datasets` in the user's cache
    folder (`$XDG_CACHE_HOME`, else `~/.cache`).
    """
    if chosen := os.environ.get("ADABATCH_DATA_DIR"):
        return Path(chosen).expanduser()
    return user_folder() / "datasets"


def user_folder() -> Path:
    """`adabatch_jax` in the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "adabatch_jax"


def resolve_data_dir(data_dir: str | os.PathLike | None) -> Path:
    """Returns `data_dir` as an absolute path, or the default where it is None."""
    folder = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    return folder.absolute()


def parse_name(name: str) -> tuple[str, str | None, str | None] | None:
    """Splits `dataset[/config][:version]` into its parts; None for what isn't of that form.

    >>> parse_name("cifar10_corrupted/fog_1:1.0.0")
    ('cifar10_corrupted', 'fog_1', '1.0.0')
    >>> parse_name("digits")
    ('digits', None, None)
    """
    match = _NAME.fullmatch(name)
    return match and (match["name"], match["config"], match["version"])


def prepared_path(name: str, data_dir: str | os.PathLike | None = None) -> Path | None:
    """Returns the folder of the prepared dataset's newest version, or None where there is none.

    It looks at the files only, whatever code or version of tfds prepared them.
    """
    parts = parse_name(name)
    if parts is None:
        return None
    dataset, config, version = parts
    folder = resolve_data_dir(data_dir) / dataset
    config = config or _default_config(folder)
    versions = _versions(folder / config if config else folder)
    if version:
        return versions.get(_version_key(version))
    return versions[max(versions)] if versions else None


def is_prepared(name: str, data_dir: str | os.PathLike | None = None) -> bool:
    """Whether the dataset is ready to be read: a few file look-ups, nothing is loaded.

    >>> is_prepared("mnist", data_dir="/nonexistent")
    False
    """
    return prepared_path(name, data_dir) is not None


def prepared_names(data_dir: str | os.PathLike | None = None) -> list[str]:
    """Returns the names of the datasets that are prepared, each in its newest version, sorted.

    >>> prepared_names("/nonexistent")
    []
    """
    root = resolve_data_dir(data_dir)
    ends = [*root.glob("*/*/features.json"), *root.glob("*/*/*/features.json")]
    names = {"/".join(end.relative_to(root).parts[:-2]) for end in ends}
    return sorted(name for name in names if is_prepared(name, root))


def is_complete(path: Path) -> bool:
    """Whether `path` holds a dataset; tfds writes these two files last."""
    return (path / "dataset_info.json").is_file() and (path / "features.json").is_file()


def prepare_command(
    name: str, data_dir: str | os.PathLike | None, *, overwrite: bool = False
) -> str:
    """Returns the command that prepares `name`, for error messages.

    >>> prepare_command("mnist", None)
    '`python -m adabatch_jax.prepare mnist`'
    """
    words = ["python", "-m", "adabatch_jax.prepare", name]
    if data_dir is not None and resolve_data_dir(data_dir) != resolve_data_dir(None):
        words += ["--data-dir", str(data_dir)]
    if overwrite:
        words.append("--overwrite")
    return f"`{command_text(words)}`"


def _version_key(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _versions(folder: Path) -> dict[tuple[int, ...], Path]:
    if not folder.is_dir():
        return {}
    return {
        _version_key(path.name): path
        for path in folder.iterdir()
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and is_complete(path)
    }


def _default_config(folder: Path) -> str | None:
    """The config tfds noted as the default when it prepared any config of this dataset."""
    try:
        content = json.loads(read_file(folder / ".config" / "metadata.json"))
        config = content["default_config_name"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    # Whatever stands there must not lead out of the folder.
    is_name = isinstance(config, str) and parse_name(f"{folder.name}/{config}") is not None
    return config if is_name else None
