"""What can go wrong through no fault of the program: one sentence each, and an exit code.

Every command ends with the `exit_code` of the error that stopped it; the library raises the
same classes, so `except ValueError` catches a wrong argument.
"""

import difflib
import errno
import inspect
import os
import re
from collections.abc import Iterable
from typing import Any


class AdabatchError(Exception):
    """Base of the errors that are reported as one sentence, without a traceback.

    Attributes:
      exit_code: what a program that it ends should exit with.

    >>> from adabatch_jax import make_plan
    >>> try:
    ...     make_plan("128", num_examples=100, duration="2ep")
    ... except AdabatchError as error:
    ...     print(type(error).__name__, error.exit_code)
    UsageError 2
    """

    exit_code = 1


class ExampleError(AdabatchError):
    """An example of a dataset can't be read: an exception, or data that is damaged.

    >>> from adabatch_jax import batches, make_plan
    >>> class Ended:
    ...     def __len__(self):
    ...         return 4
    ...     def read(self, indices):
    ...         raise StopIteration
    >>> try:
    ...     next(batches(Ended(), make_plan(2, num_examples=4, duration="1ep")))
    ... except ExampleError as error:
    ...     print(str(error).partition(" when")[0])
    Ended.read raised StopIteration
    """


class UsageError(AdabatchError, ValueError):
    """An argument, a configuration or an environment that can't work; a `ValueError` too.

    >>> from adabatch_jax import make_plan
    >>> make_plan("128 x2 every 20", num_examples=1000, duration="2ep")
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: can't read ... the duration '20' has no unit; ...
    """

    exit_code = 2


class DivergedError(AdabatchError):
    """The loss or a gradient is not finite any more.

    >>> import numpy as np, optax
    >>> from adabatch_jax import TrainState, array_source, fit, make_plan
    >>> def loss_fn(params, model_state, batch, rng):
    ...     return params["w"] * np.nan, (model_state, {})
    >>> tx, source = optax.sgd(0.1), array_source({"x": np.ones(4)})
    >>> state = TrainState.create(params={"w": 1.0}, tx=tx)
    >>> try:
    ...     fit(loss_fn, tx, state, source, make_plan(2, num_examples=4, duration="1ep"))
    ... except DivergedError as error:
    ...     print(error)
    the loss is nan after update 1 (sample 2, phase 1 of 1, batch size 2); ...
    """

    exit_code = 3


class RestoreError(AdabatchError):
    """A run directory can't be continued with what was asked for.

    >>> import pathlib, tempfile, numpy as np, optax
    >>> from adabatch_jax import TrainState, array_source, fit, make_plan
    >>> def loss_fn(params, model_state, batch, rng):
    ...     return params["w"], (model_state, {})
    >>> tx, source = optax.sgd(0.1), array_source({"x": np.ones(4)})
    >>> state = TrainState.create(params={"w": 1.0}, tx=tx)
    >>> plan = make_plan(2, num_examples=4, duration="1ep")
    >>> workdir = tempfile.TemporaryDirectory()
    >>> _ = pathlib.Path(workdir.name, "summary.json").write_text("{}")  # of a run that ended
    >>> try:
    ...     fit(loss_fn, tx, state, source, plan, workdir=workdir.name)
    ... except RestoreError as error:
    ...     print(str(error).rpartition("checkpoints ")[2])
    holds none now; put them back under their own names, or begin anew in another workdir.
    """

    exit_code = 4


class StorageError(AdabatchError):
    """A file could not be written or read.

    >>> import numpy as np, optax
    >>> from adabatch_jax import TrainState, array_source, fit, make_plan
    >>> def loss_fn(params, model_state, batch, rng):
    ...     return params["w"], (model_state, {})
    >>> tx, source = optax.sgd(0.1), array_source({"x": np.ones(4)})
    >>> state = TrainState.create(params={"w": 1.0}, tx=tx)
    >>> plan = make_plan(2, num_examples=4, duration="1ep")
    >>> try:
    ...     fit(loss_fn, tx, state, source, plan, workdir=os.devnull)
    ... except StorageError as error:
    ...     print(error)
    cannot write /dev/null: File exists.
    """

    exit_code = 5


class NotAsWritten(StorageError):
    """A file could be read, and isn't what this program wrote."""


def check_type(name: str, value: Any, kind: type, advice: str = "") -> None:
    """Raises a UsageError unless an argument of that name is of a type.

    >>> check_type("plan", "8", int)
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: `plan` must be of type int, got one of type str.
    """
    if isinstance(value, kind):
        return
    wanted, given = kind.__name__, type(value).__name__
    if wanted == given:  # another package's
        wanted, given = (f"{t.__module__}.{t.__qualname__}" for t in (kind, type(value)))
    advice = f"; {advice}" if advice else ""
    raise UsageError(f"`{name}` must be of type {wanted}, got one of type {given}{advice}.")


def check_call(name: str, function: Any, *arguments: str) -> None:
    """Raises a UsageError unless an argument of that name can be called with so many arguments.

    >>> check_call("on_step", lambda finished: None, "finished_steps", "state")
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: `on_step` is called as on_step(finished_steps, state), ...
    """
    if not callable(function):
        raise UsageError(f"`{name}` must be a function, got one of type {type(function).__name__}.")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin that doesn't tell
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise UsageError(
            f"`{name}` is called as {name}({', '.join(arguments)}), but: {error}."
        ) from None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the nearest choice, or `""` where none is near.

    >>> did_you_mean("fashon_mnist", ["digits", "fashion_mnist"])
    "; did you mean 'fashion_mnist'?"
    >>> did_you_mean("resnet20", ["resnet50", "resnet20_cifar"])
    "; did you mean 'resnet20_cifar'?"
    """
    choices = list(choices)
    near = [choice for choice in choices if len(name) > 2 and choice.startswith(f"{name}_")]
    near = near or difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


# What JAX's devices and Python's threads say, by errors without a class of their own.
_OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|can't start new thread")

EXTRA_PACKAGES = {
    "cv2",
    "flax",
    "matplotlib",
    "orbax",
    "rich",
    "sklearn",
    "tensorboardX",
    "tensorflow_datasets",
    "tensorstore",
}
"""What the command lines import beside the library's own dependencies."""


def explain_missing(error: ModuleNotFoundError) -> UsageError | None:
    """The sentence for a package of the extra that is not installed; None for any other module.

    >>> str(explain_missing(ModuleNotFoundError(name="flax.nnx")))
    "this needs the package flax, which isn't installed: pip install 'adabatch_jax[train]', or ..."
    """
    package = (error.name or "").partition(".")[0]
    if package not in EXTRA_PACKAGES:
        return None
    return UsageError(
        f"this needs the package {package}, which isn't installed: "
        "pip install 'adabatch_jax[train]', or -r requirements.txt in a checkout."
    )


def explained_error(error: Exception) -> AdabatchError | None:
    """The sentence for what a user or the machine did; None for a defect of ours.

    >>> str(explained_error(PermissionError(13, "Permission denied", "config.json")))
    'config.json: Permission denied.'
    >>> str(explained_error(MemoryError()))
    'memory ran out (MemoryError); ...'
    """
    if isinstance(error, AdabatchError):
        return error
    if isinstance(error, ModuleNotFoundError):
        return explain_missing(error)
    ran_out = isinstance(error, MemoryError) or _OUT_OF_MEMORY.match(str(error))
    if ran_out or isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return AdabatchError(
            f"memory ran out ({one_line(error)}); give the program more, or less to hold, as with "
            "--microbatch-size or --input streaming; what was saved is untouched."
        )
    # A file that isn't there, or is, where nobody expected it, is a defect of ours.
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.EEXIST):
        where = "" if error.filename is None else f"{os.fspath(error.filename)}: "
        return StorageError(f"{where}{os.strerror(error.errno)}.")
    return None


def one_line(error: BaseException) -> str:
    """Returns the first line of an error's text, without a final full stop.

    >>> one_line(ValueError("no such thing.\\nHere is a long story."))
    'no such thing'
    """
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".:;,") if lines else type(error).__name__
