"""A network of tokens that begins with another one's weights, made for sequences of another length."""

import jax
import numpy as np
import pytest

from adabatch_jax.config import TrainConfig
from adabatch_jax.config.gpt_settings import GPTSettings
from adabatch_jax.config.settings import DataSettings
from adabatch_jax.data.datasets.known_datasets import DatasetSpec, TextSpec
from adabatch_jax.runs.configured_model import configured_model
from adabatch_jax.runs.initial_weights import with_given_weights
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.weights_digest import named_arrays

SMALL = {"width": 8, "num_layers": 1, "num_heads": 2}


def network(length, init_from=None, seed=0, **shape):
    config = TrainConfig(
        dataset="text:a.txt", model="gpt_nano", data=DataSettings(sequence_length=length),
        gpt=GPTSettings(**SMALL, **shape), init_from=init_from, seed=seed,
    )  # fmt: skip
    spec = DatasetSpec("text:a.txt", 16, None, "test", 9, (), (), text=TextSpec(length, "bytes"))
    return config, spec, configured_model(config, spec)


def written(path, made):
    arrays = named_arrays({"params": made.params})
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})
    return str(path)


@pytest.mark.parametrize("shape", [{}, {"positions": "learned", "num_positions": 16}])
def test_longer_sequences_begin_with_the_weights_of_shorter_ones(tmp_path, shape):
    *_, short = network(8, **shape)
    made, given = with_given_weights(
        *network(16, written(tmp_path / "w.npz", short), seed=1, **shape)
    )
    assert not given.anew
    assert jax.tree.all(jax.tree.map(np.array_equal, made.params, short.params))


def test_learned_positions_of_another_number_are_told(tmp_path):
    shape = {"positions": "learned", "num_positions": 8}
    file = written(tmp_path / "w.npz", network(8, **shape)[-1])
    shape["num_positions"] = 16
    with pytest.raises(UsageError, match=r"w.npz' has 8 learned positions, and gpt_nano 16 here"):
        with_given_weights(*network(16, file, **shape))
