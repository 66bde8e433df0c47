"""Classify one chest X-ray with a robust model that comes with the package. Research software, not for diagnosis.

Run: python examples/robust_model.py [IMAGE]
"""

import sys
import tempfile
from pathlib import Path

import trustcxr as tx

with tempfile.TemporaryDirectory() as folder:
    drawn = Path(folder) / "images"  # synthetic images, if you give none
    image = sys.argv[1] if len(sys.argv) > 1 else next(tx.data.phantom.write(drawn, {"Test": 1}).rglob("images/*.png"))
    answer = tx.predict("covid-robust", image, out=folder)[0]
print(f"class: {answer.predicted or 'none'}")
print("probabilities:", {name: round(value, 2) for name, value in answer.probabilities.items()})
print("the class stays within epsilon 0.02 under:", [name for name, stays in answer.survives.items() if stays])
for doubt in answer.warnings:
    print("doubt:", doubt)
