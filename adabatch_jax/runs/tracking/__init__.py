"""Where a run is shown beside its own folder, while it goes: TensorBoard, Weights & Biases, yours.

Nothing that a run computes or keeps depends on what lies here.
"""
