"""Sequences of token ids, compared with those cut out of numpy arrays by hand."""

import struct

import numpy as np
import pytest

import adabatch_jax as ab
from adabatch_jax.system.errors import ExampleError, UsageError

END = 0  # the id at which documents end


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    sizes = [1, 7, 30, 2, 1, 64, 5, 17, 3, 90]
    return [np.append(rng.integers(1, 50_000, size - 1), END).astype(np.uint16) for size in sizes]


def write_bin(path, ids):
    np.asarray(ids, np.uint16).tofile(path)
    return path


def write_npy(path, ids):
    np.save(path.with_suffix(".npy"), np.asarray(ids, np.int64))
    return path.with_suffix(".npy")


def write_with_header(path, ids):
    header = np.zeros(256, np.int32)
    header[:3] = 20240520, 1, len(ids)
    path.write_bytes(header.tobytes() + np.asarray(ids, np.uint16).tobytes())
    return path


def write_megatron(path, documents, code=8, dtype=np.uint16, pieces=1):
    """The pair of files by Megatron's layout; each document is so many sequences."""
    sequences = [part for ids in documents for part in np.array_split(ids, pieces)]
    sizes = np.array([len(part) for part in sequences], "<i4")
    pointers = (
        np.concatenate([[0], np.cumsum(sizes[:-1], dtype=np.int64)]) * np.dtype(dtype).itemsize
    )
    index = np.arange(0, len(sequences) + 1, pieces)
    path.with_suffix(".bin").write_bytes(
        b"".join(part.astype(dtype).tobytes() for part in sequences)
    )
    path.with_suffix(".idx").write_bytes(
        b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sizes), len(index))
        + sizes.tobytes() + pointers.astype("<i8").tobytes() + index.astype("<i8").tobytes()
    )  # fmt: skip
    return path.with_suffix(".bin")


def write_records(path, documents):
    writer = pytest.importorskip("array_record.python.array_record_module").ArrayRecordWriter
    path = path.with_suffix(".array_record")
    file = writer(str(path), "group_size:1")
    for ids in documents:
        file.write(ids.astype(np.uint16).tobytes())
    file.close()
    return path


def joined(write):
    return lambda path, documents: write(path, np.concatenate(documents))


WRITERS = {
    "bin": joined(write_bin),
    "npy": joined(write_npy),
    "header": joined(write_with_header),
    "megatron": write_megatron,
    "megatron int32": lambda path, docs: write_megatron(path, docs, 4, np.int32, pieces=2),
    "array_record": write_records,
}
TELLS_DOCUMENTS = ("megatron", "megatron int32", "array_record")


@pytest.fixture(params=WRITERS)
def written(request, documents, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = WRITERS[request.param](tmp_path / "tokens.bin", documents)
    return path, None if request.param in TELLS_DOCUMENTS else END


@pytest.mark.parametrize("length", [1, 4, 16, 219])
def test_sequences_lie_one_after_the_other(written, documents, length):
    ids = np.concatenate(documents).astype(int)
    source = ab.token_source(written[0], length)
    assert len(source) == (len(ids) - 1) // length
    wanted = np.random.default_rng(1).permutation(len(source))[:50]
    arrays = source.read(wanted)
    assert list(arrays) == ["tokens"] and arrays["tokens"].dtype == np.int32
    expected = [ids[i * length : (i + 1) * length + 1].tolist() for i in wanted]
    assert arrays["tokens"].tolist() == expected


@pytest.mark.parametrize("length", [1, 4, 16])
def test_packed_sequences_know_their_documents(written, documents, length):
    path, end = written
    source = ab.token_source(path, length, documents="packed", end_of_document=end)
    ids = np.concatenate(documents).astype(int)
    of = np.repeat(np.arange(len(documents)), [len(d) for d in documents])
    place = np.concatenate([np.arange(len(d)) for d in documents])
    arrays = source.read(np.arange(len(source)))
    assert len(source) == (len(ids) - 1) // length
    for i in range(len(source)):
        at = np.arange(i * length, (i + 1) * length)
        assert arrays["tokens"][i].tolist() == ids[at[0] : at[-1] + 2].tolist()
        assert arrays["mask"][i].tolist() == (of[at] == of[at + 1]).tolist()
        # A document that began before is counted from the sequence's own start.
        assert arrays["positions"][i].tolist() == np.minimum(place[at], at - at[0]).tolist()
        assert arrays["segments"][i].tolist() == (of[at] - of[at[0]]).tolist()
    assert arrays["weight"].tolist() == arrays["mask"].sum(axis=1).tolist()


@pytest.mark.parametrize("length", [1, 4, 16])
def test_documents_apart_are_whole(written, documents, length):
    path, end = written
    source = ab.token_source(path, length, documents="apart", end_of_document=end)
    expected = []
    for ids in documents:
        for start in range(0, len(ids) - 1, length):
            expected.append(ids[start : start + length + 1].tolist())
    order = np.random.default_rng(2).permutation(len(source))
    arrays = source.read(order)
    assert len(source) == len(expected)
    for row, index in enumerate(order):
        ids = expected[index]
        assert arrays["tokens"][row].tolist() == ids + [0] * (length + 1 - len(ids))
        assert arrays["mask"][row].tolist() == [n < len(ids) - 1 for n in range(length)]
        assert arrays["weight"][row] == len(ids) - 1


def test_the_same_ids_have_one_digest(documents, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = [write(tmp_path / f"{n}.bin", documents) for n, write in enumerate(WRITERS.values())]
    assert len({ab.token_source(path, 4).digest() for path in paths}) == 1
    changed = np.concatenate(documents)
    changed[-1] += 1
    other = write_bin(tmp_path / "other.bin", changed)
    assert ab.token_source(other, 4).digest() != ab.token_source(paths[0], 4).digest()
    assert ab.token_source(paths[0], 5).digest() != ab.token_source(paths[0], 4).digest()
    packed = ab.token_source(paths[0], 4, documents="packed", end_of_document=0)
    assert packed.digest() != ab.token_source(paths[0], 4).digest()


def test_several_files_lie_one_after_the_other(tmp_path):
    paths = [write_bin(tmp_path / f"{n}.bin", np.arange(n, 50 + 9 * n)) for n in range(3)]
    source, parts = ab.token_source(paths, 4), [ab.token_source(path, 4) for path in paths]
    everything = [part.read(np.arange(len(part)))["tokens"] for part in parts]
    assert len(source) == sum(map(len, parts))
    order = np.random.default_rng(0).permutation(len(source))
    expected = np.concatenate(everything)[order]
    assert source.read(order)["tokens"].tolist() == expected.tolist()
    with pytest.raises(IndexError):
        source.read(np.array([len(source)]))


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (1, 1, 1), (7, 2, 1), (1e-3, 0.9, 0.3)])
def test_a_mixture_follows_from_the_position(tmp_path, weights):
    sizes = (400, 90, 33)
    paths = [
        write_bin(tmp_path / f"{n}.bin", np.arange(size) + 1000 * n) for n, size in enumerate(sizes)
    ]
    source = ab.token_source(dict(zip(paths, weights)), 4)
    parts = [ab.token_source(path, 4) for path in paths]
    shares, taken, expected = np.array(weights) / sum(weights), np.zeros(3, int), []
    ids = source.read(np.arange(3 * len(source)))["tokens"]
    for position, row in enumerate(ids):
        number = row[0] // 1000
        expected.append(parts[number].read(np.array([taken[number] % len(parts[number])])))
        assert row.tolist() == expected[-1]["tokens"][0].tolist()
        taken[number] += 1
        if position < len(source) - 1:
            assert (taken < [len(part) for part in parts]).any()
        assert np.abs(taken - shares * (position + 1)).max() <= 2
    some = np.random.default_rng(0).permutation(len(ids))[:100]
    assert source.read(some)["tokens"].tolist() == ids[some].tolist()
    first = ids[: len(source)]
    assert len({tuple(row) for row in first}) == sum(map(len, parts)), "each comes in a pass"


def test_shares_are_exact():
    from adabatch_jax.data.sources import array_source
    from adabatch_jax.data.tokens.token_mixture import TokenMixture

    sources = [array_source({"tokens": np.arange(5)})] * 3
    numbers, _ = TokenMixture(sources, [0.7, 0.2, 0.1]).places(np.arange(1000))
    assert np.bincount(numbers).tolist() == [700, 200, 100]
    numbers, _ = TokenMixture(sources, [np.pi, 1, 1]).places(np.arange(2**16))
    assert np.abs(np.bincount(numbers) / 2**16 - np.array([np.pi, 1, 1]) / (np.pi + 2)).max() < 2e-5


def test_an_endless_plan_reads_a_mixture_along(tmp_path):
    paths = [write_bin(tmp_path / f"{n}.bin", np.arange(99) + 1000 * n) for n in range(2)]
    source = ab.token_source(dict(zip(paths, (3, 1))), 4)
    plan = ab.make_plan("4, 320tok: 8", None, "1600tok", tokens_per_example=4)
    rows = [batch["tokens"][:, 0] // 1000 for batch in ab.batches(source, plan)]
    assert [len(numbers) for numbers in rows] == [4] * 20 + [8] * 40
    assert all(
        np.bincount(numbers).tolist() == [len(numbers) * 3 // 4, len(numbers) // 4]
        for numbers in rows
    )


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda index: b"X" + index[1:], "doesn't begin with MMIDIDX"),
        (lambda index: index[:9] + b"\x02" + index[10:], "is of version 2"),
        (lambda index: index[:17] + b"\x06" + index[18:], "the type code 6"),
        (lambda index: index[:-1], "it was cut off"),
        (lambda index: index[:34] + b"\x09" + index[35:], "don't lie one after the other"),
        (lambda index: index[:-8] + b"\x01" + index[-7:], "don't make up its sequences"),
    ],
)
def test_a_damaged_index_is_told(tmp_path, documents, damage, sentence):
    path = write_megatron(tmp_path / "m.bin", documents)
    index = path.with_suffix(".idx")
    index.write_bytes(damage(index.read_bytes()))
    with pytest.raises(UsageError, match=sentence):
        ab.token_source(path, 4)


def test_what_cannot_be_is_told(tmp_path, documents):
    def refused(sentence, path, length=4, **settings):
        with pytest.raises(UsageError, match=sentence):
            ab.token_source(path, length, **settings)

    path = write_bin(tmp_path / "a.bin", np.arange(10))
    refused("there is no file of tokens", tmp_path / "none.bin")
    refused("make up no sequence of 10", path, 10)
    refused("must be at least 1", path, 0)
    refused("`sequence_length` must be a whole number, got '8'", path, "8")
    refused("`dtype` must be a type of whole numbers, .* got 'unit16'", path, dtype="unit16")
    refused("give `end_of_document`", path, documents="packed")
    refused("one of joined, packed, apart", path, documents="pack")
    refused("20 bytes, which are no tokens of int64", path, dtype=np.int64)
    refused("a number above 0 for each file", {path: 0})
    refused("smallest share is 1/65,536", {path: 1, write_npy(tmp_path / "b", [1] * 9): 1e-6})
    refused("give at least one", [])
    (tmp_path / "odd.bin").write_bytes(bytes(5))
    refused("was cut off", tmp_path / "odd.bin")
    np.save(tmp_path / "c.npy", np.zeros((3, 4)))
    refused("tokens are whole numbers in one axis", tmp_path / "c.npy")
    megatron = write_megatron(tmp_path / "m.bin", documents)
    megatron.write_bytes(megatron.read_bytes()[:-2])
    refused("its index tells of", megatron)
    with pytest.raises(ExampleError, match="sequence 1 .* holds the token 7, and the vocabulary"):
        ab.token_source(path, 4, vocabulary_size=7).read(np.array([0, 1]))
