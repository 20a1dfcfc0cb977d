"""A text of a user's own through the commands: planned, trained, gone on with, sampled, refused."""

import json

import numpy as np
import pytest

from adabatch_jax import plan, predict, prepare, report, sample, train
from tests.run_folders import content
from tests.sentences import says

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
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_text_is_trained_on_gone_on_with_and_sampled(text, command):
    done = command(train.main, arguments("text:corpus.txt", "whole"))
    assert done.code == 0 and "test bits/byte" in done.out, done
    assert "its last 10% are kept out" in done.out
    rows = rows_of(text / "whole")
    sizes = [row["batch_size"] for row in rows]
    assert rows[-1]["tokens"] == 3200 and sizes[0] == 4 and sizes[-1] == 16
    for row in rows:
        assert row["tokens"] == 16 * row["samples"]
        assert row["tokens_per_second"] == pytest.approx(16 * row["examples_per_second"])
    assert rows[-1]["test_bits_per_byte"] == pytest.approx(rows[-1]["test_loss"] / np.log(2))
    assert rows[-1]["test_loss"] < rows[0]["train_loss"]

    part = command(train.main, arguments("text:corpus.txt", "parts", "--stop-at-phase", "2"))
    assert part.code == 0
    (text / "moved.txt").write_bytes((text / "corpus.txt").read_bytes())
    assert command(train.main, arguments("text:moved.txt", "parts")).code == 0
    assert content(text / "parts")["metrics"] == content(text / "whole")["metrics"]

    first = command(sample.main, "whole --prompt and --tokens 40")
    assert first.code == 0 and first.out.startswith("and"), first
    assert command(sample.main, "whole --prompt and --tokens 40").out == first.out
    assert command(sample.main, "whole --prompt and --tokens 40 --seed 1").out != first.out
    told = json.loads(command(sample.main, "whole --prompt and --tokens 40 --json").out)
    assert len(told["tokens"]) == 40 and bytes(told["tokens"]).decode() == told["text"][3:]

    assert command(report.main, "whole").code == 0
    page = (text / "whole/report.html").read_text()
    assert "tokens per second" in page and "3,200" in page


def test_greedy_samples_are_the_likeliest(text, command):
    """Against logits computed anew for each whole text, beyond the context too."""
    import adabatch_jax as ab
    from adabatch_jax.models.pure_functions import logits_of

    command(train.main, arguments("text:corpus.txt", "run"))
    done = command(sample.main, "run --prompt go --tokens 24 --temperature 0 --json")
    run = ab.load_run("run")
    written = [*b"go"]
    for _ in range(24):
        context = np.array([written[-16:]])
        logits = logits_of(run.model)(run.params, run.state.model_state, context)
        written.append(int(logits[0, -1].argmax()))
    assert json.loads(done.out)["tokens"] == written[2:]
    one = command(sample.main, "run --prompt go --tokens 24 --top-k 1 --json")
    assert json.loads(one.out)["tokens"] == written[2:]


def test_a_plan_tells_tokens(text, command):
    done = command(plan.main, [*SHORT.split(), "--dataset", "text:corpus.txt", *LENGTH, "--no-memory", "--json"])  # fmt: skip
    rows = json.loads(done.out)["phases"]
    assert [row["start_token"] for row in rows][:2] == [0, 832]
    assert sum(row["num_tokens"] for row in rows) == 3200


def test_what_is_prepared_is_trained_on_alike(text, command):
    done = command(prepare.main, "text:corpus.txt --name corpus")
    assert done.code == 0 and "text:corpus is ready in" in done.out
    assert (
        command(train.main, arguments("text:corpus.txt", "text", "--stop-at-phase", "2")).code == 0
    )
    assert command(train.main, arguments("text:corpus", "text")).code == 0
    assert command(train.main, arguments("text:corpus", "tokens")).code == 0
    assert content(text / "text")["metrics"] == content(text / "tokens")["metrics"]


def test_other_contents_are_refused(text, command, refused):
    assert (
        command(train.main, arguments("text:corpus.txt", "run", "--stop-at-phase", "2")).code == 0
    )
    changed = (text / "corpus.txt").read_text().replace("god", "dog")
    (text / "corpus.txt").write_text(changed)
    refused(train.main, arguments("text:corpus.txt", "run"), "run … other training examples", 4)


def test_packed_documents_are_trained_on(text, command):
    (text / "books").mkdir()
    for number in range(9):
        (text / f"books/{number}.txt").write_text("let there be light, " * (3 + number))
    more = ["--data.documents", "packed", "--data.test-split", "20%"]
    done = command(train.main, arguments("text:books", "run", *more))
    assert done.code == 0, done
    apart = command(
        train.main, arguments("text:books", "apart", *more[2:], "--data.documents", "apart")
    )
    assert apart.code == 0, apart


def test_an_own_model_of_tokens(text, command, refused):
    settings = ["--dataset", "text:corpus.txt", "--data.sequence-length", "16", *LENGTH]
    settings += "--microbatch-size none --workdir own --lr 0.1".split()
    assert command(train.main, [*settings, "--model", "mynet.py:build"]).code == 0
    assert command(sample.main, "own --tokens 5").code == 0
    settings[settings.index("own")] = "other"
    shapes = "model … mynet.py:narrow … shape (2, 16, 7) … (2, 16, 256)"
    refused(train.main, [*settings, "--model", "mynet.py:narrow"], shapes)
    keywords = "model … must take the keywords num_classes, sequence_length, seed"
    refused(train.main, [*settings, "--model", "mynet.py:of_images"], keywords)


def test_what_cannot_be_is_told(text, command, refused):
    command(train.main, arguments("text:corpus.txt", "run"))
    refused(predict.main, "run a.png", "run is a run of a text")
    refused(sample.main, "run --tokens 0", "--tokens … at least 1")
    refused(sample.main, "run --temperature -1", "temperature … at least 0")
    refused(sample.main, ["run", "--prompt", ""], "the prompt is empty")
    refused(sample.main, "none", "none")
    refused(prepare.main, "text:corpus.txt", "needs a name … --name")
    images = ["--dataset", "text:corpus.txt"]
    refused(plan.main, [*images, "--no-memory", "--data.flip"], "data.flip … is a text")
    refused(plan.main, ["--data.sequence-length", "8"], "data.sequence_length … digits is no text")
    refused(train.main, [*images, "--workdir", "x"], "model: cnn_digits takes images … gpt_nano")
    wrong = [*arguments("text:corpus.txt", "x"), "--tokens-per-example", "8"]
    refused(train.main, wrong, "tokens_per_example … sequence_length=16")
    small = [*arguments("text:corpus.txt", "y"), "--data.vocabulary-size", "100"]
    outcome = command(train.main, small)
    assert outcome.code == 1 and says("holds the token … the vocabulary has 100"), outcome
