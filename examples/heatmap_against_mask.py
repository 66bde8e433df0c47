"""Measure whether a saliency map lies on the disease, against a baseline map that knows nothing of the model.

Run: python examples/heatmap_against_mask.py [DATA]
"""

import sys
import tempfile

import torch

import trustcxr as tx

model = tx.load_model("covid-evidence")
with tempfile.TemporaryDirectory() as folder:
    path = sys.argv[1] if len(sys.argv) > 1 else tx.data.phantom.write(folder, {"Test": 4}, size=64)
    data = tx.load_dataset(path, split="Test", size=model.size)
    images = torch.from_numpy(data.images[:] / 255).float()
    masks = torch.from_numpy(data.masks("infection")[:] > 0)
masked = masks.flatten(1).any(1)
images, masks = images[masked], masks[masked]
centre = tx.explain.centre_prior(model.size, model.size).expand(len(images), -1, -1)
for name, maps in (("Grad-CAM", tx.explain.grad_cam(model, images)), ("baseline: centre", centre)):
    energy = tx.explain.measures.energy_inside(maps, masks).nanmean()
    print(f"{name}: {float(energy):.1%} of the map lies inside the infection mask, {len(images)} images")
print(f"chance: {float(masks.float().mean()):.1%}, the masks' share of the image")
