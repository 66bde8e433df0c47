"""Start a web page: `serve`, `reader-study`."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from trustcxr.cli.options import resolve_run
from trustcxr.errors import UserError
from trustcxr.version import NOTICE

serve_app = Typer()


@serve_app.command(epilog="Example: trustcxr serve out/quick/runs/resnet18-fgsm-s0")
def serve(
    runs: Annotated[list[Path], Argument(metavar="RUN...", help="Run folders or trained models; two are compared.")],
    host: Annotated[str, Option(help="Address to listen on. Other machines need a token.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0: any free port.")] = 8000,
    workers: Annotated[int | None, Option(min=1, max=64, help="Processes that answer.")] = None,
    most_megabytes: Annotated[int, Option(min=1, max=1024, help="Largest file that is accepted.")] = 64,
    dicom: Annotated[
        str | None, Option(metavar="TITLE@HOST:PORT", help="Also be a DICOM node; this peer gets answers.")
    ] = None,
    dicom_from: Annotated[
        list[str] | None, Option(metavar="TITLE", help="Who may send; repeatable. Default: the peer.")
    ] = None,
    dicom_title: Annotated[str | None, Option(help="AE title of this node.", show_default="TRUSTCXR")] = None,
    dicom_host: Annotated[str | None, Option(help="Address of this node.", show_default="127.0.0.1")] = None,
    dicom_port: Annotated[int | None, Option(min=0, max=65535, help="0: any free port.", show_default="11112")] = None,
    dicom_log_accession: Annotated[
        bool, Option("--dicom-log-accession", help="Log the accession number of each image that is not answered.")
    ] = False,
) -> None:
    """Start a page, and its API, that answers for an image: heatmaps, perturbations. No image is stored.

    Other machines need a token: the value of TRUSTCXR_TOKEN, or a random one, which is printed.
    """
    from trustcxr.apps.serve import server
    from trustcxr.apps.serve.dicom_node import NodeOptions
    from trustcxr.apps.serve.limits import Limits

    typed = {"title": dicom_title, "host": dicom_host, "port": dicom_port, "log_accession": dicom_log_accession or None}
    options = {key: value for key, value in typed.items() if value is not None}
    node = None
    if dicom is not None:
        node = NodeOptions.from_peer(dicom, callers=tuple(dicom_from or ()), **options)
    elif unused := [*(["from"] if dicom_from else []), *options]:
        raise UserError(
            f"--dicom-{unused[0].replace('_', '-')} needs --dicom TITLE@HOST:PORT, the peer that gets the answers"
        )
    limits = {"most_bytes": most_megabytes << 20} | ({} if workers is None else {"workers": workers})
    server.serve([resolve_run(run) for run in runs], host=host, port=port, limits=Limits(**limits), dicom=node)


@serve_app.command(
    epilog="Example: trustcxr reader-study out/quick --data COVID-QU-Ex --arm resnet18-standard-s0 "
    "--arm resnet18-fgsm-s0 --reader R1 --reader R2"
)
def reader_study(
    study: Annotated[Path, Argument(metavar="STUDY", help="Folder of a study, or of one run.")],
    arm: Annotated[list[str] | None, Option(metavar="RUN[:METHOD]", help="Maps to show; one to three times.")] = None,
    data: Annotated[Path | None, Option(help="Data for new maps. Default: the saved maps.")] = None,
    images: Annotated[int | None, Option(min=1, max=500, help="Number of random images. Default: 30.")] = None,
    reader: Annotated[list[str] | None, Option(metavar="NAME", help="Pseudonym of a reader; repeatable.")] = None,
    seed: Annotated[int | None, Option(min=0, help="Seed of the random images. Default: 0.")] = None,
    host: Annotated[str, Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0: any free port.")] = 8001,
    results: Annotated[bool, Option("--results", help="Write tables of the answers so far.")] = False,
) -> None:
    """Start a blinded reader study: radiologists mark the finding, then rank and rate heatmaps of one to three models.

    Each reader has a private link and resumes there. STUDY/reader/ holds the answers, and which map is of which model.
    """
    from trustcxr.apps.reader import reader_study

    typed = {"arm": arm, "data": data, "images": images, "reader": reader, "seed": seed}
    if results and (option := next((key for key, value in typed.items() if value is not None), None)):
        raise UserError(f"--{option} and --results: tables are of a study as it is. Leave one of them out.")
    if results:
        for path in reader_study.write_results(study):
            print(path)
        return print(NOTICE)
    options = reader_study.ReaderOptions(arms=arm or (), data=data, images=images, seed=seed)
    return reader_study.serve(study, options, reader or (), host=host, port=port)
