"""Write constraints.txt: the versions of all packages that the package and its extras use here.

torch and torchvision get ranges, since their CPU and CUDA builds have other version numbers.

Run: python scripts/write_constraints.py
"""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

BUILDS = ("torch", "torchvision")
EXTRAS = (
    *("weights", "dicom", "remote", "download", "captum", "onnx", "keras", "tflite", "track", "fast", "inpaint"),
    *("ray", "slurm", "serve"),
)


def list_packages(name: str, extras: tuple[str, ...], versions: dict[str, str]) -> None:
    """Add the package and all that it requires here to `versions`."""
    key = canonicalize_name(name)
    try:
        package = distribution(key)
    except PackageNotFoundError:
        return
    if key in versions and not extras:
        return
    versions[key] = package.version
    for text in package.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in (*extras, "")):
            list_packages(requirement.name, tuple(sorted(requirement.extras)), versions)


def main() -> None:
    """Write the file."""
    versions: dict[str, str] = {}
    list_packages("trustcxr", EXTRAS, versions)
    versions.pop("trustcxr")
    lines = []
    for name, version in sorted(versions.items()):
        if name.startswith("nvidia-") or name == "triton":
            continue
        number = Version(version)
        above = f"{number.major}.{number.minor + 1}"
        lines.append(f"{name}>={number.public},<{above}" if name in BUILDS else f"{name}=={version}")
    text = "# Written by scripts/write_constraints.py. Use: pip install -c constraints.txt trustcxr\n"
    (Path(__file__).parents[1] / "constraints.txt").write_text(text + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
