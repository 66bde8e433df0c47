"""Any model: `audit`; two of them: `compare`; many: `leaderboard`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from trustcxr.cli.options import Columns, Images, Json, Labels, TrustCode, label_map, listing, print_json
from trustcxr.data.remote import check_exists
from trustcxr.errors import UserError
from trustcxr.registry import AUDITED
from trustcxr.storage import layout
from trustcxr.version import NOTICE

audits_app = typer.Typer()


@audits_app.command(epilog="Example: trustcxr audit model.yaml --data COVID-QU-Ex --out out/audit")
def audit(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run's folder or a model file (.yaml); with --init a model.")
    ],
    data: Annotated[Path | None, typer.Option(help="Folder of X-rays, or a list (CSV).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.json and predictions.parquet.")] = None,
    split: Annotated[str | None, typer.Option(help="Split to examine; the test split where there is one.")] = None,
    attack: Annotated[
        list[str] | None, typer.Option(help=f"Others than the protocol's, of {', '.join(AUDITED)}; repeatable.")
    ] = None,
    epsilon: Annotated[
        list[float] | None, typer.Option(help="Other radii than the protocol's (L-infinity); repeatable.")
    ] = None,
    trust_code: TrustCode = False,
    adversarial: Annotated[
        Path | None,
        typer.Option(help="Adversarial images (safetensors): the worse of theirs and ours counts."),
    ] = None,
    init: Annotated[bool, typer.Option("--init", help="Print a model file for MODEL, with questions.")] = False,
    label: Labels = None,
    column: Columns = None,
    images: Images = None,
    json: Json = False,
) -> None:
    """The whole examination of any model: a run, or what a model file names. Started again after a cut, it goes on."""
    if init:
        from trustcxr.audit.formats import describe_file, drafted

        if json:
            return print_json(drafted(model, trust_code=trust_code))
        return print(describe_file(model, trust_code=trust_code), end="")
    if data is None or out is None:
        raise UserError(
            f"audit {model}: say {'--data PATH' if data is None else '--out DIR'}; see trustcxr audit --help"
        )
    _refuse_at_once(model, data, attack or (), epsilon or ())
    from trustcxr.audit.run_audit import audit as examine
    from trustcxr.report import audit_html, audit_text

    document = examine(
        model,
        data,
        out,
        split=split,
        attacks=attack or (),
        epsilons=epsilon or (),
        labels=label_map(label),
        listing=listing(column, images),
        trust_code=trust_code,
        adversarial=adversarial,
    )
    audit_html.write(document, out)
    if json:
        return print_json(document)
    for line in audit_text.describe_audit(document):
        print(line)
    print(f"written to {out}\n{NOTICE}")
    return None


def _refuse_at_once(model: str, data: Path, attacks: Sequence[str], epsilons: Sequence[float]) -> None:
    """UserError for no attack, no model, or no data for a run: said before what takes seconds to load."""
    from trustcxr.recipes.protocol import load_exam

    load_exam().changed(tuple(attacks), tuple(epsilons))
    layout.check_model(model)
    if Path(model).is_dir():
        check_exists(data)


@audits_app.command(epilog="Example: trustcxr compare out/audit-a out/audit-b")
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Folder of an audit.", callback=layout.check_audit)],
    second: Annotated[
        Path,
        typer.Argument(
            metavar="B", help="Folder of another, by the same protocol and data.", callback=layout.check_audit
        ),
    ],
    json: Json = False,
) -> None:
    """Two audits, paired image by image: what B has over A, with intervals and corrected tests."""
    from trustcxr import report
    from trustcxr.audit import compare as audit_pairs
    from trustcxr.report import audit_text

    found = audit_pairs.compare(first, second)
    if json:
        return print_json(found)
    report.print_rows(f"{found.second} less {found.first}, by {found.protocol}", audit_text.list_pairs(found))
    for line in audit_text.describe_pairs(found):
        print(line)
    return print(NOTICE)


@audits_app.command(epilog="Example: trustcxr leaderboard out/audits")
def leaderboard(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder with folders of audits in it.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the page and the table; FOLDER unless said.")] = None,
    json: Json = False,
) -> None:
    """Many audits of one protocol and data set: one page that sorts, one table (CSV)."""
    from trustcxr import report
    from trustcxr.report import leaderboard as board

    found = board.gather_audits(folder)
    page, table = board.write(found, out or folder)
    if json:
        return print_json(board.to_json(found))
    report.print_table(board.terminal_table(found))
    for line in board.list_remarks(found):
        print(line)
    for name, why in found.refused:
        print(f"not compared: {name}: {why}")
    return print(f"written to {page} and {table}\n{NOTICE}")
