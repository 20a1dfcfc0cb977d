"""A text of a user's own through the commands: planned, trained, gone on with, sampled, refused."""

import json

import numpy as np
import pytest

import adabatch_jax as ab
from adabatch_jax import plan, predict, prepare, sample, train
from adabatch_jax.models.pure_functions import logits_of
from adabatch_jax.system.errors import UsageError

SHORT = (
    "--model gpt_nano --data.sequence-length 16 --gpt.width 16 --gpt.num-layers 1 --gpt.num-heads 2 "
    "--optimizer adamw --coupling sqrt --lr 0.01 --microbatch-size none --eval-every 50% "
    "--checkpoint-every 50% --log-every 4st"
)
LENGTH = ["--batch-schedule", "4 x2 every 800tok max 16", "--duration", "3200tok"]

MODEL = """
from flax import nnx

class Net(nnx.Module):
    def __init__(self, num_classes, rngs):
        self.embedding = nnx.Embed(num_classes, 8, rngs=rngs)
        self.out = nnx.Linear(8, num_classes, rngs=rngs)
    def __call__(self, tokens):
        return self.out(self.embedding(tokens))

def build(num_classes, sequence_length, seed): return Net(num_classes, nnx.Rngs(seed))
def narrow(num_classes, sequence_length, seed): return Net(7, nnx.Rngs(seed))
def of_images(num_classes, image_shape, seed): return Net(7, nnx.Rngs(seed))
"""


@pytest.fixture
def text(tmp_path, command, monkeypatch):
    """`corpus.txt`, 3,000 bytes, and `mynet.py`."""
    monkeypatch.setenv("ADABATCH_DATA_DIR", str(tmp_path / "datasets"))
    words = "and god said let there be light".split()
    rng = np.random.default_rng(0)
    (tmp_path / "corpus.txt").write_text(" ".join(rng.choice(words, 800))[:3000])
    (tmp_path / "mynet.py").write_text(MODEL)
    return tmp_path


def arguments(dataset, folder, *further):
    return [*f"--dataset {dataset} --workdir {folder} {SHORT}".split(), *LENGTH, *further]


def rows_of(folder):
    """The rows without what clocks say."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in row.items() if not k.endswith(("_seconds", "_per_second"))}
        for row in rows
    ]


def test_a_text_is_trained_on_gone_on_with_and_sampled(text, command, refused):
    done = command(train.main, arguments("text:corpus.txt", "whole"))
    assert done.code == 0 and "test bits/byte" in done.out, done
    assert "its last 10% are kept out" in done.out and "tok/s" in done.out
    rows = rows_of(text / "whole")
    sizes = [row["batch_size"] for row in rows]
    assert rows[-1]["tokens"] == 3200 and sizes[0] == 4 and sizes[-1] == 16
    assert all(row["tokens"] == 16 * row["samples"] for row in rows)
    for line in (text / "whole/metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["tokens_per_second"] == pytest.approx(16 * row["examples_per_second"])
    assert rows[-1]["test_bits_per_byte"] == pytest.approx(rows[-1]["test_loss"] / np.log(2))
    assert rows[-1]["test_loss"] < rows[0]["train_loss"]
    page = (text / "whole/report.html").read_text()
    assert "tokens per second" in page and "3,200" in page

    # Stopped, and gone on with as tokens that were prepared: the same run, bit for bit.
    part = command(train.main, arguments("text:corpus.txt", "parts", "--stop-at-phase", "2"))
    assert part.code == 0
    done = command(prepare.main, "text:corpus.txt --name corpus")
    assert done.code == 0 and "text:corpus is ready in" in done.out
    (text / "corpus.txt").write_text((text / "corpus.txt").read_text().replace("god", "dog"))
    wrong = "the run in … parts has other training examples"
    refused(train.main, arguments("text:corpus.txt", "parts"), wrong, 4)
    assert command(train.main, arguments("text:corpus", "parts")).code == 0
    assert rows_of(text / "parts") == rows

    check_samples(command, refused)
    check_the_best(text / "whole", rows, command)


def check_the_best(folder, rows, command):
    """By the loss, not by the accuracy."""
    losses = {row["step"]: row["test_loss"] for row in rows if "test_loss" in row}
    assert len(losses) == 2 and ab.load_run(folder, best=True).step == min(losses, key=losses.get)
    asked = f"{folder} --best --tokens 3 --json"
    assert json.loads(command(sample.main, asked).out)["step"] == min(losses, key=losses.get)


def check_samples(command, refused):
    """Greedy ones are those of logits computed for each whole context, beyond the first too."""
    begin = "let there be light and"
    first = command(sample.main, ["whole", "--prompt", begin, "--tokens", "24"])
    assert first.code == 0 and first.out.startswith(begin), first
    again = command(sample.main, ["whole", "--prompt", begin, "--tokens", "24", "--json"])
    told = json.loads(again.out)
    assert told["text"] == begin + bytes(told["tokens"]).decode() and len(told["tokens"]) == 24
    assert told["text"].splitlines() == first.out.splitlines()
    other = command(sample.main, ["whole", "--prompt", begin, "--tokens", "24", "--seed", "1"])
    assert other.out != first.out

    run = ab.load_run("whole")
    written = [*begin.encode()]
    for _ in range(24):
        context = np.array([written[-16:]])
        logits = logits_of(run.model)(run.params, run.state.model_state, context)
        written.append(int(logits[0, -1].argmax()))
    for greedy in ("--temperature 0", "--top-k 1"):
        asked = ["whole", "--prompt", begin, "--tokens", "24", "--json", *greedy.split()]
        assert json.loads(command(sample.main, asked).out)["tokens"] == written[len(begin) :]
    with pytest.raises(UsageError, match="is of a text, which"):
        run.predict(np.zeros((1, 8, 8, 1), np.uint8))
    refused(predict.main, "whole a.png", "whole is a run of a text")
    refused(sample.main, "whole --tokens 0", "--tokens … at least 1")
    refused(sample.main, "whole --temperature -1", "temperature … at least 0")
    refused(sample.main, ["whole", "--prompt", ""], "the prompt is empty")


@pytest.fixture
def tokenizer(text):
    """`t.json`, which makes a token of each word."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=["?"], show_progress=False)
    made.train_from_iterator([(text / "corpus.txt").read_text()], trainer)
    made.save(str(text / "t.json"))
    return made


def kept(text, tokenizer, command):
    """`moved`, a run that another folder held, and in `t.json` another tokenizer than then."""
    told = ["--data.tokenizer", "t.json", "--batch-schedule", "8"]
    done = command(train.main, arguments("text:corpus.txt", "run", *told, "--duration", "2st"))
    assert done.code == 0, done
    content = (text / "t.json").read_bytes()
    tokenizer.add_tokens(["darkness"])
    tokenizer.save(str(text / "t.json"))
    (text / "run").rename(text / "moved")
    assert (text / "moved/tokenizer.json").read_bytes() == content
    return arguments("text:corpus.txt", "moved", *told, "--duration", "4st")


@pytest.mark.slow
def test_a_run_keeps_its_tokenizer(text, tokenizer, command, refused):
    kept(text, tokenizer, command)
    asked = ["moved", "--prompt", "let there", "--tokens", "5", "--json"]
    first = json.loads(command(sample.main, asked).out)
    assert first["text"].split() == ["let", "there", *map(tokenizer.id_to_token, first["tokens"])]
    other = "--tokenizer: t.json isn't the tokenizer that moved was trained with"
    refused(sample.main, [*asked, "--tokenizer", "t.json"], other)
    (text / "moved/tokenizer.json").unlink()
    refused(sample.main, asked, "moved lacks tokenizer.json … give --tokenizer")


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_tokenizer(text, tokenizer, command, refused):
    more = kept(text, tokenizer, command)
    refused(train.main, more, "begun with the tokenizer t.json, and t.json isn't the same", 4)
    more[more.index("t.json")] = "moved/tokenizer.json"
    assert command(train.main, more).code == 0 and rows_of(text / "moved")[-1]["step"] == 4


def test_a_plan_tells_tokens(text, command):
    asked = ["--dataset", "text:corpus.txt", "--data.sequence-length", "16", *LENGTH, "--no-memory"]
    asked += ["--model", "gpt_nano", "--json"]
    told = json.loads(command(plan.main, asked).out)
    assert [row["start_token"] for row in told["rows"]] == [0, 832, 1600]
    assert sum(row["num_tokens"] for row in told["rows"]) == 3200
    assert "3,200 tokens" in told["notes"][0]


@pytest.mark.slow
def test_packed_documents_are_trained_on(text, command):
    (text / "books").mkdir()
    for number in range(9):
        (text / f"books/{number}.txt").write_text("let there be light, " * (3 + number))
    more = ["--data.documents", "packed", "--data.test-split", "20%"]
    done = command(
        train.main,
        arguments("text:books", "run", *more, "--batch-schedule", "8", "--duration", "400tok"),
    )
    assert done.code == 0 and "test bits/byte" in done.out, done


@pytest.mark.slow
def test_an_own_model_of_tokens(text, command, refused):
    settings = ["--dataset", "text:corpus.txt", "--data.sequence-length", "16"]
    settings += "--batch-schedule 8 --duration 3st --microbatch-size none --workdir own".split()
    assert command(train.main, [*settings, "--model", "mynet.py:build"]).code == 0
    assert command(sample.main, "own --tokens 5").code == 0
    settings[-1] = "other"
    shapes = "model … mynet.py:narrow … shape (2, 16, 7) … (2, 16, 256)"
    refused(train.main, [*settings, "--model", "mynet.py:narrow"], shapes)
    keywords = "model … must take the keywords num_classes, sequence_length and seed"
    refused(train.main, [*settings, "--model", "mynet.py:of_images"], keywords)


def test_what_cannot_be_is_told(text, command, refused):
    refused(sample.main, "none", "none")
    refused(prepare.main, "text:corpus.txt", "needs a name … --name")
    refused(prepare.main, "digits --tokenizer t.json", "--tokenizer is for texts")
    refused(plan.main, "--dataset corpus.txt --no-memory", "dataset … given as text:corpus.txt")
    (text / "short.txt").write_text("let there be light")
    refused(plan.main, "--dataset text:short.txt --no-memory", "shorter … --data.sequence-length")
    images = ["--dataset", "text:corpus.txt"]
    refused(plan.main, [*images, "--no-memory", "--data.flip"], "data.flip … is a text")
    refused(plan.main, ["--data.sequence-length", "8"], "data.sequence_length … digits is no text")
    (text / "flat.bin").write_bytes(bytes(4000))
    packed = [*arguments("text:flat.bin", "x"), "--data.documents", "packed"]
    refused(train.main, packed, "data.documents … give the --data.tokenizer that made it")
    small = [*images, "--batch-schedule", "4", "--workdir", "x"]
    refused(train.main, small, "model: cnn_digits takes images … gpt_nano")
    wrong = [*arguments("text:corpus.txt", "x"), "--tokens-per-example", "8"]
    refused(train.main, wrong, "tokens_per_example … sequence_length=16")
    few = [*arguments("text:corpus.txt", "y"), "--data.vocabulary-size", "100"]
    refused(train.main, few, "holds the token … the vocabulary has 100", 1)
