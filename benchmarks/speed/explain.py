"""What Grad-CAM costs: against a plain forward pass, against the grad-cam package, and in memory over many images.

    python benchmarks/speed/explain.py --threads 2

Rounds are interleaved (one of each, again and again), so that a busy machine slows all of them alike; the figures are
medians over rounds, and each ratio is the median of the rounds' own ratios. Goals: at most 1.15 forward passes, at
least 2.2 times the images a second of the package, and memory that does not grow with the number of images.
"""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from trustcxr import explain
from trustcxr.explain import measures
from trustcxr.models import classifier, factory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ResNet50")
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--images", type=int, default=10_000, help="for the memory, at --memory-size pixels; 0: skip it"
    )
    parser.add_argument("--memory-model", default="resnet18")
    parser.add_argument("--memory-size", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {options.device}, {options.threads} threads")
    if options.images:
        memory(options)
    speed(options)


def speed(options: argparse.Namespace) -> None:
    model = factory.build(options.model, classes=3).eval().to(options.device)
    x = torch.rand(options.batch, 1, options.size, options.size, device=options.device)
    rivals: dict[str, Callable[[], object]] = {
        "forward pass": lambda: forward(model, x),
        "trustcxr": lambda: explain.grad_cam(model, x, 0),
        "grad-cam package": lambda: package(model, x),
    }
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for round_ in range(options.rounds + 1):
        for name, work in rivals.items():
            synchronise(options.device)
            start = time.perf_counter()
            work()
            synchronise(options.device)
            if round_:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    print(f"{options.model}, {options.size} pixels, batch {options.batch}, {options.rounds} rounds")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"  {name:18} {median:7.3f} s   {options.batch / median:7.1f} images/s")
    cost = ratio(seconds["trustcxr"], seconds["forward pass"])
    gain = ratio(seconds["grad-cam package"], seconds["trustcxr"])
    package_cost = ratio(seconds["grad-cam package"], seconds["forward pass"])
    print(f"  time over a forward pass:    {cost:.3f} (goal at most 1.15; the package: {package_cost:.2f})")
    print(f"  images a second over the package: {gain:.2f} (goal at least 2.2)")


def memory(options: argparse.Namespace) -> None:
    model = factory.build(options.memory_model, classes=3).eval().to(options.device)
    size, batch = options.memory_size, options.batch
    mask = torch.zeros(batch, size, size, device=options.device)
    mask[:, size // 2 :] = 1
    batches = max(options.images // batch, 20)
    at: dict[int, float] = {}
    for number in range(1, batches + 1):
        maps = explain.grad_cam(model, torch.rand(batch, 1, size, size, device=options.device))
        for measure in (measures.energy_inside, measures.pointing_hit, measures.iou_otsu):
            measure(maps, mask)
        if number in (batches // 10, batches):
            at[number * batch] = resident_mebibytes()
    figures = ", ".join(f"{mebibytes:.0f} MiB after {images} images" for images, mebibytes in at.items())
    print(f"memory, {options.memory_model}, {size} pixels: {figures}")


def forward(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def package(model: classifier.Classifier, x: Tensor) -> None:
    with GradCAM(model, [model.cam_layer]) as cam:
        cam(x, [ClassifierOutputTarget(0)] * len(x))


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def resident_mebibytes() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
