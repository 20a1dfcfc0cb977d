import os
import signal
import subprocess
import sys
import threading

import pytest

from adabatch_jax.system import fault_points
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.fault_points import InjectedFault, reach


def test_only_the_nth_time_of_the_named_point(faults):
    faults("step.begin:3:nan, step.end:1:nan,step.begin:5:raise")
    seen = [(reach("step.begin"), reach("batch.ready")) for _ in range(4)]
    assert seen == [(None, None), (None, None), ("nan", None), (None, None)]
    assert reach("step.end") == "nan"
    with pytest.raises(InjectedFault, match="step.begin"):
        reach("step.begin")
    assert reach("step.begin") is None


def test_what_is_to_come_before_a_fault_comes_only_with_it(faults):
    faults("metrics.mid_line:2:nan")
    calls = []
    reach("metrics.mid_line", before=lambda: calls.append("first"))
    reach("metrics.mid_line", before=lambda: calls.append("second"))
    assert calls == ["second"]


def test_points_reached_by_several_threads_are_counted_together(faults):
    faults("save.mid:50:nan")
    seen = []
    threads = [
        threading.Thread(target=lambda: seen.extend(reach("save.mid") for _ in range(25)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, seen)) == ["None"] * 99 + ["nan"]


def test_sleep_takes_the_seconds_that_it_is_told(faults, monkeypatch):
    slept = []
    monkeypatch.setattr(fault_points.time, "sleep", slept.append)
    faults("eval.mid:1:sleep:2.5")
    assert reach("eval.mid") is None and slept == [2.5]


@pytest.mark.parametrize("name", ["sigterm", "sigint", "sigusr1"])
def test_signals_go_to_this_process(faults, name):
    number, heard = getattr(signal, name.upper()), []
    before = signal.signal(number, lambda number, _: heard.append(number))
    try:
        faults(f"step.end:1:{name}")
        reach("step.end")
    finally:
        signal.signal(number, before)
    assert heard == [number]


@pytest.mark.parametrize("action", ["", ":kill9"])
def test_the_process_ends_by_sigkill(action):
    code = "from adabatch_jax.system.fault_points import reach\nreach('gc.mid')\nprint('on')\nreach('gc.mid')"
    environment = {**os.environ, fault_points.VARIABLE: f"gc.mid:2{action}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "text",
    [
        "step",
        "step.begin",
        "step.begin:0",
        "step.begin:x",
        "step.begin:1:burn",
        "nowhere:1",
        "step.begin:1:sleep",
        "step.begin:1:sleep:nan",
        "step.begin:1:raise:2",
        "step.begin:1,",
    ],
)
def test_what_can_not_be_meant_is_refused(faults, text):
    faults(text)
    with pytest.raises(UsageError, match="ADABATCH_FAULT"):
        reach("step.begin")
