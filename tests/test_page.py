"""The code of `adabatch_jax/README.md`, section by section, as it stands there."""

import importlib.util
import re

import jax
import numpy as np
import pytest

from adabatch_jax.data.epoch_order import example_indices
from tests.pages import ROOT, anchors_of, blocks_of

PAGE = ROOT / "adabatch_jax" / "README.md"
SHARED, *PARTS = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
GUESSED = np.log(2)  # the loss of who doesn't look
SECTIONS = dict(part.split("\n", 1) for part in PARTS)


def code_of(text):
    return "\n".join(blocks_of(text))


@pytest.mark.parametrize("heading", SECTIONS)
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_section_runs_and_does_what_it_says(heading):
    names = {"__name__": "page"}
    with jax.numpy_rank_promotion("allow"):  # as in a user's program
        exec(code_of(SHARED), names)
        try:
            exec(code_of(SECTIONS[heading]), names)
        except ModuleNotFoundError as error:
            if importlib.util.find_spec(error.name.partition(".")[0]):
                raise  # it is there, but not that part of it
            pytest.skip(f"needs the package {error.name}, which isn't installed")
    plan = names["plan"]
    if "seen" in names:
        assert [len(ids) for ids in names["seen"]] == [step.num_real for step in plan.steps()]
        ids = np.concatenate(names["seen"])
        assert all(sorted(epoch) == list(range(64)) for epoch in ids.reshape(6, 64).tolist())
        if "batch_indices" in SECTIONS[heading]:
            assert ids.tolist() == example_indices(64, 0, 0, 384).tolist()
    if "losses" in names:
        assert names["losses"][0] == pytest.approx(GUESSED) and names["losses"][-1] < 0.6 * GUESSED
    if "result" in names:
        state = names["result"].state
        whole = {"x": names["x"], "label": names["label"], "weight": np.ones(64, np.float32)}
        loss, _ = names["loss_fn"](state.params, state.model_state, whole, jax.random.key(0))
        ended = names["result"].summary.get("stopped_by", {"step": plan.num_steps})["step"]
        assert state.step == ended and loss < 0.7 * GUESSED


def test_each_is_short():
    for heading, text in SECTIONS.items():
        assert blocks_of(text), heading
        for block in blocks_of(text):
            assert len([line for line in block.splitlines() if line]) <= 22, heading


def test_each_is_in_the_tables():
    links = re.findall(r"\]\(#([^)]+)\)", PAGE.read_text())
    assert sorted(links) == sorted(anchors_of(PAGE.read_text())[1:])
