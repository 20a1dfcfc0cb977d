"""A user's own functions, named by a setting."""

import json
import sys

import pytest

from adabatch_jax.config import TrainConfig
from adabatch_jax.config.files import load_config
from adabatch_jax.config.own_functions import is_reference, load_function, reference_to
from adabatch_jax.config.value_texts import is_path
from adabatch_jax.system.errors import UsageError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


@pytest.mark.parametrize(
    "text, is_function, path",
    [
        ("mnist", False, False),
        ("mnist:3.0.1", False, False),
        ("cifar10_corrupted/fog_1:1.0.0", False, False),
        ("mine:load", True, False),
        ("own.mine:load", True, False),
        ("own/mine.py:load", True, False),
        ("./mine.py:load", True, True),
        ("./photos", False, True),
        ("..", False, True),
        ("~/photos", False, True),
        ("/data/photos", False, True),
        ("photos", False, False),
        ("data.NPZ", False, True),
    ],
)
def test_what_a_text_can_only_be(text, is_function, path):
    assert (is_reference(text), is_path(text)) == (is_function, path)


def test_modules_come_from_the_current_folder(here):
    (here / "mine.py").write_text("def load(): return 42\nnumber = 1\n")
    assert load_function("mine:load", "dataset")() == 42
    assert load_function("mine.py:load", "dataset")() == 42
    for text, words in {
        "mine:laod": "'mine' has no 'laod'; did you mean 'load'",
        "mine:number": "'number' of 'mine' is no function",
        "yours:load": "there is no module 'yours', neither in .* nor installed",
        "yours.py:load": "there is no file 'yours.py'",
    }.items():
        with pytest.raises(UsageError, match=f"^dataset: .*{words}"):
            load_function(text, "dataset")
    (here / "broken.py").write_text("1 / 0")
    for text in ("broken:load", "broken.py:load"):
        with pytest.raises(UsageError, match="fails with ZeroDivisionError"):
            load_function(text, "dataset")


def test_a_configuration_holds_a_function_s_name(here):
    (here / "conf.py").write_text(
        "from adabatch_jax import config as c\n"
        "def load(): return 'loaded'\n"
        "config = c.TrainConfig(dataset=load)\n"
    )
    config = load_config("conf.py")
    assert config.dataset == "conf.py:load"
    assert load_function(config.dataset, "dataset")() == "loaded"
    (here / "config.json").write_text(json.dumps(config.to_dict()))
    assert load_config("config.json") == config
    assert TrainConfig(dataset=load_config).dataset == "adabatch_jax.config.files:load_config"


def test_a_function_without_a_name_is_refused():
    for function in (lambda: 0, TrainConfig().plan):
        with pytest.raises(UsageError, match="can't be named in a configuration; define it"):
            reference_to(function)
    with pytest.raises(UsageError, match="^dataset: .*define it with `def`"):
        TrainConfig(dataset=lambda: 0)


@pytest.mark.parametrize(
    "dataset, start",
    [
        ("./photos", "photos-"),
        ("/data/own photos/", "own_photos-"),
        ("..", "data-"),
        ("own/mine.py:load", "own_mine.py_load-"),
        ("cifar10_corrupted/fog_1:1.0.0", "cifar10_corrupted_fog_1_1.0.0-"),
    ],
)
def test_a_run_s_name(dataset, start):
    assert TrainConfig(dataset=dataset).run_name == f"{start}cnn_digits"
