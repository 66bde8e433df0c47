"""Audit models and compare audits: `audit`, `compare`, `leaderboard`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option, Typer

from trustcxr.cli.options import (
    Columns,
    Images,
    Json,
    Labels,
    TrustCode,
    parse_labels,
    parse_listing,
    parse_pairs,
    print_json,
    resolve_name,
)
from trustcxr.data.remote import check_exists
from trustcxr.errors import UserError
from trustcxr.recipes.exams import NEWEST, list_exams
from trustcxr.registry import AUDIT_ATTACKS
from trustcxr.storage import layout
from trustcxr.storage.atomic import read_yaml
from trustcxr.version import NOTICE

if TYPE_CHECKING:
    from trustcxr.recipes.criteria_file import CriteriaRecipe
    from trustcxr.storage.schemas import AuditDocument

audit_app = Typer()
NOT_MET = 3  # exit code of `audit --fail` if a criterion is not met or not settled


@audit_app.command(epilog="Example: trustcxr audit model.yaml --data COVID-QU-Ex --out out/audit")
def audit(
    model: Annotated[
        str,
        Argument(
            metavar="MODEL",
            help="Run folder, trained model, model file (.yaml); with --init a model.",
            callback=resolve_name,
        ),
    ] = "",
    data: Annotated[Path | None, Option(help="Folder of images, or a list (CSV).")] = None,
    out: Annotated[Path | None, Option(help="Folder for audit.json and predictions.parquet.")] = None,
    split: Annotated[str | None, Option(help="Split to examine. Default: the test split if there is one.")] = None,
    protocol: Annotated[str, Option(help=f"{' or '.join(list_exams())}. Only one protocol's audits compare.")] = NEWEST,
    attack: Annotated[list[str] | None, Option(help=f"Other attacks: {', '.join(AUDIT_ATTACKS)}; repeatable.")] = None,
    epsilon: Annotated[list[float] | None, Option(help="Not the protocol's L-infinity radii; repeatable.")] = None,
    trust_code: TrustCode = False,
    adversarial: Annotated[
        Path | None, Option(help="Adversarial images (safetensors); the worse of these and ours counts.")
    ] = None,
    init: Annotated[
        bool,
        Option("--init", help="Print a model file for MODEL; with --data, the input and class order that score best."),
    ] = False,
    criteria: Annotated[Path | None, Option(help="File of acceptance criteria. Default: the model file's.")] = None,
    init_criteria: Annotated[bool, Option("--init-criteria", help="Print a draft of acceptance criteria.")] = False,
    fail: Annotated[bool, Option("--fail", help="Exit with 3 unless every criterion is met.")] = False,
    prevalence: Annotated[
        list[str] | None,
        Option(help="Class = its share where the model will be used, such as COVID-19=0.05; repeatable."),
    ] = None,
    pictures: Annotated[
        bool, Option("--pictures/--no-pictures", help="Store pictures of patients, for the page.")
    ] = True,
    label: Labels = None,
    column: Columns = None,
    images: Images = None,
    json: Json = False,
) -> None:
    """Audit any model: a run, or the model of a model file. Start it again to resume."""
    if init or init_criteria:
        typed = {"--out": out, "--protocol": protocol != NEWEST, "--attack": attack, "--epsilon": epsilon}
        typed |= {"--adversarial": adversarial, "--criteria": criteria, "--fail": fail, "--prevalence": prevalence}
        _check_draft(typed | {"--json": json and init_criteria})
    if init_criteria:
        from trustcxr.recipes.criteria_file import DRAFT

        return print(DRAFT.read_text(encoding="utf-8"), end="")
    if not model:
        raise UserError("audit: no model is given. Give a run's folder or a model file; see trustcxr audit --help")
    data_options = {"labels": parse_labels(label), "listing": parse_listing(column, images)}
    if init:
        return _print_draft(model, data, data_options | {"split": split}, trust_code=trust_code, json=json)
    if data is None or out is None:
        raise UserError(
            f"audit {model}: give {'--data PATH' if data is None else '--out DIR'}; see trustcxr audit --help"
        )
    _check_options(model, data, protocol, attack or (), epsilon or ())
    if fail and criteria is None and not _names_criteria(Path(model)):
        raise UserError("--fail: there is no criterion to fail. Give --criteria FILE; --init-criteria prints a draft")
    bounds = _read_criteria(criteria, prevalence)
    from trustcxr import audit as audits

    document = audits.run(
        model,
        data,
        out=out,
        split=split,
        attacks=attack or (),
        epsilons=epsilon or (),
        trust_code=trust_code,
        adversarial=adversarial,
        criteria=bounds,
        pictures=pictures,
        protocol=protocol,
        **data_options,
    )
    print_json(document) if json else _print_audit(document, out)
    if fail and not all(row.met for row in document.criteria):
        raise Exit(NOT_MET)
    return None


def _check_draft(typed: Mapping[str, object]) -> None:
    """Raise UserError for options that were typed, though a draft does not use them."""
    if unused := [name for name, value in typed.items() if value]:
        raise UserError(f"audit: a draft is printed without {', '.join(unused)}: remove it")


def _print_draft(model: str, data: Path | None, options: Mapping[str, Any], *, trust_code: bool, json: bool) -> None:
    """Print a model file with questions; with labelled images, the one whose answers are best."""
    from trustcxr.audit.formats.init_model_file import describe_file, parse_draft
    from trustcxr.audit.propose_declaration import propose_declaration

    if data is None:
        text = describe_file(model, trust_code=trust_code)
    else:
        text = propose_declaration(model, data, trust_code=trust_code, **options)
    return print_json(parse_draft(text)) if json else print(text, end="")


def _print_audit(document: "AuditDocument", out: Path) -> None:
    from trustcxr.report import audit_text

    for line in audit_text.describe_audit(document):
        print(line)
    print(f"written to {out}\n{NOTICE}")


def _names_criteria(model: Path) -> bool:
    return model.suffix in layout.MODEL_FILES and bool(read_yaml(model).get("criteria"))


def _read_criteria(path: Path | None, prevalence: Sequence[str] | None) -> "CriteriaRecipe | None":
    """Read the file of criteria, with the options' prevalence in place of the file's; None without both."""
    from trustcxr.recipes.criteria_file import CriteriaRecipe, read_criteria
    from trustcxr.recipes.parsing import validate

    recipe = None if path is None else read_criteria(path)
    if not prevalence:
        return recipe
    pairs = parse_pairs("--prevalence", prevalence, "write class=share, such as COVID-19=0.05")
    shares = validate(CriteriaRecipe, {"prevalence": pairs}, "--prevalence").prevalence
    recipe = recipe or CriteriaRecipe()
    return recipe.model_copy(update={"prevalence": {**recipe.prevalence, **shares}})


def _check_options(model: str, data: Path, protocol: str, attacks: Sequence[str], epsilons: Sequence[float]) -> None:
    """Raise UserError for an unknown attack or a missing model or data set, before torch is loaded."""
    from trustcxr.recipes.protocol import load_exam

    load_exam(protocol).changed(tuple(attacks), tuple(epsilons))
    layout.check_model(model)
    if Path(model).is_dir():
        check_exists(data)


@audit_app.command(epilog="Example: trustcxr compare out/audit-a out/audit-b")
def compare(
    first: Annotated[Path, Argument(metavar="A", help="Folder of an audit.", callback=layout.check_audit)],
    second: Annotated[
        Path, Argument(metavar="B", help="Another, of the same protocol and data.", callback=layout.check_audit)
    ],
    json: Json = False,
) -> None:
    """Compare two audits image by image: B less A, with intervals and corrected tests."""
    from trustcxr import api, report
    from trustcxr.report import audit_text

    document = api.compare(first, second)
    if json:
        return print_json(document)
    title = f"{document.second} less {document.first}, by {document.protocol}"
    report.print_rows(title, audit_text.list_pairs(document))
    for line in audit_text.describe_pairs(document):
        print(line)
    return print(NOTICE)


@audit_app.command(epilog="Example: trustcxr leaderboard out/audits")
def leaderboard(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="Folder that contains folders of audits, or entries.")],
    out: Annotated[Path | None, Option(help="Folder for the page and the table. Default: FOLDER.")] = None,
    add: Annotated[
        Path | None,
        Option(metavar="AUDIT", help="Write the entry of this audit into FOLDER."),
    ] = None,
    licence: Annotated[str, Option(help="With --add: licence of the model, such as MIT or none.")] = "",
    source: Annotated[str, Option(metavar="ADDRESS@COMMIT", help="With --add: where the model is published.")] = "",
    run_by: Annotated[str, Option(metavar="NAME", help="With --add: who made the audit.")] = "",
    model_file: Annotated[
        Path | None, Option(metavar="FILE", help="With --add: model file of the audit (.yaml), for the entry.")
    ] = None,
    reported: Annotated[
        bool, Option("--reported", help="With --add: the audit was made by those who submit it.")
    ] = False,
    check: Annotated[bool, Option("--check", help="Check the entries in FOLDER; exit with 2 on a fault.")] = False,
    models: Annotated[
        Path | None, Option(metavar="DIR", help="With --check: compare the models' files in DIR with the entries.")
    ] = None,
    json: Json = False,
) -> None:
    """Rank audits or entries of one protocol and data set: a page and a table. Add entries, and check them."""
    if add is None and (licence or source or run_by or model_file or reported):
        raise UserError("leaderboard: --licence, --source, --run-by, --model-file and --reported need --add AUDIT")
    if out is not None and (add is not None or check):
        raise UserError("leaderboard: --out is of the page, which --add and --check do not write: remove it")
    if models is not None and not check:
        raise UserError("leaderboard: --models needs --check")
    if add is not None:
        from trustcxr.audit.leaderboard_entries import add_entry

        details = {"licence": licence, "source": source, "run_by": run_by}
        path = add_entry(layout.check_audit(add), folder, **details, model_file=model_file, reported=reported)
        if not check:
            return print_json({"entry": str(path)}) if json else print(f"written to {path}\n{NOTICE}")
    if check:
        return _check_entries(folder, models, json=json)
    from trustcxr import report
    from trustcxr.report import leaderboard as board

    ranking = board.gather_audits(folder)
    page, table = board.write(ranking, out or folder)
    if json:
        return print_json(board.to_json(ranking))
    for one in (ranking, *ranking.others):
        report.print_table(board.terminal_table(one))
        for line in board.list_remarks(one):
            print(line)
    for name, why in ranking.refused:
        print(f"not compared: {name}: {why}")
    return print(f"written to {page} and {table}\n{NOTICE}")


def _check_entries(folder: Path, models: Path | None, *, json: bool) -> None:
    """Print a line for each fault of the entries in a folder; exit with 2 if there is one."""
    from trustcxr.audit.leaderboard_entries import check_entries

    entries, found, faults = check_entries(folder, models)
    if json:
        print_json({"entries": entries, "models": None if models is None else found, "faults": faults})
    else:
        for line in faults:
            print(line)
        compared = "" if models is None else f", unchanged models in {models} {found}"
        print(f"{folder}: entries {entries}, faults {len(faults)}{compared}")
    if faults:
        raise Exit(2)
