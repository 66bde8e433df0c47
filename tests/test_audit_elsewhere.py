"""Real images of other kinds through a whole audit: another hospital's, and CT slices of two classes."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from foreign_models import small
from test_audit_command import few_steps
from test_cli import run
from trustcxr.storage.schemas import AuditDocument, read_schema


def model_file(folder: Path, kind: str, classes: tuple[str, ...]) -> Path:
    """timm's network for tests, random, as its makers would hand it in: RGB, ImageNet's mean and std."""
    net = small(len(classes))
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, folder / "net.safetensors")
    (folder / "model.yaml").write_text(
        "source: net.safetensors\ntimm: test_resnet\n"
        "input: {size: 32, channels: 3, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}\n"
        f"output: {{kind: {kind}, classes: [{', '.join(classes)}]}}\n"
    )
    return folder / "model.yaml"


def audited(model: Path, data: Path, out: Path, *options: str) -> AuditDocument:
    run("audit", model, "--data", data, "--out", out, *options, "--json")
    assert (out / "report.html").is_file()
    assert (out / "model_card.md").is_file()
    return read_schema(AuditDocument, out / "audit.json")


@pytest.mark.full
def test_another_hospitals_images_and_ct_slices_through_a_whole_audit(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_steps(monkeypatch)
    for name, classes in (("external-cxr", ("COVID-19", "Non-COVID", "Normal")), ("ct-mini", ("COVID", "NonCOVID"))):
        folder = tmp_path / name
        folder.mkdir()
        found = audited(model_file(folder, "logits", classes), real_data / name, folder / "audit")
        assert (found.protocol, found.data.name, found.classes) == ("exam-1", name, list(classes))
        assert found.clean.n == found.data.n
        assert len(found.corruptions) == 15
        left = {(row.attack, row.epsilon): row.accuracy.value or 0.0 for row in found.attacks}
        assert left["worst-case", 0.02] <= min(left["pgd", 0.02], left["square", 0.02], left["fgsm", 0.02])
        assert [point.finding for point in found.operating_points if point.attack == "clean"] == list(classes)
        assert (
            any(check.check == "declaration" and check.passed is False for check in found.entry_checks) or found.alarms
        )
        assert (
            f"{found.data.n} images of {name}"
            in run("leaderboard", folder).stdout + (folder / "audit" / "report.html").read_text()
        )
