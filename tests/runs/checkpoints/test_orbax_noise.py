import sys
import warnings
from types import SimpleNamespace

import pytest

from adabatch_jax.runs.checkpoints import orbax_noise


@pytest.mark.parametrize(
    ("error", "heard"),
    [
        (RuntimeError("Event loop is closed"), False),
        (RuntimeError("another"), True),
        (ValueError("Event loop is closed"), True),
    ],
)
def test_only_a_closed_event_loop_is_kept_quiet(monkeypatch, error, heard):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    orbax_noise.silence()
    orbax_noise.silence()
    unraisable = SimpleNamespace(exc_value=error)
    sys.unraisablehook(unraisable)
    assert said == ([unraisable] if heard else [])


def test_only_a_write_that_had_not_begun_is_not_warned_of():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        orbax_noise.silence()
        ours = "coroutine 'fetch' was never awaited"
        for text in ("coroutine 'async_serialize.<locals>.write_fragment' was never awaited", ours):
            warnings.warn(text, RuntimeWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == [ours]
