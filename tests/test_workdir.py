"""The lock of a run's folder."""

import pytest

from adabatch_jax.errors import UsageError
from adabatch_jax.workdir import LOCK_NAME, locked


def test_a_folder_that_cannot_be_locked_is_one_sentence(tmp_path):
    """As in a folder that can only be read; root may write in any, so something is in the way."""
    (tmp_path / LOCK_NAME).mkdir()
    with pytest.raises(UsageError) as caught, locked(tmp_path, flag="--out"):
        pytest.fail("not locked")
    assert str(caught.value) == (
        f"--out: {str(tmp_path)!r} can't be used (Is a directory); give another folder."
    )
