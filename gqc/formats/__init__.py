"""Formats: the tables of elements, packings and layouts, and their numerics."""
