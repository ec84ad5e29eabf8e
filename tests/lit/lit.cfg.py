"""lit configuration: every .mlir file below here is a test."""

import sys
from pathlib import Path

import lit.formats

here = Path(__file__).parent
scripts = Path(sys.executable).parent

config.name = "gqc"
config.test_format = lit.formats.ShTest(execute_external=False)
config.suffixes = [".mlir"]
config.test_source_root = str(here)
config.test_exec_root = str(here.parents[1] / "build" / "lit")
config.environment["PYTHONDONTWRITEBYTECODE"] = "1"
config.substitutions += [
    (rf"(?<![-/.\w]){tool}(?![-/.\w])", str(scripts / tool))
    for tool in ("gqc-opt", "xdsl-opt", "filecheck", "python")
]
