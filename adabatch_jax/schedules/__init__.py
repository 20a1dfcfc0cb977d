"""What the batch size should be: durations, schedules, their text form, and the plan."""
