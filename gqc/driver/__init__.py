"""The compiler as a list of steps, and what it gives."""
