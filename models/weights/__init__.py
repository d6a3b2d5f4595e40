"""One strict way to trained weights, in each of their forms: an adapter's folder, an exported file, a checkpoint, or
nothing, which is the base."""

from stagecoach.models.weights.card import AdapterCard
from stagecoach.models.weights.network import load_network
from stagecoach.models.weights.opening import Weights, open_weights

__all__ = ["AdapterCard", "Weights", "load_network", "open_weights"]
