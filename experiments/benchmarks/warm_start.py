"""Starting again with a cache of compiled programs.

    python -m experiments.benchmarks.warm_start FOLDER

trains two updates with the cache in FOLDER, and prints where the seconds of its start went.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter

from experiments.benchmarks.options import Options
from experiments.benchmarks.rows import Row, Target
from experiments.benchmarks.timing import ratio

_SCHEDULE = "64, 1st: 128"
_EVENTS = {
    "jaxpr_trace_duration": "tracing",
    "jaxpr_to_mlir_module_duration": "lowering",
    "backend_compile_duration": "compiler",
}


def run(options: Options) -> list[Row]:
    """Starts training twice in new processes, with a cache that the first one fills."""
    cold, warm = [], []
    for _ in range(1 if options.quick else 2):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(_start(folder))
            warm.append(_start(folder))

    def seconds(starts, what):
        return [start[what] for start in starts]

    beside = {}
    for what in (*_EVENTS.values(), "start"):
        first, second = min(seconds(cold, what)), min(seconds(warm, what))
        beside[f"{what} (s)"] = f"{first:.2f}, then {second:.2f}"
    return [
        Row(
            "second start with a warm cache: seconds in the backend compiler / first start's",
            ratio(seconds(warm, "compiler"), seconds(cold, "compiler")),
            Target(at_most=0.2),
            note="ResNet-20, two batch sizes, in new processes; a start is from import to the end.",
            beside=beside,
        )
    ]


def _start(folder: str) -> dict[str, float]:
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}
    for name in ("DIR", "ENTRY_SIZE_BYTES", "TIME_SECS"):
        environment = {k: v for k, v in environment.items() if not k.endswith(f"CACHE_{name}")}
    done = subprocess.run(
        [sys.executable, "-m", __name__, folder],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def _train(folder: str) -> dict[str, float]:
    start = time.perf_counter()
    import jax

    from adabatch_jax.training import compilation_cache
    from experiments.benchmarks.training import resnet20

    compilation_cache.enable(folder)
    seconds: Counter[str] = Counter()

    def listen(event: str, duration: float, **_) -> None:
        name = event.rsplit("/", 1)[-1]
        if name in _EVENTS:
            seconds[_EVENTS[name]] += duration

    jax.monitoring.register_event_duration_secs_listener(listen)
    training = resnet20()
    training.fit(training.plan(_SCHEDULE, "2st"))
    return {**seconds, "start": time.perf_counter() - start}


if __name__ == "__main__":
    print(json.dumps(_train(sys.argv[1])))
