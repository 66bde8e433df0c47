"""Audit models and compare audits: `audit`, `compare`, `leaderboard`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit, Option, Typer

from trustcxr.cli.options import (
    Columns,
    Images,
    Json,
    Labels,
    TrustCode,
    parse_data,
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

audit_app = Typer()
_MODEL = (
    "A run's folder, a trained model's name, hf://owner/name or a model file (.yaml). With --init: its file or code."
)
_ADVERSARIAL = (
    "Your own adversarial images (safetensors): of these and of ours, those that mislead the model more count."
)
_INIT = "Print a model file for MODEL. With --data: with the input and the order of classes that score best."
_PREVALENCE = "A class and its share of patients where the model will be used, such as COVID-19=0.05; repeatable."
NOT_MET = 3  # exit code of `audit --fail` if a criterion is not met or not settled


@audit_app.command(epilog="Example: trustcxr audit model.yaml --data COVID-QU-Ex --out out/audit")
def audit(
    model: Annotated[str, Argument(help=_MODEL, callback=resolve_name)] = "",
    data: Annotated[Path | None, Option(help="Folder of images, or a list (CSV).")] = None,
    out: Annotated[Path | None, Option(help="Folder for audit.json and predictions.parquet.")] = None,
    split: Annotated[str | None, Option(help="Split to examine. Default: the test split if there is one.")] = None,
    protocol: Annotated[str, Option(help=f"{' or '.join(list_exams())}. Only one protocol's audits compare.")] = NEWEST,
    attack: Annotated[list[str] | None, Option(help=f"Other attacks: {', '.join(AUDIT_ATTACKS)}; repeatable.")] = None,
    epsilon: Annotated[list[float] | None, Option(help="Not the protocol's L-infinity radii; repeatable.")] = None,
    trust_code: TrustCode = False,
    adversarial: Annotated[Path | None, Option(help=_ADVERSARIAL)] = None,
    init: Annotated[bool, Option("--init", help=_INIT)] = False,
    criteria: Annotated[Path | None, Option(help="File of acceptance criteria. Default: the model file's.")] = None,
    init_criteria: Annotated[bool, Option("--init-criteria", help="Print a draft of acceptance criteria.")] = False,
    fail: Annotated[bool, Option("--fail", help="Exit with 3 unless every criterion is met.")] = False,
    prevalence: Annotated[list[str] | None, Option(help=_PREVALENCE)] = None,
    pictures: Annotated[bool, Option(help="Store pictures of patients, for the page.")] = True,
    label: Labels = None,
    column: Columns = None,
    images: Images = None,
    json: Json = False,
) -> None:
    """Audit any model: a run, or the model of a model file. Start it again to resume."""
    if init or init_criteria:
        typed = {"--out": out, "--protocol": protocol != NEWEST, "--attack": attack, "--epsilon": epsilon}
        typed |= {"--adversarial": adversarial, "--criteria": criteria, "--fail": fail, "--prevalence": prevalence}
        typed |= {"--json": json and init_criteria}
        if unused := [name for name, value in typed.items() if value]:
            raise UserError(f"audit: a draft is printed without {', '.join(unused)}: remove it")
    if init_criteria:
        from trustcxr.recipes.criteria_file import DRAFT

        return print(DRAFT.read_text(encoding="utf-8"), end="")
    if not model:
        raise UserError("audit: no model is given. Give a run's folder or a model file; see trustcxr audit --help")
    reading = parse_data(label, column, images)
    if init:
        from trustcxr.audit.formats.init_model_file import describe_file, parse_draft
        from trustcxr.audit.propose_declaration import propose_declaration

        if data is None:
            text = describe_file(model, trust_code=trust_code)
        else:
            text = propose_declaration(model, data, split=split, trust_code=trust_code, **reading)
        return print_json(parse_draft(text)) if json else print(text, end="")
    if data is None or out is None:
        missing = "--data PATH" if data is None else "--out DIR"
        raise UserError(f"audit {model}: give {missing}; see trustcxr audit --help")
    from trustcxr.recipes.protocol import load_exam

    load_exam(protocol).changed(tuple(attack or ()), tuple(epsilon or ()))
    layout.check_model(model)
    if (path := Path(model)).is_dir():
        check_exists(data)
    if fail and criteria is None and not (path.suffix in layout.MODEL_FILES and read_yaml(path).get("criteria")):
        raise UserError("--fail: there is no criterion to fail. Give --criteria FILE; --init-criteria prints a draft")
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
        criteria=_read_criteria(criteria, prevalence),
        pictures=pictures,
        protocol=protocol,
        **reading,
    )
    if json:
        print_json(document)
    else:
        from trustcxr.report import terminal

        print(*terminal.describe_audit(document), f"written to {out}\n{NOTICE}", sep="\n")
    if fail and not all(row.met for row in document.criteria):
        raise Exit(NOT_MET)
    return None


def _read_criteria(path: Path | None, prevalence: Sequence[str] | None) -> "CriteriaRecipe | None":
    """Read the file of criteria, with the options' prevalence in place of the file's; None without both."""
    from trustcxr.recipes.criteria_file import CriteriaRecipe, read_criteria
    from trustcxr.recipes.parsing import validate

    recipe = CriteriaRecipe() if path is None else read_criteria(path)
    pairs = parse_pairs("--prevalence", prevalence, "write class=share, such as COVID-19=0.05")
    shares = validate(CriteriaRecipe, {"prevalence": pairs}, "--prevalence").prevalence
    return recipe.model_copy(update={"prevalence": recipe.prevalence | shares}) if path or prevalence else None


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
    from trustcxr.report import terminal

    document = api.compare(first, second)
    if json:
        return print_json(document)
    title = f"{document.second} less {document.first}, by {document.protocol}"
    report.print_rows(title, terminal.list_pairs(document))
    return print(*terminal.describe_pairs(document), NOTICE, sep="\n")


@audit_app.command(epilog="Example: trustcxr leaderboard out/audits")
def leaderboard(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="Folder that contains folders of audits, or entries.")],
    out: Annotated[Path | None, Option(help="Folder for the page and the table. Default: FOLDER.")] = None,
    add: Annotated[Path | None, Option(metavar="AUDIT", help="Write the entry of this audit into FOLDER.")] = None,
    licence: Annotated[str, Option(help="With --add: licence of the model, such as MIT or none.")] = "",
    source: Annotated[str, Option(metavar="ADDRESS@COMMIT", help="With --add: where the model is published.")] = "",
    run_by: Annotated[str, Option(metavar="NAME", help="With --add: who made the audit.")] = "",
    model_file: Annotated[Path | None, Option(help="With --add: the model file that was audited.")] = None,
    reported: Annotated[
        bool, Option("--reported", help="With --add: the audit was made by those who submit it.")
    ] = False,
    check: Annotated[bool, Option("--check", help="Check the entries in FOLDER; exit with 2 on a fault.")] = False,
    models: Annotated[
        Path | None, Option(help="With --check: folder of the models, to compare with the entries.")
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
    from trustcxr.audit.leaderboard_entries import add_entry, check_entries

    if add is not None:
        details = {"licence": licence, "source": source, "run_by": run_by}
        path = add_entry(layout.check_audit(add), folder, **details, model_file=model_file, reported=reported)
        if not check:
            return print_json({"entry": str(path)}) if json else print(f"written to {path}\n{NOTICE}")
    if check:
        entries, matched, faults = check_entries(folder, models)
        compared = "" if models is None else f", unchanged models in {models} {matched}"
        summary = f"{folder}: entries {entries}, faults {len(faults)}{compared}"
        report_of_faults = {"entries": entries, "models": None if models is None else matched, "faults": faults}
        print_json(report_of_faults) if json else print(*faults, summary, sep="\n")
        raise Exit(2 if faults else 0)
    from trustcxr import report
    from trustcxr.report import leaderboard as board

    ranking = board.gather_audits(folder)
    page, table = board.write(ranking, out or folder)
    if json:
        return print_json(board.to_json(ranking))
    for one in (ranking, *ranking.others):
        report.print_table(board.terminal_table(one))
        print("".join(f"{line}\n" for line in board.list_remarks(one)), end="")
    refused = (f"not compared: {name}: {why}" for name, why in ranking.refused)
    return print(*refused, f"written to {page} and {table}\n{NOTICE}", sep="\n")
