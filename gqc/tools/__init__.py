"""Command-line tools: gqc and gqc-opt."""
