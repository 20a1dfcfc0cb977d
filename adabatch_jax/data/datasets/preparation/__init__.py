"""From a dataset's original files to a folder of array_record, which training reads.

`prepare`, `prepare_own` and the `StageProgress` they report may be imported from here. It knows how
originals look and where they come from, and nothing of how they are read afterwards.
"""

from adabatch_jax.data.datasets.preparation.prepare_dataset import prepare as prepare
from adabatch_jax.data.datasets.preparation.prepare_dataset import prepare_own as prepare_own
from adabatch_jax.data.datasets.preparation.stage_progress import StageProgress as StageProgress
