"""How images are laid out on disk, what goes wrong with them, and the views of them that leave something out."""

from dataclasses import dataclass

from trustcxr.registry.base import by_name


@dataclass(frozen=True)
class Corruption:
    """What goes wrong with an image; an artefact is drawn on it, and knows where."""

    name: str
    label: str
    about: str
    artefact: bool = False
    function: str = ""

    @property
    def where(self) -> str:
        """Its function as "module:name"."""
        return self.function or f"{'artefacts' if self.artefact else 'acquisition'}:{self.name}"


CORRUPTIONS = by_name(
    (
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
)


@dataclass(frozen=True)
class Layout:
    """How a data set's folder or list is laid out, in the order in which they are tried."""

    name: str
    about: str
    function: str


LAYOUTS = by_name(
    (
        Layout("list", "a manifest or list (.csv, .parquet, .txt)", "csv_lists:read_list"),
        Layout("covidqu", "COVID-QU-Ex as published", "covidqu:read_covidqu"),
        Layout("covidx", "COVIDx: train.txt, test.txt and a folder of images", "csv_lists:read_covidx"),
        Layout("folders", "class folders of images, optionally below Train, Val and Test", "folders:read_folders"),
    )
)

# What is left to a model that must do without the disease, or without the rest (Maguolo and Nanni 2021).
# The lungs hidden in black, in mid-grey and in the image's own mean; exactly, and by their box, which hides the
# outline.
LUNGS_HIDDEN = (
    "lungs_blacked_out",
    "lungs_in_grey",
    "lungs_in_mean",
    "box_blacked_out",
    "box_in_grey",
    "box_in_mean",
)
VIEWS = (
    *LUNGS_HIDDEN,
    "lungs_only",
    "lungs_only_on_grey",  # the grey that the lung gate puts outside: black there, it does not know
    "silhouette_only",
    "border_only",
    "lungs_on_another_image",
)
GROUPINGS = ("source", "strict_external", "view")  # columns of the data by which the clean images are told apart
