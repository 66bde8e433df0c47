"""Define what every masked model has: the undefended network inside, the images that it may know, and the truth."""

from copy import deepcopy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr.attacks import pgd, worst_case
from trustcxr.models.preserve_state import preserve_state

Images = tuple[Tensor, Tensor]  # (N, 1, H, W) in [0, 1] and labels (N,)


class Truth(NamedTuple):
    """Accuracy of a masked model, as a user gets it: unperturbed, and under an attack that knows the model."""

    clean: float
    attacked: float


class SmallNetwork(nn.Module):
    """Two convolutions and a linear layer, pixel space to logits; the linear layer can be written in other forms."""

    def __init__(self, side: int, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4) if side >= 32 else nn.Identity(),
            nn.Flatten(),
        )
        self.head = nn.Linear(32 * (16 if side >= 32 else (-(-side // 4)) ** 2), classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body((images - 0.5) / 0.25))


def fit_network(images: Tensor, labels: Tensor, *, epochs: int = 8, classes: int = 3, seed: int = 0) -> SmallNetwork:
    """Train the undefended network on images (N, 1, H, W) in [0, 1] and labels (N,); evaluation mode."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = SmallNetwork(images.shape[-1], classes).train()
        optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(64):
                optimiser.zero_grad()
                F.cross_entropy(net(images[rows]), labels[rows]).backward()
                optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return net.eval()


class MaskedModel(nn.Module):
    """A network that hides the gradient of the network inside, or that answers differently during an audit."""

    def __init__(self, net: nn.Module, known: Images | None = None) -> None:
        super().__init__()
        self.net, self.known = net, known
        self.eval()

    def open_network(self) -> nn.Module:
        """Return the network that an attack climbs if it knows this model."""
        return self.net

    def answer(self, images: Tensor) -> Tensor:
        """Return logits (B, C) as a user gets them, who asks about one image after the other."""
        return torch.cat([self(image[None]) for image in images])


def measure_truth(model: MaskedModel, images: Tensor, labels: Tensor, *, epsilon: float, steps: int = 40) -> Truth:
    """Measure the truth of a new instance of a masked model on images of known class."""
    climbed, right = deepcopy(model.open_network()), []
    climbs = [
        pgd(climbed, images, labels, epsilon=epsilon, steps=steps),
        worst_case(climbed, images, labels, epsilon=epsilon, steps=steps, queries=20),
    ]
    # The 8-bit grid within the ball: a model may undo what does not lie on it.
    climbs += [images + ((climb - images) * 255).trunc() / 255 for climb in climbs]
    with torch.no_grad(), preserve_state(model):
        for tried in [*climbs, images]:
            torch.manual_seed(0)
            right.append(deepcopy(model).answer(tried).argmax(1) == labels)
    return Truth(float(right[-1].float().mean()), float(torch.stack(right).all(0).float().mean()))
