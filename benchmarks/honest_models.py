"""Ask the entry checks about honest models: none of them may fail a check that masked models fail.

    python -m benchmarks.honest_models --data PATH [--size 32] [--images 40] [--external MODEL.yaml ...] > honest.csv

Small networks are trained on some of the training images; `--images` validation images are examined. A declaration at
chance is no false alarm: it is true of a network that has learned little.
"""

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.masked_models import Images, fit_network
from trustcxr import defences
from trustcxr.audit.entry_checks import check_afterwards, run_entry_checks
from trustcxr.audit.formats import load
from trustcxr.data import load_dataset, read_manifest
from trustcxr.data.loader import to_pixels
from trustcxr.models import factory
from trustcxr.models.classifier import LungGate

CLASSES = ("COVID-19", "Non-COVID", "Normal")
OTHER = {"declaration", "conversion", "gradients", "nothing stops gradients", "logits", "one pass"}


class Ensemble(nn.Module):
    """The mean logits, or the mean probabilities, of some networks."""

    def __init__(self, *nets: nn.Module, shares: bool = False) -> None:
        super().__init__()
        self.nets, self.shares = nn.ModuleList(nets), shares
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.stack([net(images) for net in self.nets])
        return logits.softmax(2).mean(0) if self.shares else logits.mean(0)


class Gated(nn.Module):
    """A network behind a lung gate."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.gate, self.net = LungGate(), net
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.gate(images) + self.gate.level)


class Storing(nn.Module):
    """A network that stores its last answer and its input, as programs for maps do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.last: dict[str, Tensor] = {}
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.last = {"images": images, "logits": self.net(images)}
        return self.last["logits"]


def fit(net: nn.Module, data: Images, defence: str = "standard", epochs: int = 2, **options: Any) -> nn.Module:
    """Train a network by a defence; evaluation mode."""
    with torch.enable_grad():
        torch.manual_seed(0)
        optimiser, (images, labels) = torch.optim.Adam(net.train().parameters(), lr=2e-3), data
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(64):
                optimiser.zero_grad()
                if defence == "standard":
                    loss = F.cross_entropy(net(images[rows]), labels[rows])
                else:
                    loss, _ = defences.get(defence)(net, images[rows], labels[rows], epsilon=0.02, **options)
                loss.backward()
                optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return net.eval()


def models(data: Images, size: int, out: Path) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield name, model and options of each honest model."""
    small = [fit_network(*data, epochs=4, seed=seed) for seed in range(3)]
    yield from ((f"small, seed {seed}", net, {}) for seed, net in enumerate(small))
    yield "small, FGSM", fit(fit_network(*data, epochs=1), data, "fgsm"), {}
    yield "small, PGD", fit(fit_network(*data, epochs=1), data, "pgd", steps=3), {}
    yield "small, TRADES", fit(fit_network(*data, epochs=1), data, "trades", steps=3), {}
    yield "ensemble of logits", Ensemble(*small), {}
    yield "ensemble of probabilities", Ensemble(*small, shares=True), {"output": "probabilities"}
    yield "probabilities", nn.Sequential(small[0], nn.Softmax(1)).eval(), {"output": "probabilities"}
    yield "gated", Gated(small[0]), {}
    yield "storing", Storing(small[0]), {}
    for name in ("plain3", "evidence-33", "evidence-full"):
        yield name, fit(factory.build(name, classes=3, weights="none"), data), {}
    vit = timm.create_model("vit_tiny_patch16_224", img_size=size, patch_size=8, in_chans=1, depth=4, num_classes=3)
    yield "ViT", fit(vit, data), {}
    resnet = timm.create_model("resnet10t", in_chans=1, num_classes=3)
    yield "ResNet", fit(resnet, data), {}
    yield "MobileNet", fit(timm.create_model("mobilenetv3_small_050", in_chans=1, num_classes=3), data), {}
    torch.jit.trace(small[0], data[0][:2]).save(str(out / "net.pt"))
    yield "TorchScript", out / "net.pt", {"trust_code": True}
    torch.onnx.export(
        small[0], (data[0][:2],), out / "net.onnx", dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}}
    )
    yield "ONNX", out / "net.onnx", {}
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(out / "net.onnx", out / "quantised.onnx")
    yield "ONNX, quantised", out / "quantised.onnx", {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--training", type=int, default=900, help="training images")
    parser.add_argument("--images", type=int, default=40, help="validation images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    manifest, random = read_manifest(options.data), torch.Generator().manual_seed(0)
    parts = []
    for split, count in (("Train", options.training), ("Val", options.images)):
        loaded = load_dataset(manifest, split, options.size, classes=CLASSES)
        rows = torch.randperm(len(loaded), generator=random)[:count]
        parts.append((to_pixels(torch.from_numpy(loaded.images.copy())[rows]), torch.from_numpy(loaded.labels)[rows]))
    table = csv.writer(sys.stdout)
    table.writerow(("model", "false alarms", "failed or not checked", "processor seconds"))
    with tempfile.TemporaryDirectory() as folder:
        for name, net, how in models(parts[0], options.size, Path(folder)):
            before = time.process_time()
            report = run_entry_checks(load(net, classes=CLASSES, size=options.size, **how), *parts[1])
            checks = [*report.checks, *check_afterwards(report, parts[1][0], epsilon=0.02)]
            failed = [check for check in checks if check.passed is not True]
            alarms = [check.check for check in failed if check.grave and check.check not in OTHER]
            listed = "; ".join(f"{check.check} ({'failed' if check.passed is False else 'not'})" for check in failed)
            table.writerow((name, "; ".join(alarms), listed, f"{time.process_time() - before:.1f}"))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
