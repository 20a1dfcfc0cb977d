"""Plans of runs that were prolonged, again and again."""

import pytest

from adabatch_jax.config import TrainConfig
from adabatch_jax.resuming import _replanned


@pytest.mark.parametrize("remainder", ["carry", "partial", "drop"])
@pytest.mark.parametrize("schedule", ["7", "4 x2 every 1ep max 32", "30, 35st: 9"])
def test_planned_again_as_it_was_prolonged(schedule, remainder):
    config = TrainConfig(batch_schedule=schedule, remainder=remainder, epochs=1.3)
    plan = config.plan(100)
    for epochs in (1.3, 1.71, 1.71, 2.5, 4.05, 9):
        longer = TrainConfig(batch_schedule=schedule, remainder=remainder, epochs=epochs)
        prolonged = _replanned(longer, 100, plan, plan.num_samples)
        # What was done stays as it was, and the rest follows the schedule.
        done = list(plan.steps())
        assert list(prolonged.steps())[: len(done)] == done
        assert prolonged.num_samples == round(100 * epochs)
        for step in range(0, prolonged.num_steps, 3):
            # Stopped anywhere on the way, it is planned the same again.
            position = prolonged.samples_at(step)
            again = _replanned(longer, 100, prolonged, position)
            if position >= plan.num_samples:
                assert again.fingerprint() == prolonged.fingerprint()
            assert again.fingerprint(position) == prolonged.fingerprint(position)
        plan = prolonged
