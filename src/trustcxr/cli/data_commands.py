"""`trustcxr data`: look at data, make some, or bring it here."""

from pathlib import Path
from typing import Annotated

import typer

from trustcxr.cli.options import Columns, Images, Json, listing, print_json
from trustcxr.storage.os_errors import shell_quote
from trustcxr.version import NOTICE

data_app = typer.Typer(
    help="Look at data, make some, or bring it here.",
    epilog="Example: trustcxr data check COVID-QU-Ex --html out/check.html",
    no_args_is_help=True,
)


@data_app.command(
    "check", epilog="Example: trustcxr data check COVID-QU-Ex --html out/check.html --clean out/clean.parquet"
)
def data_check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of X-rays, a list of images, or a manifest.")],
    html: Annotated[Path | None, typer.Option(help="Write one page with pictures of each finding.")] = None,
    clean: Annotated[Path | None, typer.Option(help="Write a manifest (.parquet or .csv) without what leaks.")] = None,
    probes: Annotated[bool, typer.Option(help="Look for confounds: what gives the class away.")] = True,
    column: Columns = None,
    images: Images = None,
    json: Json = False,
) -> None:
    """Read every file; say what is there and what is wrong: faults, leaks between splits, confounds."""
    from trustcxr.data.checks.check import check_data
    from trustcxr.data.checks.check_html import write_page
    from trustcxr.errors import UserError
    from trustcxr.storage.os_errors import check_writable

    if clean and clean.suffix.lower() not in (".csv", ".parquet"):
        raise UserError(f"{clean}: a manifest is written as .csv or .parquet")
    for place in filter(None, (html, clean)):
        check_writable(place)
    found = check_data(path, probes=probes, **listing(column, images))
    if json:
        print_json(found.to_dict() | {"notice": NOTICE})
    else:
        print(found.text())
    if html:
        write_page(found, html)
    if clean:
        found.write_clean(clean)
    if not json:
        print(*(f"written to {written}" for written in (html, clean) if written), NOTICE, sep="\n")


@data_app.command("download", epilog="Example: trustcxr data download covidqu --to COVID-QU-Ex")
def data_download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="covidqu.")],
    to: Annotated[Path | None, typer.Option(help="Folder to keep it in; kagglehub's own cache unless said.")] = None,
) -> None:
    """Bring a public data set through kagglehub; this is the one data command that uses the network."""
    from trustcxr.data.download import download_covidqu
    from trustcxr.errors import unknown

    if name != "covidqu":
        raise unknown("data set", name, ["covidqu"])
    folder = download_covidqu(to)
    print(f"{folder}\nnext: trustcxr data check {shell_quote(folder)}")


@data_app.command("phantom", epilog="Example: trustcxr data phantom out/phantom --per-class 100")
def data_phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, in COVID-QU-Ex's layout.")],
    per_class: Annotated[
        int, typer.Option(min=1, help="Training images of each class; a quarter as many to validate, a third to test.")
    ] = 100,
    size: Annotated[int, typer.Option(help="Side in pixels.")] = 256,
    seed: Annotated[int, typer.Option(help="The same seed gives the same images.")] = 0,
    shortcut: Annotated[
        list[str] | None,
        typer.Option(help="Plant one, such as marker=0.9 (also border, brightness, scanner_noise, tube); repeatable."),
    ] = None,
) -> None:
    """Write synthetic chest X-rays with known lesions, exact masks and, if asked, planted shortcuts."""
    from trustcxr.data.phantom import anatomy, write_files

    counts = {"Train": per_class, "Val": max(1, per_class // 4), "Test": max(1, per_class // 3)}
    write_files.write(out, counts, size=size, seed=seed, shortcuts=shortcut or [])
    total = sum(counts.values()) * len(anatomy.CLASSES)
    print(f"{out}: {total} synthetic images in the layout of COVID-QU-Ex. {NOTICE}")


@data_app.command("corruptions", epilog="Example: trustcxr data corruptions out/corruptions.png")
def data_corruptions(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Picture to write, such as corruptions.png.")],
    image: Annotated[Path | None, typer.Option(help="An X-ray to show them on; a synthetic one unless said.")] = None,
    size: Annotated[int, typer.Option(min=16, max=1024, help="Side of the image in pixels.")] = 224,
    seed: Annotated[int, typer.Option(help="The same seed draws the same.")] = 0,
) -> None:
    """A sheet of every corruption at every severity, to look at."""
    from trustcxr.corruptions import preview

    print(f"{preview.write(out, size=size, image=image, seed=seed)}\n{NOTICE}")
