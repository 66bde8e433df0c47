"""Lists with a column a finding and none for the class, as CheXpert publishes: 1, 0, -1 where uncertain, or blank."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from trustcxr.data.manifest import OPTIONAL, extra_columns

if TYPE_CHECKING:
    import pandas as pd

NO_FINDING = "No Finding"
UNCERTAIN = "Uncertain"
_PRESENT, _ABSENT, _UNCERTAIN, _BLANK = ("1", "1.0"), ("0", "0.0"), ("-1", "-1.0"), ("", "nan", "none")
# As CheXpert, MIMIC-CXR, NIH ChestX-ray14, PadChest, VinDr-CXR and torchxrayvision name findings, without spaces.
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
    """The columns, but those that are taken, that say of a known finding whether it is there, in their order.

    Other columns of 1 and 0 may be of anything, such as who smokes, and make no class; a model's own findings are read
    from them all the same.
    """
    named = [c for c in extra_columns(table, [*OPTIONAL, *taken]) if _plain(c) in _FINDINGS]
    return [c for c in named if _says_whether(set(map(_word, table[c])))]


def build_classes(table: "pd.DataFrame", names: Iterable[str]) -> list[str]:
    """What each image has, `|` between several; else `No Finding`, or `Uncertain` where that is not said.

    It is said by the column of that name, or, without one, by every finding's that is not uncertain.
    """
    names = list(names)
    found, healthy = [], [name for name in names if _plain(name) == _plain(NO_FINDING)]
    for values in zip(*([_word(value) for value in table[name]] for name in names), strict=True):
        told = dict(zip(names, values, strict=True))
        there = [name for name in names if told[name] in _PRESENT and name not in healthy]
        sure = told[healthy[0]] in _PRESENT if healthy else not any(value in _UNCERTAIN for value in values)
        found.append("|".join(there) or (NO_FINDING if sure else UNCERTAIN))
    return found


def extract_patients(paths: Iterable[Any]) -> list[str] | None:
    """The patient of each image by the folder `patient...` that it lies in; None where not every image lies in one."""
    matches = [_PATIENT.search(str(path).replace("\\", "/")) for path in paths]
    found = [match.group(1) for match in matches if match is not None]
    return found if found and len(found) == len(matches) else None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _word(value: Any) -> str:
    return str(value).strip().lower()


def _says_whether(words: set[str]) -> bool:
    known = words & {*_PRESENT, *_ABSENT}
    return bool(known) and words <= {*_PRESENT, *_ABSENT, *_UNCERTAIN, *_BLANK}
