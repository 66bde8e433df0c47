"""List the corruptions, the layouts of data sets, and the views of images that hide a part."""

from dataclasses import dataclass

from trustcxr.registry.base import by_name


@dataclass(frozen=True)
class Corruption:
    """A corruption; an artefact is drawn on the image and has a mask."""

    name: str
    label: str
    about: str
    artefact: bool = False
    function: str = ""

    @property
    def where(self) -> str:
        """Return its function as "module:name"."""
        return self.function or f"{'artefacts' if self.artefact else 'acquisition'}:{self.name}"


CORRUPTIONS = by_name(
    Corruption("gaussian_noise", "Gaussian noise", "noise of the detector's electronics"),
    Corruption("poisson_noise", "Poisson noise", "too small a dose: quantum noise"),
    Corruption("defocus_blur", "defocus blur", "out of focus, as a photographed image is"),
    Corruption("motion_blur", "motion blur", "the patient breathed or moved"),
    Corruption("resolution", "resolution", "made smaller and larger again"),
    Corruption("jpeg", "JPEG", "compressed with loss"),
    Corruption("contrast", "contrast", "windowed too soft or too hard"),
    Corruption("exposure", "exposure", "too bright or too dark"),
    Corruption("gamma", "gamma", "another characteristic curve"),
    Corruption("rotation", "rotation", "the patient or the image was not straight"),
    Corruption("letters", "letters", "side markers and words such as PORTABLE", artefact=True),
    Corruption("arrows", "arrows", "arrows, as in teaching files and publications", artefact=True),
    Corruption("collimation_border", "collimation border", "the black border of the collimator", artefact=True),
    Corruption("leads_and_tubes", "leads and tubes", "ECG leads and tubes", artefact=True),
    Corruption("device", "device", "a pacemaker and its leads", artefact=True),
)


@dataclass(frozen=True)
class Layout:
    """A layout of a data set's folder or list; layouts are tried in order."""

    name: str
    about: str
    function: str


LAYOUTS = by_name(
    Layout("list", "a manifest or list (.csv, .parquet, .txt)", "csv_lists:read_list"),
    Layout("covidqu", "COVID-QU-Ex as published", "folders:read_covidqu"),
    Layout("covidx", "COVIDx: train.txt, test.txt and a folder of images", "csv_lists:read_covidx"),
    Layout("folders", "class folders of images, optionally below Train, Val and Test", "folders:read_folders"),
)

# Views that hide the lungs, or all else (Maguolo and Nanni 2021): with black, mid-grey or the image's mean, exactly or
# by the lungs' box, which hides their outline.
LUNGS_HIDDEN = (
    *("lungs_blacked_out", "lungs_in_grey", "lungs_in_mean"),
    *("box_blacked_out", "box_in_grey", "box_in_mean"),
)
LUNGS_ONLY = ("lungs_only", "lungs_only_on_grey")  # grey as the lung gate fills: its model has never seen black there
VIEWS = (*LUNGS_HIDDEN, *LUNGS_ONLY, "silhouette_only", "border_only", "lungs_on_another_image")
GROUPINGS = ("source", "strict_external", "view")  # columns by which clean images are grouped
