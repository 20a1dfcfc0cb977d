"""What takes longer than it may: all stacks are written, and exit code 42 asks for a restart."""

import pytest

from tests.faults.harness import assert_same, finish

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    "point", ["step.begin:20", "batch.ready:20", "eval.mid:3", "save.mid:2", "save.before:2"]
)
@pytest.mark.parametrize("setting", ["carry", "two_streams"])
def test_a_stall(oracle, begin, setting, point):
    run = begin(setting)
    outcome = run.go(f"{point}:sleep:600", code=42, further="--stall-timeout 15s")
    (said,) = outcome.err.splitlines()
    assert "15" in said
    logs = [path for path in run.workdir.iterdir() if path.is_file() and str(path) in said]
    assert logs and "fault_points.py" in logs[0].read_text()  # where it hangs
    run.go(further="--stall-timeout 15s")
    assert_same(run, oracle(setting))


def test_an_error_nobody_expected(oracle, begin):
    """Exit code 1 with a traceback, and the run goes on afterwards."""
    run = begin("carry")
    for point in ("step.end:20", "save.before:2", "save.mid:2", "eval.mid:2"):
        outcome = finish(run.start(f"{point}:raise"))
        assert outcome.code in (1, 5) and "ADABATCH_FAULT asks for an error" in (
            outcome.err + outcome.out
        ), outcome
    run.go()
    assert_same(run, oracle("carry"))
