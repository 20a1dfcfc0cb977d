import sys
from types import SimpleNamespace

import pytest

from adabatch_jax.training import orbax_noise


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
