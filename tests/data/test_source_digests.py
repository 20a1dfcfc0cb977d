"""What sources say of their contents, and when two of them hold the same."""

import numpy as np
import pytest

from adabatch_jax.data import array_digest
from adabatch_jax.data.sources import array_source, contents_digests, in_memory
from adabatch_jax.system.errors import UsageError

X = np.arange(10)


class Own:
    """A source of a user."""

    def __len__(self):
        return len(X)

    def read(self, indices):
        return {"x": X[indices]}


class WithDigest(Own):
    def __init__(self, returns):
        self.digest = lambda: returns


def is_same(one, other):
    return bool(set(contents_digests(one)) & set(contents_digests(other)))


def test_of_arrays_as_they_are_now():
    x = X.copy()
    source = array_source({"x": x})
    before = contents_digests(source)
    x[3] += 1
    assert contents_digests(source) != before


def test_a_users_own_source_may_tell_or_not():
    assert contents_digests(Own()) == contents_digests(WithDigest(None)) == []
    assert contents_digests(WithDigest("version 3")) == ["version 3"]
    assert is_same(in_memory(Own()), array_source({"x": X}))  # then the arrays are known


@pytest.mark.parametrize(("returns", "named"), [(b"3", "got b'3'"), (3, "got 3")])
def test_anything_but_a_text_is_refused(returns, named):
    with pytest.raises(UsageError, match=f"`digest\\(\\)` of WithDigest .*{named}"):
        contents_digests(WithDigest(returns))
    source = Own()
    source.digest = "version 3"
    with pytest.raises(UsageError, match="`digest` of Own must be a method"):
        contents_digests(source)


def test_streamed_or_in_memory_it_is_the_same():
    streamed, memory = WithDigest("v3"), in_memory(WithDigest("v3"))
    assert is_same(streamed, memory) and is_same(memory, array_source({"x": X}))
    assert is_same(memory, in_memory(WithDigest("v4")))  # others say so, the examples are the same
    assert not is_same(WithDigest("v4"), memory)


def test_a_sample_alone_vouches_for_nothing(monkeypatch):
    monkeypatch.setattr(array_digest, "_WHOLE_BYTES", 10)
    assert contents_digests(in_memory(WithDigest("v3"))) == ["v3"]
    assert len(contents_digests(in_memory(Own()))) == 1


def test_what_was_read_stays_as_it_was():
    with pytest.raises(ValueError, match="read-only"):
        in_memory(Own()).arrays["x"][0] = 1
