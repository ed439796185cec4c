#!/usr/bin/env python3
"""Quantize an ONNX model from a checkout: `qruntime convert` without installing it.

python tools/convert.py model.onnx model.int8.onnx --per-channel
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qruntime.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
