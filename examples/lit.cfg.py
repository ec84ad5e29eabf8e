"""The .mlir files here are lit tests, run as those of tests/lit."""

from pathlib import Path

lit_config.load_config(config, str(Path(__file__).parents[1] / "tests" / "lit" / "lit.cfg.py"))
config.name = "examples"
config.test_source_root = str(Path(__file__).parent)
config.test_exec_root = str(Path(config.test_exec_root).parent / "lit-examples")
