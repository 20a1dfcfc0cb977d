"""Preparing datasets: from original files to array_record, which training reads."""

from adabatch_jax.data.datasets.preparation.prepare_dataset import prepare as prepare
from adabatch_jax.data.datasets.preparation.reports import Progress as Progress
from adabatch_jax.data.datasets.prepared_folders import is_prepared as is_prepared
