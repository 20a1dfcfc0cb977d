"""What a plan costs on given hardware: measured updates, a model of them, and predictions."""

from adabatch_jax.costs.model import UpdateCost, fit_update_cost, largest_paying_size
from adabatch_jax.costs.prediction import PhaseCost, Prediction, predict

__all__ = [
    "PhaseCost",
    "Prediction",
    "UpdateCost",
    "fit_update_cost",
    "largest_paying_size",
    "predict",
]
