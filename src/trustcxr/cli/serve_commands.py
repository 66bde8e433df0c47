"""Pages that listen: `serve`, `reader`; and what a run's images are like, `familiarity`."""

from pathlib import Path
from typing import Annotated

import typer

from trustcxr.cli.options import Columns, Data, Images, Json, Labels, RunFolder, label_map, listing, print_json
from trustcxr.version import NOTICE

serving_app = typer.Typer()


@serving_app.command(epilog="Example: trustcxr serve out/quick/runs/resnet18-fgsm-s0")
def serve(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of trained runs; two are compared.")],
    host: Annotated[str, typer.Option(help="Address to listen on; beyond this machine a token is demanded.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="Processes that answer.")] = None,
    most_megabytes: Annotated[int, typer.Option(min=1, max=1024, help="The largest file that is taken.")] = 64,
    dicom: Annotated[
        str | None,
        typer.Option(metavar="TITLE@HOST:PORT", help="Also a DICOM node (C-STORE); the answers go to this peer."),
    ] = None,
    dicom_from: Annotated[
        list[str] | None, typer.Option(metavar="TITLE", help="Who may send images; repeatable. The peer unless said.")
    ] = None,
    dicom_title: Annotated[str | None, typer.Option(help="Our own AE title.", show_default="TRUSTCXR")] = None,
    dicom_host: Annotated[str | None, typer.Option(help="Address of the DICOM node.", show_default="127.0.0.1")] = None,
    dicom_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Its port; 0: any that is free.", show_default="11112")
    ] = None,
) -> None:
    """A page on which an image is dropped, and its API: answers, heatmaps, what flips them. Nothing is kept.

    Beyond 127.0.0.1 a token is demanded: the one in TRUSTCXR_TOKEN, or one that is made up and printed.
    """
    from trustcxr.apps.serve import server
    from trustcxr.apps.serve.dicom_node import NodeOptions
    from trustcxr.apps.serve.worker import Limits
    from trustcxr.errors import UserError

    place, ours = None, {"title": dicom_title, "host": dicom_host, "port": dicom_port}
    said = {key: value for key, value in ours.items() if value is not None}
    if dicom is not None:
        place = NodeOptions.from_peer(dicom, callers=tuple(dicom_from or ()), **said)
    elif lonely := [*(["from"] if dicom_from else []), *said]:
        raise UserError(f"--dicom-{lonely[0]} needs --dicom TITLE@HOST:PORT, the peer that gets the answers")
    own = {} if workers is None else {"workers": workers}
    server.serve(runs, host=host, port=port, limits=Limits(most_bytes=most_megabytes << 20, **own), dicom=place)


@serving_app.command(
    epilog="Example: trustcxr reader out/quick --data COVID-QU-Ex --arm resnet18-standard-s0 --arm resnet18-fgsm-s0 "
    "--reader R1 --reader R2"
)
def reader(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study.")],
    arm: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN[:METHOD]", help="Whose maps are shown, two or three times; gradcam unless said."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The study's data, to make maps from; else those that the study has saved.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, max=500, help="How many, drawn at random; 30 unless said.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option("--reader", metavar="NAME", help="Who reads, a pseudonym; repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the images that are drawn; 0 unless said.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8001,
    results: Annotated[bool, typer.Option("--results", help="Write what the readers found so far, as tables.")] = False,
) -> None:
    """A blinded reading: radiologists mark the finding, then rank and rate the heatmaps of two or three models.

    Each reader has a link of their own and goes on where they stopped. Whose map is whose stays in STUDY/reader/.
    """
    from trustcxr.apps.reader import reader_study as reading
    from trustcxr.errors import UserError
    from trustcxr.version import NOTICE

    typed = {"arm": arm, "data": data, "images": images, "reader": name, "seed": seed}
    if results and (beside := next((key for key, value in typed.items() if value is not None), None)):
        raise UserError(
            f"--{beside} is of a reading, and --results writes what was found so far: leave one of them out"
        )
    if results:
        for path in reading.results(study):
            print(path)
        return print(NOTICE)
    asked = reading.ReaderOptions(arms=arm or (), data=data, images=images, seed=seed)
    return reading.serve(study, asked, name or (), host=host, port=port)


@serving_app.command(epilog="Example: trustcxr familiarity out/quick/runs/resnet18-fgsm-s0 --data COVID-QU-Ex")
def familiarity(
    run: RunFolder,
    data: Data,
    label: Labels = None,
    column: Columns = None,
    images: Images = None,
    json: Json = False,
) -> None:
    """Fit what the run's training images are like, so that predict and serve warn of an image that is unlike them.

    Wants the data that the run was trained on. The threshold accepts 95 % of its validation images; how many of its
    test images are called unlike is counted and said. Written into the run's folder, as tensors alone.
    """
    from trustcxr.report.terminal import describe_ood_fit
    from trustcxr.runs import fit_ood as known

    found = known.fit(run, data, labels=label_map(label), listing=listing(column, images))
    if json:
        return print_json(found)
    print(f"{describe_ood_fit(found)}\nwritten to {run}\n{NOTICE}")
    return None
