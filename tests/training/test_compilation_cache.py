"""The cache of compiled programs: whose choice counts, and that only what was put is used."""

import contextlib
import errno
import random
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest
from jax._src import compilation_cache as of_jax
from jax._src.lru_cache import LRUCache

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


@pytest.fixture
def cache(tmp_path):
    """A cache as JAX makes it of a folder, once entries are verified."""
    compilation_cache.enable()
    return of_jax.get_file_cache(str(tmp_path))[0]


ENTRY = random.Random(0).randbytes(5_000)


def the_only_file(folder):
    (path,) = folder.iterdir()
    return path


def test_no_changed_entry_is_used(tmp_path, cache):
    """Bits in all its regions, and lengths; also where zstd, which has no checksum, packed it."""
    cache.put("jit_f-0a", ENTRY)
    path = the_only_file(tmp_path)
    good, draw = path.read_bytes(), random.Random(1)
    for at in [*range(0, 64), *(draw.randrange(len(good)) for _ in range(300))]:
        changed = bytearray(good)
        changed[at] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        assert cache.get("jit_f-0a") is None
        assert not path.exists()
    for content in [b"", good[:1], good[:32], good[:33], good[:-1], good + b"x", bytes(len(good))]:
        path.write_bytes(content)
        assert cache.get("jit_f-0a") is None
    cache.put("jit_f-0a", ENTRY)  # compiled anew
    assert cache.get("jit_f-0a") == ENTRY


def test_another_entrys_content_is_not_used(tmp_path, cache):
    cache.put("jit_f-0a", ENTRY)
    path = the_only_file(tmp_path)
    path.rename(path.with_name(path.name.replace("0a", "0b")))
    assert cache.get("jit_f-0b") is None


def test_what_other_programs_keep_in_the_folder_is_left_alone(tmp_path, cache):
    other = LRUCache(str(tmp_path), max_size=-1)
    other.put("jit_f-0a", b"theirs")
    assert cache.get("jit_f-0a") is None
    cache.put("jit_f-0a", b"ours")
    assert (other.get("jit_f-0a"), cache.get("jit_f-0a")) == (b"theirs", b"ours")


def test_a_changed_entry_that_cannot_be_removed_is_not_used(tmp_path, cache, monkeypatch):
    cache.put("jit_f-0a", ENTRY)
    path = the_only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])

    def refuse(self, missing_ok=False):
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(type(cache.path), "unlink", refuse)
    assert cache.get("jit_f-0a") is None and path.exists()


def test_a_cache_that_compares_is_verified_too(tmp_path):
    compilation_cache.enable()
    before = jax.config.jax_compilation_cache_check_contents
    jax.config.update("jax_compilation_cache_check_contents", True)
    try:
        cache = of_jax.get_file_cache(str(tmp_path))[0]
        assert type(cache) is of_jax.VerificationCache and compilation_cache._verify_entries()
    finally:
        jax.config.update("jax_compilation_cache_check_contents", before)


def test_a_bounded_cache_is_verified_too(tmp_path):
    pytest.importorskip("filelock")  # JAX needs it there
    compilation_cache.enable()
    bounded = of_jax.LRUCache(str(tmp_path), max_size=8_000)
    bounded.put("jit_f-0a", ENTRY)
    bounded.put("jit_f-0b", ENTRY)  # in the other's place
    assert (bounded.get("jit_f-0a"), bounded.get("jit_f-0b")) == (None, ENTRY)
    changed = next(tmp_path.glob("*0b*-cache"))
    changed.write_bytes(b"x" + changed.read_bytes()[1:])
    assert bounded.get("jit_f-0b") is None
    bounded.put("jit_f-0c", ENTRY)
    assert bounded.get("jit_f-0c") == ENTRY


def test_several_at_once_get_what_was_put_or_nothing(tmp_path):
    compilation_cache.enable()
    entries = {f"jit_f-{number}": ENTRY[number:] for number in range(4)}

    def work(seed):
        cache, draw = of_jax.get_file_cache(str(tmp_path))[0], random.Random(seed)
        for _ in range(150):
            key = draw.choice(list(entries))
            with contextlib.suppress(OSError):  # JAX compiles then
                if cache.get(key) not in (None, entries[key]):
                    return False
                cache.put(key, entries[key])
            if draw.random() < 0.2:
                for path in tmp_path.glob(f"{key}*"):
                    path.write_bytes(ENTRY[:99])
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


@pytest.mark.parametrize("missing", ["LRUCache", "get_file_cache"])
def test_a_jax_whose_entries_cannot_be_verified_keeps_nothing(monkeypatch, missing):
    before = jax.config.jax_enable_compilation_cache
    monkeypatch.delattr(of_jax, missing)
    try:
        compilation_cache.enable()
        assert jax.config.jax_enable_compilation_cache is False
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
