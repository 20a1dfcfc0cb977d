"""The one place that imports tensorflow_datasets, which reading and preparing need."""

from types import ModuleType

from adabatch_jax.system.errors import UsageError


def import_tfds() -> ModuleType:
    """Returns `tensorflow_datasets`, without TensorFlow; a UsageError where it isn't installed."""
    try:
        # tensorflow-datasets 4.9.10 imports importlib_resources when a builder is made and
        # declares it for old Pythons only; asked for here, its absence shows up at one place.
        import importlib_resources  # noqa: F401
        import tensorflow_datasets
    except ImportError as error:
        raise UsageError(
            f"this dataset needs the package {error.name!r}, which isn't installed; "
            'install it with `pip install "adabatch_jax[train]"`.'
        ) from error
    return tensorflow_datasets
