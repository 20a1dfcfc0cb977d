"""A run that was trained, taken from its folder to be used."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from adabatch_jax.config.settings import TrainConfig
from adabatch_jax.data.datasets.known_datasets import DatasetSpec, TextSpec
from adabatch_jax.data.tokens.tokenizers import AnyTokenizer, Bytes, JsonTokenizer
from adabatch_jax.runs.checkpoints.checkpoint_files import quieten_orbax
from adabatch_jax.runs.checkpoints.restoring import restore
from adabatch_jax.runs.checkpoints.verifying import Found
from adabatch_jax.runs.chosen_checkpoint import config_of, from_checkpoint
from adabatch_jax.runs.configured_model import configured_model
from adabatch_jax.runs.configured_optimizer import make_optimizer
from adabatch_jax.runs.folder.folder_reading import TOKENIZER
from adabatch_jax.schedules.learning_rate_at_step import resolve
from adabatch_jax.schedules.learning_rate_schedule import rate_schedule
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.files import read_file, storage_errors
from adabatch_jax.system.object_store import is_url
from adabatch_jax.training.train_state import TrainState, on_devices


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A run at one of its checkpoints.

    Attributes:
      path: its folder; a text where that is in an object store.
      step: the finished updates.
      state: the whole `TrainState`, on the default device.
      plan: the batch plan.
      config: the settings; None of a run of `fit`.
      model: the nnx module with these weights; None where there is none.
      class_names: the name of each class, in the order of the probabilities; None where nobody
        told.
      data: what is known of the dataset: image_shape, mean, std; None of a run of `fit`.
      forward: `(params, model_state, images) -> probabilities`, which `predict` calls; None without
        a module.
      tokenizer: of a text, what made it tokens, with `encode_text` and `decode`; None where that
        isn't known.

    >>> LoadedRun(Path("runs/mine"), 351, state=None, plan=None)
    LoadedRun(path=PosixPath('runs/mine'), step=351)
    """

    path: Path | str
    step: int
    state: TrainState = dataclasses.field(repr=False)
    plan: BatchPlan = dataclasses.field(repr=False)
    config: TrainConfig | None = dataclasses.field(default=None, repr=False)
    model: nnx.Module | None = dataclasses.field(default=None, repr=False)
    data: DatasetSpec | None = dataclasses.field(default=None, repr=False)
    forward: Callable[..., jax.Array] | None = dataclasses.field(default=None, repr=False)
    tokenizer: AnyTokenizer | None = dataclasses.field(default=None, repr=False)

    @property
    def params(self) -> Any:
        """The parameters, a plain tree of arrays."""
        return self.state.params

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The name of each class."""
        return None if self.data is None else self.data.class_names

    def predict(self, images: Any) -> np.ndarray:
        """Returns the probability of each class, computed in batches as evaluations are.

        Args:
          images: (N, height, width, channels) as the run was trained on: uint8, or floating-point
            with pixels in [0, 1]. They are normalized here, with the run's own mean and deviation.

        Returns:
          float32 (N, classes), rows that add up to 1.

        Raises a UsageError where the images are of another size or type, or the run has no module.
        """
        if self.data is not None and self.data.text is not None:
            raise UsageError(
                f"the run in {self.path} is of a text, which `python -m adabatch_jax.sample` goes on "
                "with; images belong to a run of images."
            )
        if self.forward is None:
            raise UsageError(
                f"the run in {self.path} has no module to predict with; call your own function with "
                "`run.params` and `run.state.model_state`."
            )
        images = self._checked(np.asarray(images))
        largest, parts = self.config.eval_batch_size, []
        for start in range(0, len(images), largest):
            rows = images[start : start + largest]
            # Few shapes, so that few programs are compiled.
            num_rows = min(largest, 1 << (len(rows) - 1).bit_length())
            padded = np.concatenate(
                [rows, np.zeros_like(rows, shape=(num_rows - len(rows), *rows.shape[1:]))]
            )
            found = self.forward(self.params, self.state.model_state, padded)
            parts.append(np.asarray(found)[: len(rows)])
        return np.concatenate([np.zeros((0, self.data.num_classes), np.float32), *parts])

    def _checked(self, images: np.ndarray) -> np.ndarray:
        """Images of the run's kind; a UsageError says what they are instead."""
        shape = self.data.image_shape
        if images.ndim != 4 or images.shape[1:] != shape:
            wanted = ", ".join(map(str, shape))
            raise UsageError(f"images must be of shape (N, {wanted}), got {images.shape}.")
        if self.data.image_type != "uint8":
            if not np.issubdtype(images.dtype, np.floating):
                raise UsageError(
                    f"the run was trained on images of type {self.data.image_type}, got "
                    f"{images.dtype}."
                )
            return images.astype(np.float32)
        if images.dtype == np.uint8:
            return images
        if not np.issubdtype(images.dtype, np.floating):
            raise UsageError(f"images must be uint8 or floating-point, got {images.dtype}.")
        if images.size and not (images.min() >= 0 and images.max() <= 1):
            raise UsageError(
                f"floating-point images must have pixels in 0..1, neither normalized nor up to 255, "
                f"got {images.min():g} to {images.max():g}."
            )
        return images.astype(np.float32)


def load_run(
    workdir: str | os.PathLike,
    best: bool = False,
    step: int | None = None,
    like: TrainState | None = None,
) -> LoadedRun:
    """Loads a run from its folder: its weights, its network, and its normalization.

    Files and arrays of the checkpoint are compared with their digests, as by a run that goes on.
    Nothing in the folder is changed, and it may be trained in meanwhile. A network of a user's own
    is made by calling the function that the settings name: load such runs only if you trust them.

    Args:
      workdir: the run's folder, or gs://bucket/folder.
      best: load the checkpoint with the best score (`--keep-best`) instead of the newest.
      step: load that of this update.
      like: of a run of `fit`: a state as it was begun with, made in the same way.

    Raises:
      UsageError: there is no run, or no such checkpoint; or a run of `fit` without `like`.
      RestoreError: no checkpoint is sound, or it is of another model or optimizer.
      StorageError: it can't be read.

    >>> import tempfile, jax.numpy as jnp, optax, adabatch_jax as ab
    >>> def loss_fn(params, model_state, batch, rng):
    ...     error = (params["w"] * batch["x"] - 1) ** 2
    ...     return ab.weighted_mean(error, batch["weight"]), (model_state, {})
    >>> tx, folder = optax.sgd(0.5), tempfile.mkdtemp()
    >>> state = ab.TrainState.create(params={"w": jnp.zeros(())}, tx=tx)
    >>> source = ab.array_source({"x": np.ones(8, np.float32)})
    >>> _ = ab.fit(loss_fn, tx, state, source, ab.make_plan("4", 8, "5ep"), workdir=folder)
    >>> begun = ab.TrainState.create(params={"w": jnp.zeros(())}, tx=tx)
    >>> run = load_run(folder, like=begun)
    >>> run.step, float(run.params["w"])
    (10, 1.0)
    """
    if like is not None and not isinstance(like, TrainState):
        raise UsageError(f"`like` must be a TrainState, got one of type {type(like).__name__}.")
    quieten_orbax()
    place = str(workdir) if is_url(workdir) else Path(workdir)

    def load(found: Found) -> LoadedRun:
        plan, path = BatchPlan.from_dict(found.run["plan"]), place
        if like is not None:
            return LoadedRun(path, found.step, restore(found, on_devices(like)), plan)
        config = config_of(found)
        if config is None or found.run["dataset"] is None:
            raise UsageError(
                f"the run in {path} is one of `fit`; give `like=`, a state as it was begun with."
            )
        return _of_command(path, found, plan, config)

    return from_checkpoint(workdir, best, step, load)


def _of_command(path: Path | str, found: Found, plan: BatchPlan, config: TrainConfig) -> LoadedRun:
    data = DatasetSpec.from_dict(found.run["dataset"])
    network = configured_model(config, data)
    rate = resolve(plan, config.learning_rate, config.coupling, config.reference_batch_size)
    tx = make_optimizer(config, rate_schedule(rate), plan)
    like = TrainState.create(params=network.params, tx=tx, model_state=network.model_state)
    state = restore(found, like)
    probabilities = network.probabilities and jax.jit(network.probabilities)
    if network.module is not None:
        nnx.update(network.module, state.params, state.model_state)
    return LoadedRun(
        path, found.step, state, plan, config, network.module, data, probabilities,
        _kept_tokenizer(path, found, data.text),
    )  # fmt: skip


def _kept_tokenizer(path: Path | str, found: Found, text: TextSpec | None) -> AnyTokenizer | None:
    """The tokenizer as it was when the run began, wherever its file is now."""
    if text is None or text.tokenizer is None:
        return None
    if text.tokenizer_digest is None:
        return Bytes()
    copy = found.path.parents[1] / TOKENIZER
    if not copy.is_file():
        return None
    with storage_errors(copy, action="read"):
        tokenizer = JsonTokenizer(f"{path}/{TOKENIZER}", read_file(copy))
    return tokenizer if tokenizer.digest == text.tokenizer_digest else None
