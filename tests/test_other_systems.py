"""What only Linux has, and what only Linux and macOS have, is needed by neither core nor `fit`."""

import subprocess
import sys

HIDE = """
import builtins, io, os, signal, sys
import jax, optax  # what these need is their affair

sys.modules["fcntl"] = None
for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "pread", "pwrite",
             "register_at_fork", "sched_getaffinity"):
    delattr(os, name)
del signal.SIGUSR1

def hiding(function):
    def call(path, *args, **kwargs):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return function(path, *args, **kwargs)
    return call

builtins.open = io.open = hiding(open)
os.open, os.stat, os.listdir = map(hiding, (os.open, os.stat, os.listdir))
"""
CORE = """
import adabatch_jax as ab, jax, numpy as np, optax

x = np.arange(60, dtype=np.float32).reshape(20, 3) / 60
source = ab.array_source({"x": x, "y": x.sum(1)})
plan = ab.make_plan("4 x2 every 1ep max 8", num_examples=20, duration="3ep")

def loss_fn(params, model_state, batch, rng):
    errors = (batch["x"] @ params["w"] - batch["y"]) ** 2
    return ab.weighted_mean(errors, batch["weight"]), (model_state, {})

tx = optax.sgd(ab.coupled_learning_rate(plan, 0.1))
state = ab.TrainState.create(params={"w": np.zeros(3, np.float32)}, tx=tx)
step = ab.make_train_step(loss_fn, tx)
for batch in ab.batches(source, plan, seed=0, prefetch=2):
    state, metrics = step(state, batch, jax.random.key(0))

def fit(workdir):
    state = ab.TrainState.create(params={"w": np.zeros(3, np.float32)}, tx=tx)
    with ab.Interruption() as interruption:
        return ab.fit(loss_fn, tx, state, source, plan, workdir=workdir,
                      operation=ab.Operation(interruption=interruption, trackers=[]))

result = fit(None)
assert result.state.step == state.step == plan.num_steps
assert np.allclose(result.state.params["w"], state.params["w"])
"""
FOLDER = """
from adabatch_jax.runs.folder.run_folder import RunFolder
from adabatch_jax.train import main

assert main(["--workdir", sys.argv[1]]) == 2
try:
    fit(sys.argv[1])
except ab.UsageError as error:
    print(error, file=sys.stderr)
for start in (0, plan.num_steps):  # what is asked for, and what is found
    with RunFolder(sys.argv[1], take_over=True) as folder:
        kept = fit(folder)
    assert kept.start_step == start
    assert kept.summary["weights_digest"] == result.summary["weights_digest"]
"""


def test_what_they_lack_is_not_missed_or_told(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HIDE + CORE + FOLDER, tmp_path / "run"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = (
        "orkdir: this system has no locks of files (fcntl), which keep a run's folder; train on "
        "Linux or macOS, or where no other process is at work there --take-over."
    )
    assert done.stderr.splitlines() == [f"error: --w{said}", f"w{said}"]
