"""Real images of other kinds through a whole audit:

Another hospital's, by a label map, and CT slices of two classes.
"""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from foreign_models import small
from test_audit_command import few_steps
from test_cli import complaint, run
from trustcxr.storage.schemas import AuditDocument, read_schema

NIH = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
MAP = ("COVID-19=Pneumonia|Infiltration", "Non-COVID=Pneumonia", "Normal=Normal")


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
def test_a_model_of_14_findings_on_another_hospitals_images_by_a_label_map(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_steps(monkeypatch)
    # Of its logits the audit says that they are no sigmoids, and takes each for the logit of its finding.
    model, images = model_file(tmp_path, "sigmoid", NIH), real_data / "external-cxr"
    assert "--label" in complaint("audit", model, "--data", images, "--out", tmp_path / "none")
    labels = [part for label in MAP for part in ("--label", label)]
    found = audited(model, images, tmp_path / "audit", *labels)
    assert found.protocol == "exam-1"
    assert found.classes == list(NIH)
    judged = {finding.name: finding for finding in found.findings if finding.judged}
    assert set(judged) == {"Pneumonia", "Infiltration"}
    assert all("no image has a label" in finding.why for finding in found.findings if finding.name not in judged)
    counts = {name: (finding.n, finding.positives, finding.unknown) for name, finding in judged.items()}
    total, of_class = found.data.n, count(images)
    assert counts["Infiltration"] == (total, of_class["COVID-19"], 0)
    assert counts["Pneumonia"] == (total, of_class["COVID-19"] + of_class["Non-COVID"], 0)
    assert {row.attack for row in found.attacks} == {"fgsm", "pgd", "square", "worst-case"}
    points = {(point.finding, point.attack) for point in found.operating_points}
    assert points >= {(name, attack) for name in judged for attack in ("clean", "pgd", "worst-case")}
    assert found.clean.n == 2 * total


def count(images: Path) -> dict[str, int]:
    return {name: len(list((images / name).glob("*.png"))) for name in ("COVID-19", "Non-COVID", "Normal")}


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
        # Random weights know nothing, and that is said.
        assert (
            any(check.check == "declaration" and check.passed is False for check in found.entry_checks) or found.alarms
        )
        assert (
            f"{found.data.n} images of {name}"
            in run("leaderboard", folder).stdout + (folder / "audit" / "report.html").read_text()
        )
