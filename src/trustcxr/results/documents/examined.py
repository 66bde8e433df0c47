"""What audit.json says beside a metrics.json: operating points, findings, for whom a model is bad."""

from trustcxr.results.flat import Document, Number, Share


class Curve(Document):
    """A curve's points and their 95 % intervals."""

    x: list[Number] = []
    y: list[Number] = []
    low: list[Number] = []
    high: list[Number] = []


class OperatingPoint(Document):
    """A class against the rest, or a finding, at its threshold, under one condition (`attack` "clean": as it is).

    `threshold` is a probability, None where the highest class is the answer; `origin` says who set it. Of the
    likelihood ratios an end that is None has no limit. `sensitivity_at_specificity`: the highest sensitivity that any
    threshold has on these films at a specificity of `at_specificity` or more. Average precision has the interval of
    resamples alone, which says too little near 0 and 1; the others have the score interval there.

    `aimed_at`: what the attack was made against. "threshold": this decision, and under worst-case a film counts with
    its worst score under any attack within epsilon. "answer": the highest class, so that an attack on the threshold may
    leave less. Empty where nothing was attacked, or nobody wrote it down.
    """

    finding: str = ""
    attack: str = ""
    epsilon: Number = None
    steps: int | None = None
    aimed_at: str = ""
    threshold: Number = None
    origin: str = ""
    n: int | None = None
    positives: int | None = None
    sensitivity: Share = Share()
    specificity: Share = Share()
    likelihood_positive: Share = Share()
    likelihood_negative: Share = Share()
    auroc: Share = Share()
    average_precision: Share = Share()
    sensitivity_at_specificity: Share = Share()
    at_specificity: Number = None
    roc: Curve = Curve()
    precision_recall: Curve = Curve()


class Subgroup(Document):
    """The films with one value of a column. `gap`: their accuracy less that of all others, with p corrected (Holm).

    `n`: answers, of a model of findings several a film; `films`: those that they are of. `findings`: over how many of
    these balanced accuracy and AUROC are means, those that some of the group's films have and some have not.
    """

    name: str = ""
    films: int | None = None
    n: int | None = None
    groups: int | None = None
    findings: int | None = None
    accuracy: Share = Share()
    balanced_accuracy: Share = Share()
    constant_answer: Number = None
    auroc_macro: Share = Share()
    ece: Share = Share()
    gap: Share = Share()
    p_value: Number = None
    p_corrected: Number = None
    settled: bool | None = None


class Division(Document):
    """The films divided by a column of the data's table. `merged`: groups too small to stand alone, and their sizes.

    `alike`: other columns that divide the films exactly so. Without groups where there is nothing to judge: `text`
    says why.
    """

    column: str = ""
    alike: list[str] = []
    groups: list[Subgroup] = []
    worst: str = ""
    merged: dict[str, int] = {}
    text: str = ""


class Finding(Document):
    """A finding of a model with one sigmoid each: whether it could be judged on these films, and on how many.

    `unknown`: films whose label of it is not known, which are left out; `why` it could not be judged.
    """

    name: str = ""
    judged: bool | None = None
    why: str = ""
    threshold: Number = None
    origin: str = ""
    n: int | None = None
    positives: int | None = None
    unknown: int | None = None


class HandedIn(Document):
    """Adversarial images that somebody handed in: accuracy on them alone, and what they add to our worst case.

    `found_alone`: images that mislead the model where ours did not; `missed`: the other way round.
    """

    by: str = ""
    sha256: str = ""
    epsilon: Number = None
    n: int | None = None
    accuracy: Share = Share()
    found_alone: int | None = None
    missed: int | None = None
