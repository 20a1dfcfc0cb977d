"""Several processes train as one does: the same examples, rates and numbers."""

from collections import Counter

import jax
import numpy as np
import pytest

import adabatch_jax as ab
from tests.cluster import training
from tests.cluster.groups import run, sound

QUICK = ["whole_loop", "resident", "sharded", "not_finite"]
ALL = [*QUICK, "ragged_loop", "streaming", "ragged", "split", "weighted", "early"]
WITH_MARKER = "only with -m cluster"
GROUPS = [
    pytest.param((2, 2), id="2x2"),
    pytest.param((2, 1), id="2x1", marks=pytest.mark.cluster),
    pytest.param((4, 1), id="4x1", marks=pytest.mark.cluster),
]


@pytest.fixture(scope="module", params=GROUPS)
def told(request, tmp_path_factory):
    count, devices = request.param
    what = QUICK if request.param == (2, 2) else ALL
    folder = tmp_path_factory.mktemp("group")
    return sound(run(folder, what, count, devices, seconds=300))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """`alone("resident")`: the same of one process with one device, this one."""
    mesh, known = training.make_mesh(jax.devices()[:1]), {}

    def of(what):
        if what not in known:
            if what in training.LAYOUTS:
                known[what] = training.laid_out(mesh, what)
            else:
                folder = tmp_path_factory.mktemp("alone")
                known[what] = training.KINDS[what](ab.cluster.current(), folder, mesh)
        return known[what]

    return of


def order(epoch):
    """The documented order of an epoch, written down once more."""
    sequence = np.random.SeedSequence([training.SEED, epoch, training.NUM_EXAMPLES])
    numbers = np.random.Philox(sequence).random_raw(training.NUM_EXAMPLES)
    return np.argsort(numbers, kind="stable")


def in_numpy():
    """The examples of each update, and its loss, in numpy: sizes 16, 30 and 64, an epoch each."""
    examples = np.concatenate([order(epoch) for epoch in range(3)])
    params = {k: v.astype(np.float64) for k, v in training.make_params().items()}
    speed = {name: np.zeros_like(value) for name, value in params.items()}
    begin, ids, losses, sizes = 0, [], [], []
    while begin < 3 * training.NUM_EXAMPLES:
        size = 16 if begin < training.NUM_EXAMPLES else 30 if begin < 2 * 203 else 64
        now = examples[begin : begin + size]
        x, y = training.X[now].astype(np.float64), training.Y[now].astype(np.float64)
        hidden = np.tanh(x @ params["w1"] + params["b1"])
        error = hidden @ params["w2"] - y
        back = 2 * error[:, None] / len(now) * params["w2"] * (1 - hidden**2)
        gradients = {
            "w1": x.T @ back, "b1": back.sum(0), "w2": hidden.T @ (2 * error / len(now)),
        }  # fmt: skip
        ids.append(now.tolist())
        losses.append(np.mean(error**2))
        sizes.append(size)
        for name, gradient in gradients.items():
            speed[name] = training.MOMENTUM * speed[name] + gradient
            params[name] = params[name] - training.RATE * size / 16 * speed[name]
        begin += size
    x = training.X[training.NUM_EXAMPLES :]
    outputs = np.tanh(x @ params["w1"] + params["b1"]) @ params["w2"]
    near = np.mean(np.abs(outputs - training.Y[training.NUM_EXAMPLES :]) < 0.5)
    return ids, losses, sizes, near


@pytest.mark.parametrize("what", ["whole_loop", "ragged_loop"])
def test_a_loop_of_ones_own_sees_the_plans_examples_and_numpys_losses(told, what):
    if what not in told:
        pytest.skip(WITH_MARKER)
    ids, losses, _, near = in_numpy()
    for step, expected in enumerate(ids):
        parts = [one["updates"][step]["here"] for one in told[what]]
        merged = {int(row): index for part in parts for row, index in part.items()}
        assert sum(map(len, parts)) == len(expected)
        assert [merged[row] for row in range(len(expected))] == expected
    for one in told[what]:
        np.testing.assert_allclose([u["loss"] for u in one["updates"]], losses, rtol=1e-5)
        assert one["near"] == near, "an evaluation counts exactly"


def test_each_process_reads_its_rows_only(told):
    """Those that `host_rows` says, and of padding at most the first example of a batch."""
    ids = in_numpy()[0]
    processes = told["whole_loop"]
    num_devices = len(processes) * (2 if len(processes) == 2 and "streaming" not in told else 1)
    for index, one in enumerate(processes):
        own, padding = Counter(), Counter()
        for expected in ids:
            rows = ab.host_rows(len(expected), None, index, len(processes), num_devices)
            own.update(expected[row] for row in rows)
            padding[expected[0]] += num_devices
        asked = Counter({int(example): n for example, n in one["asked"].items()})
        # A batch's types are looked at with one example before.
        too_many = asked - own
        assert not own - asked
        assert all(n <= padding[example] + 1 for example, n in too_many.items())


@pytest.mark.parametrize("what", training.LAYOUTS)
def test_fit_has_the_rows_of_one_process(told, alone, what):
    if what not in told:
        pytest.skip(WITH_MARKER)
    expected, sizes = alone(what), in_numpy()[2]
    for one in told[what]:
        assert (one["step"], one["stopped"]) == (expected["step"], False)
        same_rows(one["rows"], expected["rows"])
        assert one["weights"] == told[what][0]["weights"]
        for row in one["rows"]:
            assert row["batch_size"] == sizes[row["step"] - 1]
            rate = training.RATE * row["batch_size"] / sizes[0]
            assert row["learning_rate"] == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize("policy", ["skip:2", "rollback"])
def test_what_is_not_finite_is_met_alike(told, alone, policy):
    expected = alone("not_finite")[policy]
    assert [d["kind"] for d in expected["decisions"]] == [policy.partition(":")[0]]
    for one in told["not_finite"]:
        assert one[policy]["decisions"] == expected["decisions"]
        same_rows(one[policy]["rows"], expected["rows"])


def test_a_rule_about_seconds_ends_all_at_the_same_update(told):
    if "early" not in told:
        pytest.skip(WITH_MARKER)
    first, *others = told["early"]
    for one in others:
        assert one["step"] == first["step"]
        assert one["bits"] == first["bits"]


def same_rows(rows, expected):
    """Counts, sizes, rates and digests of examples are equal; losses to 1e-5."""
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for key, value in other.items():
            if key.startswith("train_"):
                assert row[key] == pytest.approx(value, rel=1e-5), (key, row["step"])
            else:
                assert row[key] == value, (key, row["step"])
