"""What the files of a run were made with, kept beside them: a study knows by it what a command made otherwise.

Of a file that was never noted, as those of earlier versions, nothing is known, and it counts as made as asked.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from torch import Tensor

from trustcxr.certify.proofs import Effort
from trustcxr.console import say
from trustcxr.errors import UserError
from trustcxr.explain import scores
from trustcxr.recipes.testing import EvaluationRecipe, ExplanationRecipe
from trustcxr.results import files, folders
from trustcxr.results.documents import RunDocument

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset

MADE_FILE = ".made.json"
_CONTROLS = 2  # since the background takes on the lesion's very change, and every map has its layer's activation beside
_ATTACKED = "every fill, and transplants"  # where films are asked about under PGD; before, the healthy grey alone
RESAMPLES = 2000  # of a command's own evaluation; a study's recipe says its own
_TABLES = (folders.PREDICTIONS_FILE, folders.SALIENCY_FILE, folders.LESIONS_FILE, folders.CERTIFIED_FILE)

Made = dict[str, object]  # by what a file holds (a condition, a method, a radius): how that was made


def of(place: Path, name: str) -> Made:
    """What a file was made with; None at every key where it was written since by somebody who noted nothing."""
    said = files.part(_noted(place), name)
    made = files.part(said, "with")
    path = place / name
    same = path.is_file() and said.get("sum") == files.checksum(path) if made else True
    return made if same else dict.fromkeys(made)


def note(place: Path, name: str, made: Mapping[str, object]) -> None:
    """Keep what a file was made with, once it is written."""
    said = {"sum": files.checksum(place / name), "with": dict(made)}
    files.write_json(place / MADE_FILE, _noted(place) | {name: said})


def claim(place: Path, run: Path) -> None:
    """Keep by which weights what is found in a place is made, before it is; a run's own folder has them itself."""
    if place.resolve() != run.resolve():
        said = {"sum": files.checksum(run / folders.WEIGHTS_FILE)}
        files.write_json(place / MADE_FILE, _noted(place) | {folders.WEIGHTS_FILE: said})


def by_other_weights(place: Path, run: Path) -> bool:
    """Whether a place holds what is known to be made by other weights than a run's."""
    known = files.part(_noted(place), folders.WEIGHTS_FILE).get("sum")
    if known is None or not any((place / name).is_file() for name in (*_TABLES, folders.METRICS_FILE)):
        return False
    return known != files.checksum(run / folders.WEIGHTS_FILE)


def otherwise(known: Mapping[str, object], wanted: Mapping[str, object]) -> bool:
    """Whether something that is wanted is known to be made in another way."""
    return any(key in known and _differs(known[key], how) for key, how in wanted.items())


def _differs(known: object, wanted: object) -> bool:
    """Of a note of several parts those alone that it has: what an earlier version did not note is not another."""
    if isinstance(known, dict) and isinstance(wanted, dict):
        return any(key in known and known[key] != how for key, how in wanted.items())
    return known != wanted


def predictions(options: EvaluationRecipe) -> Made:
    """How each attack of an evaluation is made; batches count, since random starts are drawn by batch."""
    return {
        f"{attack.name} {float(epsilon)} {attack.effort}": attack.options()
        | {"surrogate": surrogate(attack.surrogate), "batch_size": options.batch_size}
        for attack in options.attacks
        for epsilon in attack.epsilons
    }


def surrogate(folder: str | None) -> str | None:
    """Of the run that transfer's images are made against, its weights: the folder may hold others by now."""
    path = None if folder is None else Path(folder) / folders.WEIGHTS_FILE
    return folder if path is None or not path.is_file() else files.checksum(path)


def saliency(options: ExplanationRecipe, *, tuned: bool, mean_mask: Tensor | None = None) -> Made:
    """How each method's maps are measured; `tuned`: with thresholds of the run's validation films.

    `mean_mask`: of the training films, (H, W), which maps are held against too, where there is one.
    """
    how = options.model_dump(mode="json", include={"epsilon", "corruptions", "severity", "sample"})
    how |= {"tuned": tuned, "controls": _CONTROLS}
    if mean_mask is not None:
        how["mean_mask"] = sha256(mean_mask.numpy().tobytes()).hexdigest()[:16]
    return dict.fromkeys(scores.with_random(options.methods), how)


def lesions(options: ExplanationRecipe) -> Made:
    """How what becomes of the answer without the lesion is measured, beside on which masks."""
    found: Made = {"sample": options.sample, "epsilon": options.epsilon, "controls": _CONTROLS}
    return found | {"attacked": _ATTACKED}


def masks(films: "Dataset") -> Made:
    """The masks that maps and lesions are held against: the films' fingerprint is of their pixels, not of these."""
    found = sha256()
    for kind in sorted(films.mask_kinds):
        found.update(kind.encode())
        for mask in films.masks(kind):
            found.update(mask.tobytes())
    return {"masks": found.hexdigest()[:16]}


def known(data: "Dataset", kinds: Iterable[str]) -> Iterator[bytes]:
    """What is known of films, piece by piece: their fingerprint, every column of their table, masks of these kinds."""
    yield data.fingerprint.encode()
    yield data.table.to_csv(index=False).encode("utf-8", "surrogateescape")
    for kind in kinds:
        if kind in data.mask_kinds:
            yield from (mask.tobytes() for mask in data.masks(kind))


def films(data: "Dataset") -> Made:
    """The films themselves, of a table that does not name them."""
    return {"films": data.fingerprint}


def regroup(place: Path, data: "Dataset") -> None:
    """Give the tables in `place` the groups that their films have now: a column of patients may have come since."""
    from pyarrow import parquet

    groups = pd.Series(data.groups, index=data.sample_ids)
    for path in (place / name for name in _TABLES):
        if not path.is_file() or not files.reads(path) or "group" not in parquet.read_schema(path).names:
            continue
        rows = files.read_table(path, ["sample_id", "group"])
        now = groups.reindex(rows["sample_id"]).to_numpy()
        if pd.isna(now).any() or (now == rows["group"].to_numpy()).all():
            continue
        known = of(place, path.name)
        files.write_table(path, files.read_table(path).assign(group=now))
        note(place, path.name, known)
        say(f"{path}: its films are grouped otherwise now, and its intervals are over these groups")


def proofs(radii: Sequence[float], effort: Effort | None = None) -> Made:
    """How hard each radius was tried."""
    return {str(float(radius)): asdict(effort or Effort()) for radius in radii}


def metrics(place: Path, resamples: int, methods: Sequence[str], radii: Sequence[float]) -> Made:
    """What metrics.json is made from: the tables as they are, and of them these methods and proved radii."""
    sums = {name: files.checksum(place / name) if (place / name).is_file() else "" for name in _TABLES}
    return {"resamples": resamples, "methods": sorted(methods), "radii": sorted(map(float, radii)), **sums}


def note_metrics(place: Path, document: RunDocument, resamples: int) -> None:
    """Keep what metrics.json, just written, was made from."""
    radii = [float(row.epsilon or 0.0) for row in document.certified]
    note(place, folders.METRICS_FILE, metrics(place, resamples, list(document.saliency), radii))


def is_of(
    place: Path, document: RunDocument, only: EvaluationRecipe, methods: Sequence[str] | None, resamples: int
) -> bool:
    """Whether a metrics.json has the figures that a recipe asks for, and no others, of the tables as they are."""
    saliency, proofs = (place / name for name in (folders.SALIENCY_FILE, folders.CERTIFIED_FILE))
    if not _has_conditions(document, only) or (saliency.is_file() and not document.saliency):
        return False
    names = scores.with_random(methods or ()) if saliency.is_file() else ()
    proved = set(files.read_table(proofs, ["epsilon"])["epsilon"]) if proofs.is_file() else set()
    wanted = metrics(place, resamples, names, sorted(proved & set(only.radii())))
    return not otherwise(of(place, folders.METRICS_FILE), wanted)


def _has_conditions(document: RunDocument, only: EvaluationRecipe) -> bool:
    """Whether a metrics.json is of the conditions that a recipe asks for; attacks of one step do not say so."""
    asked = sorted((name, severity or epsilon, steps) for name, epsilon, steps, severity in only.conditions())
    found = [(row.attack, row.epsilon or 0.0, row.steps or 0) for row in document.attacks]
    found += [(row.corruption, float(row.severity or 0), 0) for row in document.corruptions]
    pairs = zip(sorted(found), asked, strict=False)
    return len(found) == len(asked) and all(one[:2] == other[:2] and one[2] in (0, other[2]) for one, other in pairs)


def resamples_of(place: Path, *, as_noted: bool = False) -> int:
    """Resamples behind the intervals of metrics.json: of a study's run as its recipe says, where that is known.

    `as_noted`: also of a metrics.json that was changed since, to tell what in it was changed from what was not.
    """
    said = files.part(_noted(place), folders.METRICS_FILE)
    found = (files.part(said, "with") if as_noted else of(place, folders.METRICS_FILE)).get("resamples")
    return found if isinstance(found, int) else RESAMPLES


def _noted(place: Path) -> dict[str, object]:
    with suppress(UserError):
        return files.read_document(place / MADE_FILE)
    return {}
