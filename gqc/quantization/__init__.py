"""Quantize a model in memory: which layers, under what their inputs tell, part by part."""

from gqc.quantization.quantize import quantize
from gqc.quantization.quantized import Fact, Quantized

__all__ = ["Fact", "Quantized", "quantize"]
