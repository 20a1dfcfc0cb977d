"""Kills, signals and damage at random for as long as asked for; a seed repeats them.

ADABATCH_SOAK_KILLS=200 ADABATCH_SOAK_SEED=1 python -m pytest -m soak -s tests/faults
"""

import os
import random
import signal
import time
from collections import Counter

import pytest

from tests.faults.damage import damage_at_random
from tests.faults.harness import SETTINGS, assert_rows_follow, assert_same, wait_for_training

pytestmark = pytest.mark.soak

NUM_KILLS = int(os.environ.get("ADABATCH_SOAK_KILLS", "60"))
SEED = int(os.environ.get("ADABATCH_SOAK_SEED", "0"))
LONG = "--epochs 6.3"
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 143}


def inode(run, step):
    """What a checkpoint's folder keeps when it is renamed."""
    return run.checkpoint(step).stat().st_ino


def test_a_soak(oracle, begin, tmp_path):
    draw, total = random.Random(SEED), Counter(kills=0, stops=0, damaged=0)
    while total["kills"] < NUM_KILLS:
        setting = draw.choice(list(SETTINGS))
        whole, run = oracle(setting, LONG), begin(setting, LONG)
        run.workdir = tmp_path / f"run{total['runs']}"
        damaged = set()
        while not (run.workdir / "report.html").exists():
            sound = [step for step in run.steps() if inode(run, step) not in damaged]
            if total["kills"] < NUM_KILLS and len(sound) > 1 and draw.random() < 0.25:
                damaged.add(inode(run, sound[-1]))
                print(damage_at_random(run.checkpoint(sound.pop()), draw))
                total["damaged"] += 1
            number = draw.choices(list(CODES), [7, 1, 1, 1])[0]
            process = run.start()
            if total["kills"] < NUM_KILLS:
                if draw.random() < 0.8:
                    wait_for_training(run, process)
                    time.sleep(draw.uniform(0, 0.7))
                else:
                    time.sleep(draw.uniform(0, 3))
                process.send_signal(number)
            code = process.wait(timeout=240)
            # It may have been done first, or too young to have a handler.
            assert code in (0, CODES[number], -number), process.communicate()
            total["kills"] += code == CODES[signal.SIGKILL]
            total["stops"] += code in (130, 143)
            outcome = run.ended(process, sound[-1] if sound else None, code)
            print(f"{setting}: {number.name} -> {code} at {run.newest()} ({outcome.resumed_after})")
            if (run.workdir / "metrics.jsonl").exists():
                assert_rows_follow(run, whole)
        assert_same(run, whole)
        total["runs"] += 1
        print(f"survived so far (seed {SEED}): {dict(total)}")
