"""What the tests of training share beside their small problem."""

import jax
import pytest


@pytest.fixture
def compilations():
    """The compilations so far, in a list that grows."""
    events = []

    def listen(name, seconds, **kwargs):
        if name.endswith("backend_compile_duration"):
            events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)
