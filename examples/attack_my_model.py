"""Attack a model of your own: any torch module from images in [0, 1] to logits.

Run: python examples/attack_my_model.py
"""

import torch
from torch import nn

import trustcxr as tx

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 3))
images = torch.rand(8, 1, 64, 64)  # your images: (B, 1, H, W) in [0, 1]
labels = model(images).argmax(1)  # your labels: (B,)

adversarial = tx.attacks.pgd(model, images, labels, epsilon=0.02, steps=20)
accuracy = (model(adversarial).argmax(1) == labels).float().mean()
print(f"largest change of a pixel: {float((adversarial - images).abs().max()):.3f}")
print(f"answers that stay under PGD-20 at epsilon 0.02: {float(accuracy):.0%} of {len(images)} random images")
