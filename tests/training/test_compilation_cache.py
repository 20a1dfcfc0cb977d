"""The cache of compiled programs: whose choice counts."""

import jax
import pytest

from adabatch_jax.training import compilation_cache


@pytest.fixture
def no_cache():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_users_folder_stays(tmp_path):
    before = jax.config.jax_compilation_cache_dir  # the tests have one of their own
    compilation_cache.enable(tmp_path / "other")
    assert before is not None and jax.config.jax_compilation_cache_dir == before
    assert not (tmp_path / "other").exists()


def test_a_folder_of_the_users_cache(tmp_path, monkeypatch, no_cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation_cache.enable()
    folder = tmp_path / "adabatch_jax" / "compiled"
    assert jax.config.jax_compilation_cache_dir == str(compilation_cache.default_folder())
    assert compilation_cache.default_folder().parent == folder and folder.is_dir()


def test_without_a_place_nothing_is_kept(tmp_path, no_cache):
    (tmp_path / "file").touch()
    compilation_cache.enable(tmp_path / "file" / "folder")
    assert jax.config.jax_compilation_cache_dir is None
