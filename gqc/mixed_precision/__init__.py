"""Mixed precision: a scheme for each layer, by measured sensitivity, under a budget."""

from gqc.mixed_precision.found import Chosen, Found
from gqc.mixed_precision.search import search

__all__ = ["Chosen", "Found", "search"]
