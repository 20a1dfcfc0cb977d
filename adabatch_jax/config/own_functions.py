"""Functions of a user's own that a setting names: `module:function`, or `FILE.py:function`."""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adabatch_jax.config.value_texts import is_text
from adabatch_jax.system.errors import UsageError, did_you_mean, one_line

_REFERENCE = re.compile(
    r"(?P<file>[^\0]+\.py)?(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)?:(?P<name>[A-Za-z_]\w*)"
)


def is_reference(text: str) -> bool:
    """Whether a text names a function; nothing is looked up.

    >>> is_reference("mydata:load"), is_reference("own/data.py:load"), is_reference("mnist:3.0.1")
    (True, True, False)
    >>> is_reference("text:corpus")  # a text, see `value_texts.is_text`
    False
    """
    match = None if is_text(text) else _REFERENCE.fullmatch(text)
    return match is not None and (match["file"] is None) != (match["module"] is None)


def reference_to(function: Callable) -> str:
    """The text that names a function, so that settings which hold it stay texts.

    Raises:
      UsageError: the function has no name of its own in a module or a file.

    >>> from adabatch_jax.config import own_functions
    >>> reference_to(own_functions.is_reference)
    'adabatch_jax.config.own_functions:is_reference'
    """
    name, module = getattr(function, "__qualname__", ""), getattr(function, "__module__", None)
    if not name.isidentifier() or module is None:
        raise UsageError(
            f"{function!r} can't be named in a configuration; define it with `def` at the top of "
            "a file."
        )
    space = getattr(inspect.unwrap(function), "__globals__", {})
    # Modules that can't be imported again by their names: a configuration's, or the program's.
    is_importable = module != "__main__" and module in sys.modules
    return f"{module if is_importable else space.get('__file__', module)}:{name}"


def load_function(text: str, setting: str) -> Callable:
    """Imports what a text names, modules from the current folder too; runs no more than that.

    Args:
      text: for which `is_reference` is true.
      setting: what an error calls it, such as "dataset".

    Raises:
      UsageError: there is no such module, file or function, or importing it fails.
    """
    match = _REFERENCE.fullmatch(text)
    where, name = match["file"] or match["module"], match["name"]
    space = _run_file(where, setting) if match["file"] else _imported(where, setting)
    if name not in space:
        names = [key for key, value in space.items() if callable(value) and key[0] != "_"]
        raise UsageError(f"{setting}: {where!r} has no {name!r}{did_you_mean(name, names) or '.'}")
    if not callable(space[name]):
        raise UsageError(f"{setting}: {name!r} of {where!r} is no function.")
    return space[name]


def run_python_file(file: Path, setting: str, module: str) -> dict[str, Any]:
    """Runs a Python file that a user named, and returns its names.

    What it imports by the name of its own package is found. Raises a UsageError where it fails.
    """
    space: dict[str, Any] = {"__name__": module, "__file__": str(file)}
    # Arms of an experiment import their common base by its package's name.
    root = file.resolve().parent
    while (root / "__init__.py").exists():
        root = root.parent
    sys.path.insert(0, str(root))
    try:
        exec(compile(file.read_bytes(), str(file), "exec"), space)
    except UsageError:
        raise
    except SystemExit:
        raise UsageError(
            f"{setting}: {str(file)!r} ends the program; it may only define things."
        ) from None
    except Exception as error:
        raise UsageError(
            f"{setting}: {str(file)!r} fails with {type(error).__name__}: {error}."
        ) from error
    finally:
        sys.path.remove(str(root))
    return space


def _run_file(path: str, setting: str) -> dict[str, Any]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"{setting}: there is no file {path!r}.")
    return run_python_file(file, setting, f"_own_{file.stem}")


def _imported(name: str, setting: str) -> dict[str, Any]:
    here = os.getcwd()
    if here not in sys.path:  # as with `python -m`; what it imports later is found too
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        return vars(importlib.import_module(name))
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(
                f"{setting}: there is no module {name!r}, neither in {here} nor installed."
            ) from None
        raise UsageError(f"{setting}: importing {name!r} fails ({one_line(error)}).") from error
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{setting}: importing {name!r} fails with {type(error).__name__} ({one_line(error)})."
        ) from error
