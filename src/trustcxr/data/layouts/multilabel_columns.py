"""Build classes from one column for each finding, as CheXpert publishes: 1, 0, -1 (uncertain) or blank."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from trustcxr.data.manifest import OPTIONAL, extra_columns

if TYPE_CHECKING:
    import pandas as pd

NO_FINDING = "No Finding"
UNCERTAIN = "Uncertain"
_PRESENT, _ABSENT, _UNCERTAIN, _BLANK = ("1", "1.0"), ("0", "0.0"), ("-1", "-1.0"), ("", "nan", "none")
# Names of CheXpert, MIMIC-CXR, NIH ChestX-ray14, PadChest, VinDr-CXR and torchxrayvision, without spaces.
_FINDINGS = {
    "airspaceopacity", "aorticenlargement", "atelectasis", "bronchiectasis", "bronchitis", "calcification",
    "cardiomegaly", "clavicularfracture", "consolidation", "copdsigns", "covid", "covid19", "edema", "effusion",
    "emphysema", "enlargedcardiomediastinum", "enlargedpa", "fibrosis", "fracture", "granuloma",
    "groundglassopacity", "hemidiaphragmelevation", "hernia", "hilarenlargement", "hyperinflation", "ild",
    "infiltrate", "infiltration", "interstitialpattern", "lobarpneumonia", "lungcavity", "lungcyst", "lunglesion",
    "lungopacity", "lungtumor", "mass", "mediastinalshift", "nodule", "nodulemass", "nofinding", "normal",
    "opacity", "otherlesion", "pleuraleffusion", "pleuralother", "pleuralthickening", "pneumonia", "pneumothorax",
    "pulmonaryfibrosis", "ribfracture", "scoliosis", "supportdevices", "tortuousaorta", "tuberculosis",
    "viralpneumonia",
}  # fmt: skip
_PATIENT = re.compile(r"(?:^|/)(patient[ _-]?\w*\d\w*)/", re.IGNORECASE)


def list_finding_columns(table: "pd.DataFrame", taken: Iterable[Any]) -> list[str]:
    """List the columns, other than `taken`, that label a known finding, in their order.

    Other columns of 1 and 0, such as smoking, make no class.
    """
    named = [c for c in extra_columns(table, [*OPTIONAL, *taken]) if _plain(c) in _FINDINGS]
    return [c for c in named if _is_label(set(map(_word, table[c])))]


def build_classes(table: "pd.DataFrame", names: Iterable[str]) -> list[str]:
    """Return the class of each image: its findings joined by `|`, else `No Finding` or `Uncertain`.

    `No Finding` needs a 1 in the column of that name; without that column, no uncertain finding.
    """
    names = list(names)
    classes, healthy = [], [name for name in names if _plain(name) == _plain(NO_FINDING)]
    for values in zip(*([_word(value) for value in table[name]] for name in names), strict=True):
        labels = dict(zip(names, values, strict=True))
        present = [name for name in names if labels[name] in _PRESENT and name not in healthy]
        sure = labels[healthy[0]] in _PRESENT if healthy else not any(value in _UNCERTAIN for value in values)
        classes.append("|".join(present) or (NO_FINDING if sure else UNCERTAIN))
    return classes


def extract_patients(paths: Iterable[Any]) -> list[str] | None:
    """Return the folder `patient...` of each path; None unless every path has one."""
    matches = [_PATIENT.search(str(path).replace("\\", "/")) for path in paths]
    patients = [match.group(1) for match in matches if match is not None]
    return patients if patients and len(patients) == len(matches) else None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _word(value: Any) -> str:
    return str(value).strip().lower()


def _is_label(words: set[str]) -> bool:
    return not words.isdisjoint({*_PRESENT, *_ABSENT}) and words <= {*_PRESENT, *_ABSENT, *_UNCERTAIN, *_BLANK}
