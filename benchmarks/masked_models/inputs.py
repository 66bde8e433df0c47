"""Define masked models that change the image first: codes, crops and noise by its hash, denoisers, the 8-bit grid."""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.masked_models.base import Images, MaskedModel
from benchmarks.masked_models.gradients import replace_forward


class Thermometer(MaskedModel):
    """Codes each pixel by how many of 12 thresholds it exceeds (Buckman et al. 2018)."""

    def forward(self, images: Tensor) -> Tensor:
        thresholds = (torch.arange(12) + 0.5) / 12
        code = (images[..., None] > thresholds).float()
        return self.net(code.mean(-1))


class Signs(MaskedModel):
    """Codes each pixel by a sum of signs, as a file of ONNX can hold it."""

    def forward(self, images: Tensor) -> Tensor:
        total = sum(torch.sign(images - (k + 0.5) / 12) for k in range(12))
        return self.net((total + 12) / 24)


def seed_of(image: Tensor) -> int:
    """Return a number that depends on every grey level of an image."""
    content = image.detach().mul(4096).round().short().numpy().tobytes()
    return int.from_bytes(hashlib.md5(content).digest()[:4])


class _Mean(nn.Module):
    """The mean logits over some draws of a change of the image."""

    def __init__(self, model: "HashedNoise", draws: int = 16) -> None:
        super().__init__()
        self.net, self.change, self.draws = model.net, model.change, draws

    def forward(self, images: Tensor) -> Tensor:
        return sum(self.net(self.change(images, seed)) for seed in range(self.draws)) / self.draws


class HashedNoise(MaskedModel):
    """Adds noise whose seed is the image's hash."""

    def forward(self, images: Tensor) -> Tensor:
        return self.net(torch.cat([self.change(image[None], seed_of(image)) for image in images]))

    def open_network(self) -> nn.Module:
        """Return the mean over draws."""
        return _Mean(self)

    @staticmethod
    def change(images: Tensor, seed: int) -> Tensor:
        return images + 0.05 * torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed))


class HashedCrops(HashedNoise):
    """Moves the image by up to three pixels, by the image's hash."""

    @staticmethod
    def change(images: Tensor, seed: int) -> Tensor:
        return images.roll((seed % 7 - 3, seed // 7 % 7 - 3), (-2, -1))


class Median(MaskedModel):
    """Answers by the median of nine pixels around each."""

    def forward(self, images: Tensor) -> Tensor:
        patches = F.unfold(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3)
        return self.net(patches.median(1).values.reshape(images.shape))

    def open_network(self) -> nn.Module:
        return self


class Autoencoder(MaskedModel):
    """Denoises the image by an autoencoder that was trained on test images with noise."""

    def __init__(self, net: nn.Module, known: Images | None = None) -> None:
        super().__init__(net, known)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            layers = [nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.ReLU()]
            self.denoise = nn.Sequential(*layers, nn.Conv2d(8, 1, 3, padding=1))
            optimiser = torch.optim.Adam(self.denoise.parameters(), lr=1e-2)
            for _ in range(150 if known is not None else 0):
                assert known is not None
                clean = known[0][torch.randint(len(known[0]), (16,))]
                loss = F.mse_loss(self.denoise(clean + 0.03 * torch.randn_like(clean).sign()), clean)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.denoise(images))

    def open_network(self) -> nn.Module:
        return self


class Purified(MaskedModel):
    """Takes a step of its own toward its answer first, by a gradient that torch.autograd.grad does not compute."""

    def forward(self, images: Tensor) -> Tensor:
        def lead(inputs: Tensor) -> Tensor:
            return self.net(inputs).log_softmax(1).amax(1).sum()

        step = torch.func.grad(lead)(images.detach())
        return self.net(images + 0.03 * step.sign())


class UndoneEnds(MaskedModel):
    """Undoes changes of 0.02, which are no whole grey levels: their remainder tells their sign."""

    def forward(self, images: Tensor) -> Tensor:
        grey = images.detach() * 255
        rest = grey - grey.floor()
        undone = grey + torch.where((rest - 0.1).abs() < 0.02, -5.1, 0) + torch.where((rest - 0.9).abs() < 0.02, 5.1, 0)
        return self.net(replace_forward(images, undone / 255))


class UndoneFloats(MaskedModel):
    """Answers an image that is off the 8-bit grid by a blurred one, and any other as the network."""

    def forward(self, images: Tensor) -> Tensor:
        off = (images.detach() * 255 - (images.detach() * 255).round()).abs().flatten(1).amax(1) > 0.01
        blurred = F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), 5, 1)
        return self.net(torch.where(off[:, None, None, None], blurred, images))


MODELS: dict[str, type[MaskedModel]] = {
    "thermometer": Thermometer,
    "signs": Signs,
    "hashed noise": HashedNoise,
    "hashed crops": HashedCrops,
    "median": Median,
    "denoising autoencoder": Autoencoder,
    "purified": Purified,
    "undone ends": UndoneEnds,
    "undone floats": UndoneFloats,
}
