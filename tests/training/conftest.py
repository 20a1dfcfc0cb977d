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


@pytest.fixture
def compiled_once(compilations):
    """`compiled_once(program)`: the program, of which only the first call may compile anything."""

    def watched(program):
        called = []

        def call(*arguments):
            before = len(compilations)
            outputs = program(*arguments)
            assert not called or len(compilations) == before
            called.append(True)
            return outputs

        return call

    return watched
