"""`--recipe`, `--from-megatron`, `--from-levanter` and `--write-for`."""

import dataclasses
import json
import shlex

import pytest

from adabatch_jax import parse_schedule, recipes
from adabatch_jax.config.command_line import command_arguments, parse_arguments
from adabatch_jax.plan import Options, main
from adabatch_jax.system.errors import UsageError
from adabatch_jax.train import Options as TrainOptions

V3 = "--recipe deepseek-v3 --recipe-stages 8 --tokens-per-example 1024"


def test_a_recipe_as_published(command):
    outcome = command(main, "--recipe llama3-405b --wide")
    assert outcome.code == 0 and outcome.err == ""
    assert "arXiv 2407.21783" in outcome.out and "1.25 times the last threshold" in outcome.out
    assert "976.5625 to 977" in outcome.out
    content = json.loads(command(main, "--recipe llama3-405b --json").out)
    assert [phase["batch_size"] for phase in content["phases"]] == [977, 1953, 3906]
    starts = [row["start_token"] for row in content["rows"]]
    assert 0 <= starts[1] - 252e6 < 4.1e6 and 0 <= starts[2] - 2.87e12 < 8.1e6
    assert all(row["start_epoch"] is None for row in content["rows"])
    assert any("not published" in note for note in content["notes"])


def test_an_open_end_shows_only_the_beginning_of_a_rate_that_falls_to_it(command):
    rows = json.loads(command(main, "--recipe gpt3-175b --json").out)["rows"]
    assert [row["learning_rate"] for row in rows] == pytest.approx([6e-5] * 6)
    with_end = "--recipe gpt3-175b --recipe-length 300Btok --json"
    rates = [row["learning_rate"] for row in json.loads(command(main, with_end).out)["rows"]]
    assert rates[0] == pytest.approx(6e-5) and sorted(rates, reverse=True) == rates


def test_a_scaled_recipe(command):
    out = command(main, f"{V3} --duration 2Btok --batch-scale 1/64 --wide").out
    assert "changed: 2Btok in place of 14.8Ttok" in out and "batches x 1/64" in out
    assert "yours, not the recipe's: 8 sizes in the ramp, 1024 tokens an example." in out
    content = json.loads(command(main, f"{V3} --duration 2Btok --batch-scale 1/64 --json").out)
    assert content["config"]["batch_schedule"] == "48 to 240 over 469/148% in 8"
    assert content["num_samples"] == 1_953_125


def test_a_recipe_for_a_dataset(command):
    line = "--recipe adabatch --recipe-batch 128 --epochs 100 --dataset cifar10 --no-memory --json"
    content = json.loads(command(main, line).out)
    assert content["num_steps"] == 15_138 and content["config"]["coupling"] == "linear"
    line = (
        "--recipe speedrun --duration 60ep --batch-scale 1/2 --num-examples 1442 --no-memory --json"
    )
    assert json.loads(command(main, line).out)["rows"][1]["start_epoch"] == pytest.approx(
        20, abs=0.1
    )


def test_flags_change_a_recipe_and_its_flags_give_the_run_back():
    words = f"{V3} --duration 2Btok --batch-scale 1/64 --lr 1e-3 cosine --seed 3".split()
    told = []
    _, config = parse_arguments(TrainOptions, words, "train", "", told.append)
    assert (config.lr, config.seed, config.duration, config.epochs) == (
        "1e-3 cosine", 3, "2Btok", None,
    )  # fmt: skip
    assert told[0].startswith("recipe deepseek-v3")
    assert told[-1] == "yours, not the recipe's: --lr 1e-3 cosine."
    typed = command_arguments(config)
    assert parse_arguments(TrainOptions, shlex.split(typed), "train", "")[1] == config
    config = parse_arguments(TrainOptions, [*V3.split(), "--epochs", "20"], "", "", told.append)[1]
    assert config.length.unit == "ep" and "469/148%" in config.batch_schedule


@pytest.mark.parametrize(("further", "length"), [("", 256), ("--data.sequence-length 64", 64)])
def test_a_recipe_has_the_length_of_a_texts_sequences(tmp_path, further, length):
    words = f"--recipe speedrun --recipe-rate 1 --batch-scale 1/128 --duration 6Mtok {further}"
    words = f"{words} --dataset text:corpus.txt".split()
    config = parse_arguments(TrainOptions, words, "", "", print)[1]
    assert config.tokens_of_example == length and config.tokens_per_example is None
    plan = config.plan(10**6)
    assert [size * length for size in plan.batch_sizes] == [1024, 2048, 3072]
    # A file may say another.
    (tmp_path / "c.json").write_text(json.dumps(dataclasses.asdict(config)))
    words += ["--config", str(tmp_path / "c.json"), "--data.sequence-length", "32"]
    config = parse_arguments(TrainOptions, words, "", "", print)[1]
    assert [size * 32 for size in config.plan(10**6).batch_sizes] == [1024, 2048, 3072]


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("--recipe deepseek-v3", "give --recipe-stages and --tokens-per-example."),
        ("--recipe blom", "did you mean 'bloom'?"),
        ("--recipe bloom --recipe-stages 5", "--recipe-stages: recipe bloom has its own."),
        ("--recipe bloom --batch-schedule 64", "--recipe and --batch-schedule: give one of them."),
        ("--recipe bloom --from-levanter 64", "--recipe and --from-levanter: give one of them."),
        ("--batch-scale 1/2", "--batch-scale: is of a recipe; give --recipe too."),
        ("--recipe bloom --batch-scale half", "--batch-scale: 'half' is no ratio"),
        ("--recipe bloom --measure", "--measure: times updates on a dataset's examples"),
        ("--from-megatron 0:8 9", "--from-megatron: can't read '9'"),
        ("--batch-schedule 64, 5ep: 8 --write-for megatron", "never shrinks"),
        ("--write-for megatrn", "did you mean 'megatron'?"),
    ],
)
def test_mistakes(command, line, sentence):
    outcome = command(main, line)
    assert outcome.code == 2 and sentence in outcome.err


def test_a_run_needs_what_a_look_leaves_open():
    with pytest.raises(UsageError, match="how long it is; give --duration"):
        parse_arguments(TrainOptions, ["--recipe", "bloom"], "train", "")
    options, config = parse_arguments(Options, ["--recipe", "bloom"], "", "", print, True)
    assert options.recipe == "bloom" and config.tokens_per_example == 2048


def test_schedules_of_megatron(command):
    text = "0:768 250B:1536 500B:3072 750B:6144"
    content = json.loads(
        command(main, f"--from-megatron {text} --tokens-per-example 4096 --json").out
    )
    assert [phase["batch_size"] for phase in content["phases"]] == [768, 1536, 3072, 6144]
    assert content["config"]["batch_schedule"] == f"megatron {text}"
    assert content["duration"] == "937.5Btok"
    assert "are samples; with --tokens-per-example" in command(main, f"--from-megatron {text}").out
    follows = "its coupling, linear; that of megatron doesn't follow the batch"
    assert follows in command(main, f"--from-megatron {text}").out
    assert "doesn't follow" not in command(main, f"--from-megatron {text} --coupling none").out
    line = "--batch-schedule 8, 1Ksp: 16 --num-examples 5000 --epochs 1 --write-for megatron"
    assert command(main, line).out == '--step-batch-size-schedule "0:8 1000:16"\n'


def test_a_list_of_levanter(command):
    text = "[{start: 0, value: 32}, {start: 100, value: 64}]"
    rows = json.loads(command(main, f"--from-levanter {text} --duration 300st --json").out)["rows"]
    assert [(row["start_step"], row["batch_size"]) for row in rows] == [(0, 32), (100, 64)]
    out = command(main, f"--from-levanter {text} --duration 300st --write-for levanter").out
    assert parse_schedule(out, "levanter") == parse_schedule(text, "levanter")


@pytest.mark.parametrize("name", recipes)
def test_each_recipe_can_be_shown(command, name):
    recipe, words = recipes[name], ["--recipe", name, "--json"]
    if recipe.sequence_length is None:
        words += ["--tokens-per-example", "4096"]
    if "STAGES" in recipe.batch_schedule:
        words += ["--recipe-stages", "4"]
    if name in ("speedrun", "adabatch", "seesaw"):
        words += ["--duration", "10Btok"]
    if recipe.counts == "first batches":
        words += ["--recipe-batch", "64"]
    if name == "adabatch":
        words += ["--num-examples", "50000", "--no-memory"]
    outcome = command(main, " ".join(words))
    assert outcome.code == 0 and json.loads(outcome.out)["num_steps"] > 1
