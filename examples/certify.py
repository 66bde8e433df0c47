"""Prove for which images the answer of a certified model cannot change.

Run: python examples/certify.py [DATA]
"""

import sys
import tempfile

import torch

import trustcxr as tx

model = tx.load_model("covid-certified")
with tempfile.TemporaryDirectory() as folder:
    path = sys.argv[1] if len(sys.argv) > 1 else tx.data.phantom.write(folder, {"Test": 4}, size=64)
    data = tx.load_dataset(path, split="Test", size=model.size)
    images = torch.from_numpy(data.images[:24] / 255).float()
for epsilon in (0.005, 0.01, 0.02):
    proved = tx.certify.prove(model, images, epsilon=epsilon)
    print(f"epsilon {epsilon:g}: {int(proved.sum())} of {len(images)} answers are proved not to change")
