"""From a batch to new weights, on any layout: updates, their programs, evaluation, timing.

`make_train_step`, `evaluate`, `TrainState` and `weighted_mean` are public; `runs` takes `Update`
and `set_up`, `reporting` the timings. It knows nothing of networks, of a run or of the disk.
"""
