"""Checkpoints: quantized models on disk, read without quantizing anything again."""
