"""Which classes a dataset's features.json may name: tfds imports whatever stands there."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_OF_TFDS = re.compile(r"tensorflow_datasets\.core\.features(\.[A-Za-z_]\w*)+")
# As features are written since tfds 4.5, in the two spellings that protobuf reads, and before.
_NAMES_A_CLASS = ("pythonClassName", "python_class_name", "type")


def check_feature_classes(dataset: Path) -> None:
    """Checks that the dataset in a folder is described by tfds's own features alone.

    `tfds.builder_from_directory` imports the modules that features.json names, so a dataset from
    elsewhere could have any module on the path imported.

    Raises:
      ValueError: another class is named, or the file isn't JSON.
      OSError: the file can't be read.

    >>> import tempfile
    >>> dataset = Path(tempfile.mkdtemp())
    >>> _ = (dataset / "features.json").write_text('{"pythonClassName": "antigravity.Image"}')
    >>> check_feature_classes(dataset)
    Traceback (most recent call last):
    ValueError: features.json names the class 'antigravity.Image', which is not one of tfds's
    """
    try:
        content = json.loads((dataset / "features.json").read_bytes())
        names = list(_class_names(content))
    except RecursionError:
        raise ValueError("features.json is nested too deeply") from None
    for name in names:
        if not _OF_TFDS.fullmatch(name):
            raise ValueError(f"features.json names the class {name!r}, which is not one of tfds's")


def _class_names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _NAMES_A_CLASS and isinstance(inner, str):
                yield inner
            else:
                yield from _class_names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _class_names(inner)
    elif isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        # Some features keep their own description as a text of JSON.
        try:
            inner = json.loads(value)
        except ValueError:
            return
        yield from _class_names(inner)
