"""Check, download and make data (`trustcxr data`); list and prune the cache (`trustcxr cache`)."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option, Typer

from trustcxr.cli.options import Columns, Images, Json, parse_listing, print_json
from trustcxr.console import plural
from trustcxr.errors import UserError, unknown
from trustcxr.storage.os_errors import check_writable, megabytes, shell_quote
from trustcxr.version import NOTICE

if TYPE_CHECKING:
    from trustcxr.storage.schemas import PruneDocument

_EXAMPLE = "Example: trustcxr data check COVID-QU-Ex --html out/check.html --clean out/clean.parquet"
data_app = Typer(help="Check, download or make data.", epilog=_EXAMPLE, no_args_is_help=True)


@data_app.command("check", epilog=_EXAMPLE)
def data_check(
    path: Annotated[Path, Argument(metavar="PATH", help="Folder of images, a list (CSV), or a manifest.")],
    html: Annotated[Path | None, Option(help="Write one page with pictures of each problem.")] = None,
    clean: Annotated[Path | None, Option(help="Write a manifest (.parquet or .csv) without leaking images.")] = None,
    probes: Annotated[bool, Option(help="Look for features that wrongly predict the class.")] = True,
    column: Columns = None,
    images: Images = None,
    json: Json = False,
) -> None:
    """Read every file; report faults, leaks between splits, and confounds."""
    from trustcxr.data.checks.check import check_data, write_page

    if clean and clean.suffix.lower() not in (".csv", ".parquet"):
        raise UserError(f"{clean}: unknown kind of manifest. Give a name that ends in .csv or .parquet.")
    for path_out in filter(None, (html, clean)):
        check_writable(path_out)
    result = check_data(path, probes=probes, **parse_listing(column, images))
    print_json(result.to_dict() | {"notice": NOTICE}) if json else print(result.text())
    if html:
        write_page(result, html)
    if clean:
        result.write_clean(clean)
    if not json:
        print(*(f"written to {written}" for written in (html, clean) if written), NOTICE, sep="\n")


@data_app.command("download", epilog="Example: trustcxr data download covidqu --to COVID-QU-Ex")
def data_download(
    name: Annotated[str, Argument(metavar="NAME", help="covidqu.")],
    to: Annotated[Path | None, Option(help="Folder for it. Default: kagglehub's cache.")] = None,
) -> None:
    """Download a public data set through kagglehub. No other data command uses the network."""
    from trustcxr.data.download import download_covidqu

    if name != "covidqu":
        raise unknown("data set", name, ["covidqu"])
    folder = download_covidqu(to)
    print(f"{folder}\nnext: trustcxr data check {shell_quote(folder)}")


@data_app.command("phantom", epilog="Example: trustcxr data phantom out/phantom --per-class 100")
def data_phantom(
    out: Annotated[Path, Argument(metavar="OUT", help="Folder to write, in the layout of COVID-QU-Ex.")],
    per_class: Annotated[int, Option(min=1, help="Training images per class; validation 1/4, test 1/3 as many.")] = 100,
    size: Annotated[int, Option(help="Side in pixels.")] = 256,
    seed: Annotated[int, Option(help="The same seed gives the same images.")] = 0,
    shortcut: Annotated[
        list[str] | None, Option(help="marker, border, brightness, scanner_noise or tube=SHARE; repeatable.")
    ] = None,
) -> None:
    """Write synthetic chest X-rays with known lesions, exact masks and optional shortcuts."""
    from trustcxr.data.phantom import render_image, write_files

    counts = {"Train": per_class, "Val": max(1, per_class // 4), "Test": max(1, per_class // 3)}
    write_files.write(out, counts, size=size, seed=seed, shortcuts=shortcut or [])
    total = sum(counts.values()) * len(render_image.CLASSES)
    print(f"{out}: {total} synthetic images in the layout of COVID-QU-Ex. {NOTICE}")


@data_app.command("corruptions", epilog="Example: trustcxr data corruptions out/corruptions.png")
def data_corruptions(
    out: Annotated[Path, Argument(metavar="OUT", help="Picture to write, such as corruptions.png.")],
    image: Annotated[Path | None, Option(help="Image to corrupt. Default: a synthetic one.")] = None,
    size: Annotated[int, Option(min=16, max=1024, help="Side of the image in pixels.")] = 224,
    seed: Annotated[int, Option(help="The same seed gives the same sheet.")] = 0,
) -> None:
    """Draw a sheet of every corruption at every severity."""
    from trustcxr.corruptions import preview

    print(f"{preview.write(out, size=size, image=image, seed=seed)}\n{NOTICE}")


_CACHE_HELP = "List or prune decoded images and checkpoints."
cache_app = Typer(help=_CACHE_HELP, epilog="Example: trustcxr cache list", no_args_is_help=True)
CheckpointFolders = Annotated[list[Path] | None, Argument(metavar="[FOLDER...]", help="Also the checkpoints of these.")]


@cache_app.command("list", epilog="Example: trustcxr cache list out/quick")
def cache_list(folders: CheckpointFolders = None, json: Json = False) -> None:
    """List decoded images, and the checkpoints of the folders, with size and age."""
    from trustcxr.study import cache_prune

    document = cache_prune.prune(folders or ())
    size = megabytes(sum(entry.bytes for entry in document.entries))
    entries = plural(len(document.entries), "entry", "entries")
    _print_cache(document, f"{document.cache}: {entries}, {size}", json=json)


@cache_app.command("prune", epilog="Example: trustcxr cache prune out/quick --older-than 60; then with --remove")
def prune_cache(
    folders: CheckpointFolders = None,
    older_than: Annotated[float, Option(help="Days since the last use.")] = 30.0,
    remove: Annotated[bool, Option("--remove", help="Remove the entries that are listed as old.")] = False,
    json: Json = False,
) -> None:
    """List old decoded images and checkpoints; remove them with --remove, if no command uses them."""
    from trustcxr.study import cache_prune

    document = cache_prune.prune(folders or (), older_than=older_than, remove=remove)
    hint = "; the same command with --remove removes them" if document.removable else ""
    old = f"{megabytes(document.removable)} are old{hint}"
    _print_cache(document, f"removed {megabytes(document.freed)}" if remove else old, json=json)


def _print_cache(document: "PruneDocument", last: str, *, json: bool) -> None:
    from trustcxr import report
    from trustcxr.report import terminal

    if json:
        return print_json(document)
    if document.entries:
        report.print_rows(f"decoded images in {document.cache}, and checkpoints", terminal.list_prunable(document))
    return print(last)
