"""Audit an ONNX file: a zoo model is exported first, so that the example needs no file of yours.

Run: python examples/audit_onnx.py [MODEL.yaml DATA]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import trustcxr as tx

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    model, data = sys.argv[1:3] if len(sys.argv) > 2 else (folder / "model.yaml", folder / "images")
    if len(sys.argv) <= 2:
        tx.data.phantom.write(data, {"Test": 8}, size=64)
        export = ["export", "covid-standard", "--out", folder / "model.onnx"]
        subprocess.run([sys.executable, "-m", "trustcxr", *export], check=True)
    audit = tx.audit.run(model, data, attacks=["fgsm"], epsilons=[0.02])
    print(audit.table().to_string(index=False))
