"""Texts and tokens of a user's own files: what is read, which split it is, what is refused."""

import json

import numpy as np
import pytest

from adabatch_jax.config.settings import DataSettings
from adabatch_jax.data.tokens.prepared_texts import prepare_text
from adabatch_jax.data.tokens.texts import open_text
from adabatch_jax.data.tokens.token_files import open_tokens
from adabatch_jax.data.tokens.token_source import TokenSource
from adabatch_jax.data.tokens.tokenizers import JsonTokenizer, open_tokenizer
from adabatch_jax.system.errors import UsageError

WORDS = "in the beginning god created heaven and earth light was void ü € 𝄞".split()


def sentence(seed, number=200):
    return " ".join(np.random.default_rng(seed).choice(WORDS, number))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADABATCH_DATA_DIR", str(tmp_path / "datasets"))
    return tmp_path


def opened(text, length=8, **settings):
    return open_text(text, DataSettings(**settings), length)


def ids(text, name):
    return np.asarray(text.tokens[name].ids[:]).tolist()


def test_a_file_is_its_bytes(folder):
    content = sentence(0).encode()
    (folder / "a.txt").write_bytes(content)
    text = opened("text:a.txt", test_split="20%", holdout_split="10%")
    parts = [ids(text, name) for name in ("train", "holdout", "test")]
    assert bytes(sum(parts, [])) == content
    for part, share in zip(parts, (0.7, 0.1, 0.2)):
        assert len(part) == pytest.approx(share * len(content), abs=4)
        bytes(part).decode()  # no character is cut in two
    assert (text.vocabulary_size, text.spec.bytes_per_token) == (256, 1.0)
    assert opened("text:a.txt").notes[0].endswith("(--data.test-split)")
    assert not text.notes


def test_files_of_a_folder_are_documents(folder):
    contents = {f"b/{n}.txt": sentence(n, 5 + n).encode() for n in range(4)}
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "b/.hidden").write_bytes(b"no")
    text = opened("text:b", test_split="40%")
    both = bytes(ids(text, "train")), bytes(ids(text, "test"))
    whole = b"".join(contents.values())
    assert (both[0] + both[1]).replace(b"\0", b"") == whole
    documents = list(contents.values())
    assert both[0].split(b"\0")[:2] == documents[:2] and both[1].split(b"\0")[-1] == documents[-1]
    assert text.spec.end_of_document == 0


def test_splits_go_by_their_names(folder):
    for name in ("train.txt", "val.txt", "test/1.txt", "test/2.txt"):
        (folder / "c" / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / "c" / name).write_text(name)
    text = opened("text:c")
    assert bytes(ids(text, "train")) == b"train.txt"
    assert bytes(ids(text, "test")) == b"test/1.txt\0test/2.txt"
    text = opened("text:c", test_split="val", holdout_split="test")
    assert bytes(ids(text, "test")) == b"val.txt" and len(ids(text, "holdout")) == 21
    (folder / "c" / "other.txt").write_text("no split's")
    with pytest.raises(UsageError, match="other.txt is in none of them"):
        opened("text:c")


def test_nanogpts_folder_is_taken_as_it_is(folder):
    (folder / "d").mkdir()
    for name, size in (("train.bin", 900), ("val.bin", 100)):
        np.arange(size, dtype=np.uint16).tofile(folder / "d" / name)
    (folder / "d/input.txt").write_text("what they were made of")
    (folder / "d/meta.pkl").write_bytes(b"never read")
    text = opened("text:d")
    assert ids(text, "train") == [*range(900)] and ids(text, "test") == [*range(100)]
    assert text.vocabulary_size == 900 and text.spec.tokenizer is None
    text = opened("text:d/train.bin", test_split="30%")
    assert ids(text, "train") == [*range(630)] and ids(text, "test") == [*range(630, 900)]


@pytest.mark.parametrize("before", ["", "fineweb_"])
def test_shards_are_one_row_in_the_order_of_their_names(folder, before):
    (folder / "f").mkdir()
    row = np.random.default_rng(0).integers(0, 1000, 700).astype(np.uint16)
    pieces = {"train_000002": row[250:251], "train_000001": row[:250], "train_000010": row[251:600]}
    for name, piece in (pieces | {"val_000000": row[600:]}).items():
        piece.tofile(folder / f"f/{before}{name}.bin")
    text = opened("text:f")
    assert ids(text, "train") == row[:600].tolist() and ids(text, "test") == row[600:].tolist()
    row[:600].tofile(folder / "whole.bin")
    whole = TokenSource(open_tokens(folder / "whole.bin", "whole"), 8, vocabulary_size=1000)
    source = TokenSource(text.tokens["train"], 8, vocabulary_size=1000)
    everywhere = np.arange(len(whole))  # each joint of two files is in one of them
    assert len(source) == len(whole) and source.digest() == whole.digest()
    assert np.array_equal(source.read(everywhere)["tokens"], whole.read(everywhere)["tokens"])
    # And a share of them.
    (folder / f"f/{before}val_000000.bin").unlink()
    for start, stop, name in ((0, 240, "train"), (240, 600, "test")):
        assert ids(opened("text:f", test_split="60%"), name) == row[start:stop].tolist()


def test_what_is_prepared_is_the_same(folder):
    (folder / "a.txt").write_text(sentence(0))
    before = opened("text:a.txt")
    path = prepare_text("text:a.txt", "mine")
    assert sorted(file.name for file in path.iterdir()) == ["test.bin", "tokens.json", "train.bin"]
    assert np.fromfile(path / "train.bin", "<u2").tolist() == ids(before, "train")
    after = opened("text:mine")
    assert ids(after, "test") == ids(before, "test") and after.spec == before.spec
    assert after.tokens["train"].digest() == before.tokens["train"].digest()
    assert prepare_text("text:a.txt", "mine") == path
    (folder / "a.txt").write_text(sentence(1))
    with pytest.raises(UsageError, match="not of the same text"):
        prepare_text("text:a.txt", "mine")
    prepare_text("text:a.txt", "mine", overwrite=True)
    assert ids(opened("text:mine"), "train") == ids(opened("text:a.txt"), "train")
    with pytest.raises(UsageError, match="holds tokens already"):
        prepare_text("text:mine", "again")


@pytest.mark.parametrize("documents", ["joined", "packed", "apart"])
def test_sequences_of_what_is_prepared_are_the_same(folder, documents):
    (folder / "e").mkdir()
    for n in range(9):
        (folder / f"e/{n}.txt").write_text(sentence(n))
    prepare_text("text:e", "five")
    before, after = (
        TokenSource(text.tokens["train"], 8, documents, text.spec.end_of_document)
        for text in (opened("text:e"), opened("text:five"))
    )
    assert before.digest() == after.digest() and len(before) == len(after)
    rows = before.read(np.arange(len(before)))
    for name, values in after.read(np.arange(len(after))).items():
        assert np.array_equal(values, rows[name])


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("none.txt", None, "there is no file or folder 'none.txt'"),
        ("empty.txt", b"", "holds no text"),
        ("folder", {}, "the folder folder holds no texts"),
        ("zeros", {"1": b"a\0b", "2": b"c"}, "byte 1 is 0"),
        ("odd.bin", b"abc", "3 bytes, which are no tokens"),
    ],
)
def test_what_cannot_be_read_is_told(folder, name, content, sentence):
    if isinstance(content, dict):
        (folder / name).mkdir()
        for file, inner in content.items():
            (folder / name / file).write_bytes(inner)
    elif content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(UsageError, match=sentence):
        opened(f"text:{name}")


def test_wrong_splits_are_told(folder):
    (folder / "a.txt").write_text(sentence(0))
    with pytest.raises(UsageError, match="leave nothing to train on"):
        opened("text:a.txt", test_split="60%", holdout_split="40%")
    with pytest.raises(UsageError, match="no split 'val'; it has no splits, give a share"):
        opened("text:a.txt", test_split="val")


@pytest.fixture
def tokenizer(folder):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator([sentence(n) for n in range(9)], trainer)
    made.save(str(folder / "t.json"))
    return made


def test_a_json_tokenizer(folder, tokenizer):
    for n in range(3):
        (folder / "e").mkdir(exist_ok=True)
        (folder / f"e/{n}.txt").write_text(sentence(n))
    text = opened("text:e", tokenizer="t.json")
    end = tokenizer.token_to_id("<|endoftext|>")
    expected = tokenizer.encode(sentence(0)).ids + [end] + tokenizer.encode(sentence(1)).ids + [end]
    assert ids(text, "train")[: len(expected)] == expected
    size, share = len(ids(text, "test")), text.spec.bytes_per_token
    decoded = tokenizer.decode(ids(text, "test"))
    assert share * size == pytest.approx(len(decoded.encode())) and share > 2
    assert text.spec.end_of_document == end and text.vocabulary_size == tokenizer.get_vocab_size()
    path = prepare_text("text:e", "bpe", tokenizer="t.json")
    after = opened("text:bpe")
    assert ids(after, "train") == ids(text, "train")
    assert after.spec.tokenizer == str(path / "tokenizer.json")
    assert after.spec.tokenizer_digest == text.spec.tokenizer_digest
    assert json.loads((path / "tokens.json").read_text())["vocabulary_size"] == text.vocabulary_size
    with pytest.raises(UsageError, match="isn't the one that bpe was prepared with"):
        opened("text:bpe", tokenizer="bytes")
    (folder / "latin.txt").write_bytes("für".encode("latin-1") * 99)
    with pytest.raises(UsageError, match="no text in UTF-8"):
        opened("text:latin.txt", tokenizer="t.json")


def test_wrong_tokenizers_are_told(folder):
    with pytest.raises(UsageError, match="there is no file 'none.json'"):
        open_tokenizer("none.json")
    pytest.importorskip("tokenizers")
    (folder / "t.json").write_text("{}")
    with pytest.raises(UsageError, match="t.json is no tokenizer"):
        open_tokenizer("t.json")


def test_without_the_package_the_sentence_names_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(
        UsageError, match=r'needs the package tokenizers; pip install "adabatch_jax'
    ):
        JsonTokenizer("t.json", b"{}").vocabulary_size
