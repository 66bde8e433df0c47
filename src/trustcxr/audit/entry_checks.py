"""The gate at the door: what is checked of a given model before any figure of it is believed.

The declaration, then what the authors of AutoAttack ask for (answers that change from run to run, probabilities in the
place of logits, gradients that vanish, gradients used inside the model, black box stronger than white box), and an
active test: whether the attack finds an adversarial example that is sure to exist.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trustcxr.attacks.bpda import GradientTraits, probe_gradients
from trustcxr.audit.active_test import ENOUGH, Planted, active_test
from trustcxr.audit.declaration_check import Declared, check_declaration
from trustcxr.audit.formats import ExternalModel, WrappedModel
from trustcxr.audit.formats.last_layer import is_layer_output
from trustcxr.audit.formats.loading import open_on
from trustcxr.audit.formats.wrapper import plain_name, saturation
from trustcxr.audit.subject import Subject
from trustcxr.console import Progress
from trustcxr.errors import UserError
from trustcxr.evaluation.stochastic import OverDraws
from trustcxr.models.preserve_state import preserve_state
from trustcxr.registry import STOCHASTIC_DRAWS
from trustcxr.storage.schemas import EntryCheck

SATURATED = 0.05  # share of saturated answers that is said
VANISHED = 0.02  # share of images without a gradient that is let pass
STRONGER = 0.02  # accuracy that an attack without gradients may leave less than one with them
LOOKED_AT = 32  # images on which gradients and draws are looked at
ALONE = 8  # images whose answers beside each other are held against those of each alone
BESIDE = 0.03  # by how much of themselves logits may move with the images beside: numbers of few bits move by less
PLANTED = 16  # images around which an adversarial example is planted
_WEIGHTED = {"conv2d", "linear"}  # layers whose second argument is a weight
_PARTS = 3  # of the gate, that take their time: a look at its gradients, its declaration, planted examples


@dataclass(frozen=True)
class Check:
    """One check of the gate. passed is None where it could not be made; `text` says what was seen, in a sentence.

    remedied: it says what to write in the model file in place of what is there.
    """

    check: str
    passed: bool | None
    text: str
    remedied: bool = False

    def document(self) -> EntryCheck:
        """As it stands in audit.json under `gate`."""
        return EntryCheck(check=self.check, passed=self.passed, text=self.text)


@dataclass(frozen=True)
class EntryReport:
    """The gate's checks, and what an attack must know of the model.

    model: the given one or, where its answers are of another kind than declared, the same taken as what they are: judge
    on it what an attack finds. model and traits are None where only scores were given. gradients: whether attacks can
    use any. subject: what was given, as it was examined: without a conversion that answers otherwise on images.
    """

    checks: tuple[Check, ...]
    model: nn.Module | None = None
    traits: GradientTraits | None = None
    gradients: bool = True
    subject: Subject | None = None

    @property
    def random(self) -> bool:
        """Whether its answers change from run to run."""
        return self.traits is not None and self.traits.random

    @property
    def judged(self) -> nn.Module | None:
        """The model as whatever is found is judged on it: where it answers at random, over draws."""
        return OverDraws(self.model) if self.model is not None and self.random else self.model

    @property
    def believed(self) -> bool:
        """Whether figures under attack may be printed: the attack found what was planted, or nothing could be."""
        return all(c.passed is not False for c in self.checks if c.check == "active test")


def run_entry_checks(
    subject: Subject, images: Tensor, labels: Tensor, *, epsilon: float = 0.02, planted: int = PLANTED
) -> EntryReport:
    """All checks that need no long attack, on images (N, 1, H, W) in [0, 1] of known class (N,).

    Some hundred images, the classes evenly among them, tell a wrong declaration; the first 32 serve the rest, and
    around the first `planted` an adversarial example is planted. A conversion that does not answer on all images as the
    original does is not asked again: the original is, without gradients. The model is left as it was found.
    """
    if subject.model is None:
        return EntryReport(
            (Check("model", None, "only its scores were given, so there was nothing to attack"),), gradients=False
        )
    few = images[:LOOKED_AT]
    with preserve_state(subject.model), Progress(f"{subject.name}: the gate at the door", _PARTS) as bar:
        subject, differ = open_on(subject, images) if isinstance(subject, ExternalModel) else (subject, None)
        assert subject.model is not None
        kind, model = _kind(subject.model, few)
        traits = probe_gradients(model, few)
        bar.advance(note="its declaration")
        gradients = traits.healed < 1 or traits.zero_gradients < 1
        checks = [
            *_declaration(subject, images, labels, STOCHASTIC_DRAWS if traits.random else 1),
            *_conversion(subject, gradients, len(images), differ),
            _deterministic(traits),
            *([] if traits.random else _alone(model, few[:ALONE])),
            *kind,
            _gradients(traits),
            *_scale(traits),
            *_stopped(traits),
            *_inside(model, few),
        ]
        bar.advance(note="planted examples")
        if gradients:
            checks.append(_planted(active_test(model, few[:planted], epsilon=epsilon, traits=traits)))
        bar.advance()
    return EntryReport(tuple(checks), model, traits, gradients, subject)


def black_box_check(white: float, black: float, *, epsilon: float) -> Check:
    """Whether attacks without gradients left less accuracy than those with them: then gradients are masked."""
    figures = f"{black:.1%} under attacks without gradients, {white:.1%} under those with them, at epsilon {epsilon:g}"
    passed = black >= white - STRONGER
    text = f"accuracy is {figures}" + ("" if passed else ": gradients lead attacks astray, so the lower figure counts")
    return Check("black box against white box", passed, text)


def declaration_check(found: Declared, count: int) -> Check:
    """What the declaration looks like on `count` images, and the remedy where another is better."""
    return Check("declaration", found.passed, _declared_text(found, count), remedied=found.remedy is not None)


def _declaration(subject: Subject, images: Tensor, labels: Tensor, draws: int) -> Iterator[Check]:
    if isinstance(subject, ExternalModel) and subject.kind == "sigmoid":
        return  # findings are judged one by one, each with its own labels
    assert subject.model is not None  # run_entry_checks saw to it
    torch.manual_seed(0)  # the same verdict each time; the random state is put back
    found = check_declaration(subject.model, subject.classes, images, labels, draws=draws)
    yield declaration_check(found, len(images))


def _declared_text(found: Declared, count: int) -> str:
    as_it_is = f"accuracy on {count} images is {found.accuracy:.1%} as declared"
    if found.remedy is not None:
        or_not = ", unless it takes the one for the other on these images" if found.weak else ""
        return f"{as_it_is}, and {found.better:.1%} with another declaration: write {found.remedy}{or_not}"
    if found.at_chance:
        return (
            f"{as_it_is}, no better than chance ({found.chance:.1%}), and no other {found.tried} surely does better: "
            "is it the right model for these images?"
        )
    return f"{as_it_is}; no other {found.tried} surely does better"


def _conversion(subject: Subject, gradients: bool, count: int, differ: float | None) -> Iterator[Check]:
    if isinstance(subject, ExternalModel) and subject.origin.gradients != "own":
        none = [note for note in subject.origin.notes if note.startswith("no gradients")]
        if none and gradients:
            yield Check("conversion", False, f"{none[0]}; stand-ins give it some")
        elif none:
            yield Check("conversion", False, f"{none[0]}; robust accuracy can only be overestimated")
        else:
            text = "gradients come from a conversion that answers as the original does"
            text += "" if differ is None else f": on {count} images their answers are at most {differ:.1e} apart"
            yield Check("conversion", True, text)


def _deterministic(traits: GradientTraits) -> Check:
    if not traits.random:
        return Check("same answer twice", True, "the same image has the same answer each time")
    text = f"its answers change from run to run: attacks average over {traits.draws} draws, and "
    text += f"the answer that counts is the mean of {STOCHASTIC_DRAWS} draws, "
    text += f"under worst-case the worst of {STOCHASTIC_DRAWS}"
    return Check("same answer twice", False, text)


def _alone(model: nn.Module, images: Tensor) -> Iterator[Check]:
    """Whether an image is answered alike beside others and beside copies of itself, which is as good as alone."""
    if len(images) < 2:
        return
    with torch.no_grad():
        together = model(images).float()
        alone = [model(image.expand_as(images))[place].float() for place, image in enumerate(images)]
    moved = (torch.stack(alone) - together).abs().amax(1) / together.abs().amax(1).clamp(min=1e-12)
    share = float(moved.median())
    if share > BESIDE:
        text = (
            f"the answer to an image hangs on the images beside it: alone its logits are others by {share:.0%}. Export "
        )
        text += "it in evaluation mode, model.eval() first: BatchNorm must not measure the batch"
        yield Check("same answer alone", False, text)
        return
    yield Check("same answer alone", True, "an image has the same answer whatever images are beside it")


def _kind(model: nn.Module, images: Tensor) -> tuple[list[Check], nn.Module]:
    """Whether the answers are of the declared kind; and the model as the kind that they are of."""
    if not isinstance(model, WrappedModel):
        return [], model
    with torch.no_grad():
        answers = model.answers(images)
    inside = bool(((answers >= 0) & (answers <= 1)).all())
    sums = inside and bool(((answers.sum(1) - 1).abs() < 1e-3).all()) and answers.shape[1] > 1
    declared = model.given.kind
    crowded = inside and not sums
    if declared == "logits" and crowded and is_layer_output(model.net, model.prepare(images[:2])):
        return [Check("logits", True, "it answers with logits, which lie in [0, 1]: its last layer makes them")], model
    if declared != "sigmoid" and crowded:
        text = "its answers lie in [0, 1] and do not sum to 1: each was taken as the sigmoid of its class, by its logit"
        return [Check("logits", False, text)], model.of_kind("sigmoid")
    if declared == "logits":
        if sums:
            text = "it answers with probabilities, whose logarithm was taken: write output.kind: probabilities"
            return [Check("logits", False, text)], model.of_kind("probabilities")
        return [Check("logits", True, "it answers with logits")], model
    if declared == "sigmoid" and not inside:
        ends = f"{float(answers.min()):.3g} to {float(answers.max()):.3g}"
        text = f"its answers, from {ends}, are no sigmoids: each was taken for the logit of its finding"
        return [Check("logits", None, text)], model.of_kind("logits")
    if not inside:
        ends = f"{float(answers.min()):.3g} to {float(answers.max()):.3g}"
        text = f"its answers, from {ends}, are no {declared} and were taken as logits: write output.kind: logits"
        return [Check("logits", False, text)], model.of_kind("logits")
    share = saturation(answers, declared)
    text = f"it answers with {declared}, of which the logits were taken; {share:.1%} are 0 or 1 to rounding"
    return [Check("logits", share <= SATURATED, text)], model


def check_kind(model: nn.Module, images: Tensor, name: str) -> None:
    """UserError where the answers on images (N, 1, H, W) are surely of another kind than was declared."""
    for check in _kind(model, images[:LOOKED_AT])[0]:
        if check.passed is False and "write output.kind" in check.text:
            raise UserError(f"{name}: {check.text}")


def _gradients(traits: GradientTraits) -> Check:
    zero, broken = traits.zero_gradients, traits.broken_gradients
    if zero <= VANISHED and broken == 0:
        return Check("gradients", True, f"{1 - zero:.1%} of images have a gradient")
    text = f"{zero:.1%} of images have no gradient" + (f", {broken:.1%} one that is not finite" if broken else "")
    return Check("gradients", False, f"{text}; through stand-ins {1 - traits.healed:.1%} have one")


def _scale(traits: GradientTraits) -> Iterator[Check]:
    if traits.scale != 1:
        text = (
            f"its logits lie {traits.margin:.3g} apart: they are divided by {traits.scale:.3g} before a loss is taken"
        )
        yield Check("scale of the logits", False, text)


def _stopped(traits: GradientTraits) -> Iterator[Check]:
    names = {"detour": "leaving torch or becoming whole numbers", "no_grad": "no_grad", "detach": "detach"}
    if traits.stopped:
        listed = ", ".join(f"{names.get(name, name)} ({count})" for name, count in traits.stopped.items())
        yield Check("nothing stops gradients", False, f"gradients are stopped by {listed}: stand-ins let them through")


def _inside(model: nn.Module, images: Tensor) -> list[Check]:
    """Whether it computes gradients while it answers, and whether it answers an image in more than one pass."""
    with counted_gradients() as calls, torch.enable_grad():
        model(images[:2])
    name = "no gradients used inside"
    if calls:
        text = "it computes gradients while it answers, so an attack would have to be made for it: its figures flatter"
        return [Check(name, False, text)]
    passes = _passes(model, images)
    if passes <= 1:
        said = "it answers in one forward pass" if passes else "it computes none while it answers"
        return [Check(name, True, said)]
    several = (
        f"its first layer runs {passes} times for one image: it answers by several views of it, or searches for its "
        "answer. Attacks go through all of them; of a search, one that were made for it may find more"
    )
    return [Check(name, True, "it computes none while it answers"), Check("one pass", None, several)]


def _passes(model: nn.Module, images: Tensor) -> int:
    """How often the first layer runs for an image, 0 where that is not seen; parts of a batch are of other images."""

    def count(radiographs: Tensor) -> int:
        with Passes() as seen, torch.no_grad():
            model(radiographs)
        return seen.count

    if (size := getattr(model, "batch", None)) is not None:
        return count(images[:size]) if len(images) >= size else 0
    few, more = count(images[:2]), count(images[:4])
    return few if few == more else (more - few) // 2


class Passes(TorchFunctionMode):
    """Counts how often the first layer with weights that runs inside is run: once a pass through the network."""

    def __init__(self) -> None:
        super().__init__()
        self.first: Tensor | None = None
        self.count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let the call through, and count it."""
        if plain_name(func) in _WEIGHTED and len(args) > 1 and isinstance(args[1], Tensor):
            weight = args[1]
            self.first = weight if self.first is None else self.first
            # A weight that is made anew for each call, as normalised ones are, is known by its shape.
            made = not isinstance(weight, nn.Parameter) and weight.shape == self.first.shape
            self.count += weight is self.first or made
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_gradients() -> Iterator[list[str]]:
    """The calls of torch's backward passes that are made inside, by name."""
    calls: list[str] = []
    places = [(torch.autograd, "grad"), (torch.autograd, "backward"), (torch.Tensor, "backward")]
    before = [getattr(owner, name) for owner, name in places]

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return function(*args, **kwargs)

        return call

    try:
        for (owner, name), function in zip(places, before, strict=True):
            setattr(owner, name, counted(name, function))
        yield calls
    finally:
        for (owner, name), function in zip(places, before, strict=True):
            setattr(owner, name, function)


def _planted(found: Planted | None) -> Check:
    if found is None:
        return Check(
            "active test",
            None,
            "no adversarial example could be planted: no linear last layer is seen, or none that tells one",
        )
    text = (
        f"of {found.count} adversarial examples that were planted the attack found {found.found:.0%}, random tries "
        f"{found.by_chance:.0%}"
    )
    if found.passed:
        return Check("active test", True, text)
    return Check("active test", False, f"{text}: fewer than {ENOUGH:.0%}, so its figures under attack are withdrawn")
