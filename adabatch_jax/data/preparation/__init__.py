"""Preparing datasets: from original files to array_record, which training reads."""

from adabatch_jax.data.preparation.preparing import prepare as prepare
from adabatch_jax.data.preparation.progress import Progress as Progress
from adabatch_jax.data.prepared import is_prepared as is_prepared
