"""Run the entry checks of an audit: the declaration, the pitfalls that AutoAttack's authors list, an active test."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from types import FunctionType, MethodType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trustcxr.attacks.adaptive import GradientTraits, agrees_in_bfloat16, centre, plain_name, probe_gradients
from trustcxr.attacks.base import input_gradient, logits_of
from trustcxr.attacks.pgd import pgd
from trustcxr.audit.active_test import ENOUGH, Planted, active_test
from trustcxr.audit.declaration_check import Declared, check_declaration, predict_parts
from trustcxr.audit.formats import ExternalModel, WrappedModel
from trustcxr.audit.formats.loading import verify_conversion
from trustcxr.audit.formats.wrapper import is_layer_output, saturation
from trustcxr.audit.subject import Subject, is_multilabel
from trustcxr.console import Progress
from trustcxr.errors import UserError
from trustcxr.evaluation.predictions import OverDraws
from trustcxr.models.preserve_state import preserve_state
from trustcxr.registry import BLACK_BOX, ONE_STEP, STOCHASTIC_DRAWS, WORST_CASE, is_linf
from trustcxr.storage.schemas import RunDocument

SATURATED = 0.05  # allowed share of saturated answers
VANISHED = 0.02  # allowed share of images without a gradient
STRONGER = 0.02  # allowed lead of an attack without gradients over one with them, in accuracy
ROUNDED = 0.02  # allowed difference of the sum of declared probabilities from 1: a network of 8 bits rounds each
PROBED = 32  # images for gradients and draws
ALONE = 8  # images to answer both in a batch and alone
BATCH_EFFECT = 0.03  # allowed relative change of logits with the batch: low precision changes them less
PLANTED = 16  # images with a planted adversarial example
FORGOTTEN, UNLIKELY = 0.05, 0.01  # allowed fall of accuracy on moved images, and p-value of a fall by chance
_WEIGHTED = {"conv2d", "linear"}  # layers whose second argument is a weight
STEP_SHARE = 1 / 4  # of epsilon: the step of finite differences
GAINED = 0.25  # least median of the loss gained by it, as a share of what gradients promise
UPHILL = 0.5  # least share of images whose loss rises by twice as much as along a random sign
_CLIMB = 10  # steps of PGD to the images on which bfloat16 must agree
_STEPS = 3  # of the progress bar: gradients, declaration, planted examples
_DEEPEST = 6  # of containers and objects inside each other
_OWN = frozenset(vars(nn.Module()))  # torch's attributes of a module: flags, hooks and tables


@dataclass(frozen=True)
class Check:
    """One entry check, with its result in a sentence."""

    check: str
    passed: bool | None  # None if it could not be carried out
    text: str
    grave: bool = False  # whether no figure is sound unless it passed; attacks adapt to the failure of the others
    remedied: bool = False  # whether the text says what to write in the model file


class Differences(NamedTuple):
    """The median of loss gained over loss promised, and the share of images that gain more than by a random sign."""

    gained: float
    uphill: float

    @property
    def passed(self) -> bool:
        """Return whether the gradients point where the loss rises."""
        return self.gained >= GAINED and self.uphill >= UPHILL


@dataclass(frozen=True)
class EntryReport:
    """The entry checks and what an attack must know of the model."""

    checks: tuple[Check, ...]
    model: nn.Module | None = None  # with the kind of output that it has; None if only scores are available
    traits: GradientTraits | None = None
    gradients: bool = True  # whether attacks can use them
    subject: Subject | None = None  # as examined: without a conversion that answers differently on images
    state: dict[str, str] = field(default_factory=dict)  # digests of weights, buffers and attributes at the beginning
    differences: Differences | None = None  # None without gradients, or if the model is random

    @property
    def random(self) -> bool:
        """Return whether the answers change from run to run."""
        return self.traits is not None and self.traits.random

    @property
    def evaluated_model(self) -> nn.Module | None:
        """Return the model to evaluate adversarial images with: over draws if it answers at random."""
        return OverDraws(self.model) if self.model is not None and self.random else self.model

    @property
    def attacks_reliable(self) -> bool:
        """Return whether the attack found the planted examples, or none could be planted."""
        return all(c.passed is not False for c in self.checks if c.check == "active test")


def run_entry_checks(
    subject: Subject, images: Tensor, labels: Tensor, *, epsilon: float = 0.02, planted: int = PLANTED
) -> EntryReport:
    """Run all checks without long attacks on images (N, 1, H, W) in [0, 1] of known class (N,).

    About a hundred balanced images notice a wrong declaration; the first 32 serve the other checks, the first `planted`
    the active test. If a conversion differs from its original, that is examined, without gradients.
    """
    if subject.model is None:
        text = "only its scores are available, so there was nothing to attack"
        return EntryReport((Check("model", None, text),), gradients=False)
    few = images[:PROBED]
    with preserve_state(subject.model), Progress(f"{subject.name}: entry checks", _STEPS) as bar:
        difference = None
        if isinstance(subject, ExternalModel):
            subject, difference = verify_conversion(subject, images)
        assert subject.model is not None
        kind, model = _check_kind(subject.model, few)
        state = describe_state(model, few[:2])
        sigmoids = is_multilabel(subject)
        traits = probe_gradients(model, few, sigmoids=sigmoids)

        def right(moved: Tensor) -> Tensor:
            return (predict_parts(model, moved).argmax(1) == labels)[:, None]

        bar.advance(note="its declaration")
        gradients = traits.healed < 1 or traits.zero_gradients < 1
        checks = []
        if not sigmoids:  # each finding is checked later, with its own labels
            original = subject.original if isinstance(subject, ExternalModel) else None  # its own runtime is faster
            torch.manual_seed(0)  # the same result each time; the random state is restored
            draws = STOCHASTIC_DRAWS if traits.random else 1
            result = check_declaration(original or subject.model, subject.classes, images, labels, draws=draws)
            checks.append(describe_declaration(result, len(images)))
        text = "the same image has the same answer each time"
        if traits.random:
            text = f"its answers change from run to run: attacks average over {traits.draws} draws, and the answer "
            text += f"that counts is the mean of {STOCHASTIC_DRAWS} draws, under worst-case the worst of "
            text += f"{STOCHASTIC_DRAWS}"
        checks += [
            *_check_conversion(subject, gradients, len(images), difference),
            Check("same answer twice", not traits.random, text, grave=True),
            *([] if traits.random else _check_alone(model, few[:ALONE], sigmoids=sigmoids)),
            *([] if traits.random or sigmoids else [check_memory(right, images)]),
            *kind,
            *_check_gradients(traits),
            *([] if traits.random or not gradients else [_check_followed(model, few[:ALONE], sigmoids=sigmoids)]),
            *_check_inside(model, few),
        ]
        bar.advance(note="planted examples")
        differences = None
        if gradients:
            if not traits.random:
                differences = compare_differences(model, few[:planted], traits, epsilon=epsilon)
            test = active_test(model, few[:planted], epsilon=epsilon, traits=traits)
            checks += _check_planted(test, differences)
        bar.advance()
    return EntryReport(tuple(checks), model, traits, gradients, subject, state, differences)


def check_afterwards(report: EntryReport, images: Tensor, *, epsilon: float, planted: int = PLANTED) -> list[Check]:
    """Check on the images of the entry checks that attacks did not change the model, or were misled by bfloat16."""
    model, few, some, checks = report.model, images[:PROBED], images[: min(planted, PROBED)], []
    if model is None or report.traits is None:
        return []
    with preserve_state(model):
        changed = changed_parts(report.state, describe_state(model, few[:2]))
        text = "its weights, buffers and attributes are what they were before the attacks"
        if changed:
            text = f"the audit changed {', '.join(changed[:3])}{' and others' if changed[3:] else ''}: the model "
            text += "remembers or counts images, so its answers may depend on earlier ones. Export it without that"
        checks.append(Check("state unchanged", not changed, text, grave=True))
        if report.differences is not None and report.differences.passed:
            again = compare_differences(model, some, report.traits, epsilon=epsilon)
            if again is None or not again.passed:
                text = "after the attacks its gradients no longer agree with finite differences, as they did at first"
                checks.append(Check("finite differences", False, text, grave=True))
        if report.traits.bfloat16:
            perturbed = pgd(model, some, logits_of(model, some).argmax(1), epsilon=epsilon, steps=_CLIMB)
            # Near a boundary honest models differ more than on other images.
            if not agrees_in_bfloat16(model, perturbed, shift=0.25, same_signs=0.6):
                text = "attacks searched in bfloat16, in which it has other answers or gradients on adversarial images "
                text += "than in its own precision: they were misled"
                checks.append(Check("bfloat16", False, text, grave=True))
    return checks


def compare_black_box(document: RunDocument) -> Iterator[Check]:
    """Check at each epsilon that attacks without gradients leave no less accuracy: then gradients would be masked."""
    rows = [row for row in document.attacks if row.accuracy.value is not None and is_linf(row.attack)]
    for epsilon in sorted({row.epsilon for row in rows if row.epsilon is not None}):
        accuracies = [(row.attack, row.accuracy.value or 0.0) for row in rows if row.epsilon == epsilon]
        black = [accuracy for attack, accuracy in accuracies if attack in BLACK_BOX]
        # The worst case includes the results of the others, so it says nothing about gradients.
        white = [accuracy for attack, accuracy in accuracies if attack not in (*BLACK_BOX, *ONE_STEP, WORST_CASE)]
        if black and white:
            text = f"accuracy is {min(black):.1%} under attacks without gradients, {min(white):.1%} under those with "
            text += f"them, at epsilon {epsilon:g}"
            passed = min(black) >= min(white) - STRONGER
            text += "" if passed else ": gradients lead attacks astray, so the lower figure counts"
            yield Check("black box against white box", passed, text, grave=True)


def describe_declaration(result: Declared, count: int) -> Check:
    """Return the check of a declaration on `count` images, with the remedy if another declaration is better."""
    text = f"accuracy on {count} images is {result.accuracy:.1%} as declared"
    if result.remedy is not None:
        unless = ", unless it takes the one for the other on these images" if result.weak else ""
        text += f", and {result.better:.1%} with another declaration: write {result.remedy}{unless}"
    elif result.at_chance:
        text += f", no better than chance ({result.chance:.1%}), and no other {result.tried} surely does better: is it "
        text += "the right model for these images?"
    else:
        text += f"; no other {result.tried} surely does better"
    remedied = result.remedy is not None
    return Check("declaration", not remedied and not result.at_chance, text, grave=True, remedied=remedied)


def _check_conversion(subject: Subject, gradients: bool, count: int, difference: float | None) -> Iterator[Check]:
    if not isinstance(subject, ExternalModel) or subject.origin.gradients == "own":
        return
    note = next((note for note in subject.origin.notes if note.startswith("no gradients")), None)
    if note is not None:
        effect = "BPDA gives it some" if gradients else "robust accuracy can only be overestimated"
        yield Check("conversion", False, f"{note}; {effect}")
    else:
        text = "gradients come from a conversion that answers as the original does"
        text += "" if difference is None else f": on {count} images their answers are at most {difference:.1e} apart"
        yield Check("conversion", True, text)


def _check_alone(model: nn.Module, images: Tensor, *, sigmoids: bool) -> Iterator[Check]:
    """Check that an image has the same answer among others, among copies of itself, and alone."""
    if len(images) < 2:
        return
    with torch.no_grad():
        together = model(images).float()
        copies = torch.stack([model(image.expand_as(images))[row].float() for row, image in enumerate(images)])
        try:
            alone = torch.cat([model(image[None]) for image in images]).float()
        except Exception:  # some networks refuse a batch of one, in many ways: nobody is misled by that
            alone = copies
    share = float(torch.maximum(*(_moves(together, other, sigmoids) for other in (copies, alone))).median())
    text = "an image has the same answer whatever images are in its batch"
    if share > BATCH_EFFECT:
        text = f"the answer to an image depends on its batch: alone its logits differ by {share:.0%}. Export it in "
        text += "evaluation mode, model.eval() first: BatchNorm must not measure the batch"
    yield Check("same answer alone", not share > BATCH_EFFECT, text, grave=True)


def check_memory(right: Callable[[Tensor], Tensor], images: Tensor) -> Check:
    """Check that images (N, 1, H, W) have as many right answers if they are moved by so little that nobody sees it.

    `right` returns which answers are right, (N, K). Each pixel is moved by a grey level, up or down at random, or the
    image by half a pixel. A model that knows these images by a table answers worse then.
    """
    answers, falls = right(images), []
    before, accuracy = answers.float().sum(1), float(answers.float().mean())
    for name, moved in (("one grey level", move_greys(images)), ("half a pixel", move_half_pixel(images))):
        gain = right(moved).float().sum(1) - before
        lost, gained = int((gain < 0).sum()), int((gain > 0).sum())
        fall = -float(gain.mean() / answers.shape[1])
        p_value = float(binomtest(lost, lost + gained, alternative="greater").pvalue) if lost + gained else 1.0
        falls.append((name, fall, fall > FORGOTTEN and 2 * p_value < UNLIKELY))  # two tests
    figures = ", ".join(f"{accuracy - fall:.1%} on images moved by {name}" for name, fall, _ in falls)
    text = f"accuracy is {accuracy:.1%} on images as they are, {figures}"
    failed = any(sure for *_, sure in falls)
    if failed:
        text += ": it knows these very images, so the accuracy on new ones is lower"
    return Check("memory of images", not failed, text, grave=True)


def move_greys(images: Tensor) -> Tensor:
    """Return images (N, 1, H, W) in [0, 1] with each pixel a grey level of 255 higher or lower, at random."""
    signs = torch.randint(0, 2, images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return (images + signs.to(images) / 255).clamp(0, 1)


def move_half_pixel(images: Tensor) -> Tensor:
    """Return images (N, 1, H, W) in [0, 1], moved down and right by half a pixel.

    By the Fourier transform of the image and its mirror images, which leaves its sharpness, as interpolation does not.
    """
    height, width = images.shape[-2:]
    mirrored = torch.cat([images, images.flip(-2)], -2)
    mirrored = torch.cat([mirrored, mirrored.flip(-1)], -1).float()
    down, right = torch.fft.fftfreq(2 * height), torch.fft.rfftfreq(2 * width)
    turn = torch.exp(-1j * torch.pi * (down[:, None] + right)).to(mirrored.device)
    moved = torch.fft.irfft2(torch.fft.rfft2(mirrored) * turn, s=mirrored.shape[-2:])
    return moved[..., :height, :width].clamp(0, 1).to(images)


def _check_followed(model: nn.Module, images: Tensor, *, sigmoids: bool) -> Check:
    """Check that the answers are the same if the image requires a gradient, as in an attack."""
    moved = largest_difference_with_gradients(model, images, sigmoids=sigmoids)
    text = "an image has the same answer if a gradient is computed"
    if moved > BATCH_EFFECT:
        text = f"if a gradient is computed its logits differ by {moved:.0%}: attacks would climb another model"
    return Check("same answer with gradients", not moved > BATCH_EFFECT, text, grave=True)


def _check_kind(model: nn.Module, images: Tensor) -> tuple[list[Check], nn.Module]:
    """Check that the answers are of the declared kind, and return the model as the kind that they are of."""
    if not isinstance(model, WrappedModel):
        return [], model
    with torch.no_grad():
        answers = model.answers(images)
    inside = bool(((answers >= 0) & (answers <= 1)).all())
    ends = f"{float(answers.min()):.3g} to {float(answers.max()):.3g}"
    passed: bool | None = False
    kind, declared = model.output_spec.kind, model.output_spec.kind
    allowed = ROUNDED if declared == "probabilities" else 1e-3
    sums = inside and bool(((answers.sum(1) - 1).abs() < allowed).all()) and answers.shape[1] > 1
    if declared == "logits" and inside and not sums and is_layer_output(model.net, model.prepare(images[:2])):
        passed, text = True, "it answers with logits, which lie in [0, 1]: its last layer makes them"
    elif inside and not sums and declared != "sigmoid":
        text = "its answers lie in [0, 1] and do not sum to 1: each was taken as the sigmoid of its class, by its logit"
        kind = "sigmoid"
    elif declared == "logits" and sums:
        text = "it answers with probabilities, whose logarithm was taken: write output.kind: probabilities"
        kind = "probabilities"
    elif declared == "logits":
        passed, text = True, "it answers with logits"
    elif not inside and declared == "sigmoid":
        passed, text = None, f"its answers, from {ends}, are no sigmoids: each was taken for the logit of its finding"
        kind = "logits"
    elif not inside:
        text = f"its answers, from {ends}, are no {declared} and were taken as logits: write output.kind: logits"
        kind = "logits"
    else:
        share = saturation(answers, declared)
        text = f"it answers with {declared}, of which the logits were taken; {share:.1%} are 0 or 1 to rounding"
        passed = share <= SATURATED
    return [Check("logits", passed, text)], model if kind == declared else model.of_kind(kind)


def check_kind(model: nn.Module, images: Tensor, name: str) -> None:
    """Raise UserError if the answers on images (N, 1, H, W) are surely of another kind than declared."""
    for check in _check_kind(model, images[:PROBED])[0]:
        if check.passed is False and "write output.kind" in check.text:
            raise UserError(f"{name}: {check.text}")


def _check_gradients(traits: GradientTraits) -> Iterator[Check]:
    zero, broken = traits.zero_gradients, traits.broken_gradients
    if zero <= VANISHED and broken == 0:
        yield Check("gradients", True, f"{1 - zero:.1%} of images have a gradient")
    else:
        text = f"{zero:.1%} of images have no gradient" + (f", {broken:.1%} one that is not finite" if broken else "")
        text += f"; with BPDA {1 - traits.healed:.1%} have one"
        if traits.healed == 1 and zero == 1:
            text += ": attacks without gradients can only overestimate robust accuracy"
        yield Check("gradients", False, text, grave=traits.healed > VANISHED)
    if traits.scale != 1:
        text = f"its logits lie {traits.margin:.3g} apart: they are divided by {traits.scale:.3g} before a loss is "
        yield Check("scale of the logits", False, text + "taken")
    if traits.stopped:
        names = {"detour": "leaving torch or becoming whole numbers"}
        listed = ", ".join(f"{names.get(name, name)} ({count})" for name, count in traits.stopped.items())
        yield Check("nothing stops gradients", False, f"gradients are stopped by {listed}: BPDA lets them through")


def _check_inside(model: nn.Module, images: Tensor) -> Iterator[Check]:
    """Check that the model computes no gradients while it answers, and answers in one pass."""
    with (
        mock.patch.object(torch.autograd, "grad", wraps=torch.autograd.grad) as grad,
        mock.patch.object(torch.autograd, "backward", wraps=torch.autograd.backward) as backward,  # a tensor's, too
        torch.enable_grad(),
    ):
        model(images[:2])
    name = "no gradients used inside"
    if grad.called or backward.called:
        text = "it computes gradients while it answers, so an attack would have to be made for it: its figures flatter"
        yield Check(name, False, text, grave=True)
        return
    passes = _count_passes(model, images)
    text = "it answers in one forward pass" if passes == 1 else "it computes none while it answers"
    yield Check(name, True, text, grave=True)
    if passes > 1:
        text = f"its first layer runs {passes} times for one image: it answers by several views of it, or searches for "
        text += "its answer. Attacks go through all of them; of a search, one that were made for it may find more"
        yield Check("one pass", None, text)


def _count_passes(model: nn.Module, images: Tensor) -> int:
    """Return how often the first layer runs for an image, 0 if that is not seen. Parts of a batch do not count."""

    def count(batch: Tensor) -> int:
        with Passes() as seen, torch.no_grad():
            model(batch)
        return seen.count

    if (size := getattr(model, "batch", None)) is not None:
        return count(images[:size]) if len(images) >= size else 0
    few, more = count(images[:2]), count(images[:4])
    return few if few == more else (more - few) // 2


class Passes(TorchFunctionMode):
    """Counts the runs of the first layer with weights: one for each pass through the network."""

    def __init__(self) -> None:
        super().__init__()
        self.first: Tensor | None = None
        self.count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call and count it."""
        if plain_name(func) in _WEIGHTED and len(args) > 1 and isinstance(args[1], Tensor):
            weight = args[1]
            self.first = weight if self.first is None else self.first
            # A weight that each call computes, such as a normalised one, is recognised by its shape.
            same_shape = not isinstance(weight, nn.Parameter) and weight.shape == self.first.shape
            self.count += weight is self.first or same_shape
        return func(*args, **(kwargs or {}))


def _check_planted(result: Planted | None, differences: Differences | None) -> list[Check]:
    """Return the check of planted examples; if none tells an attack from random tries, that of finite differences."""
    name, unsure = "active test", result is None or result.random_share >= ENOUGH
    if result is None or (unsure and result.passed):
        text = "no adversarial example could be planted: no last layer is seen, or none that tells one"
        if differences is None:
            return [Check(name, None, text, grave=True)]
        figures = f"along its gradients the loss rises by {differences.gained:.2f} of what they promise, and more than "
        figures += f"by random signs on {differences.uphill:.0%} of images"
        figures += "" if differences.passed else ": its gradients mislead attacks"
        return [Check(name, None, text), Check("finite differences", differences.passed, figures, grave=True)]
    text = f"of {result.count} adversarial examples that were planted the attack found {result.share:.0%}, random "
    text += f"tries {result.random_share:.0%}"
    if not result.passed:
        text += f": fewer than {ENOUGH:.0%}, so its figures under attack are withdrawn"
    return [Check(name, result.passed, text, grave=True)]


def compare_differences(
    model: nn.Module, images: Tensor, traits: GradientTraits, *, epsilon: float
) -> Differences | None:
    """Step from images (B, 1, H, W) by a quarter of epsilon along the sign of the gradient, and along a random sign.

    The loss is the margin of the second highest logit over the highest. Returns None without a gradient to follow.
    """
    view = traits.variants(model)[-1]
    with torch.no_grad():
        top = model(images)
    single = top.shape[1] == 1
    top = top.topk(min(2, top.shape[1]), dim=1).indices

    def loss(logits: Tensor, _: Tensor | None = None) -> Tensor:
        if single:
            return logits[:, 0]
        chosen = logits.float().gather(1, top)
        return chosen[:, 1] - chosen[:, 0]

    try:
        gradient, _ = input_gradient(view, images, top[:, 0], loss=loss)
    except UserError:
        return None
    random = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images) - 0.5
    steps = [((images + STEP_SHARE * epsilon * by.sign()).clamp(0, 1) - images) for by in (gradient, random)]
    with torch.no_grad():
        start, along, across = (loss(model(images + step)) for step in (torch.zeros_like(images), *steps))
    promised = (gradient * steps[0]).flatten(1).sum(1) * view.scale
    gained = (along - start) / promised.clamp(min=torch.finfo(torch.float32).tiny)
    if not bool((promised > 0).any()):
        return None
    uphill = along - start > 2 * (across - start).abs()
    return Differences(float(gained[promised > 0].median()), float(uphill.float().mean()))


def largest_difference_with_gradients(model: nn.Module, images: Tensor, *, sigmoids: bool = False) -> float:
    """Return how far logits move if the image requires a gradient, as a share of the largest logit of each image."""
    with torch.no_grad():
        plain = model(images).float()
    with torch.inference_mode(False), torch.enable_grad():
        followed = model(images.detach().clone().requires_grad_(True)).detach().float()
    return float(_moves(plain, followed, sigmoids).max())


def _moves(plain: Tensor, other: Tensor, sigmoids: bool) -> Tensor:
    """Return how far the logits (N, C) of each image move, as a share of its largest: (N,)."""
    if not sigmoids:  # what all logits of an image share changes no answer
        plain, other = centre(plain), centre(other)
    return (other - plain).abs().amax(1) / plain.abs().amax(1).clamp(min=1e-12)


def describe_state(model: nn.Module, images: Tensor) -> dict[str, str]:
    """Run a model on images (B, 1, H, W), and return a digest of each weight, buffer and attribute of its modules."""
    with torch.no_grad():
        model(images)  # some models store activations: these are of the same images each time
    inner = model.net if isinstance(model, WrappedModel) else model
    state = {
        name: _digest(tensor, 0)
        for tensors in (inner.named_parameters(), inner.named_buffers())
        for name, tensor in tensors
    }
    for name, module in inner.named_modules():
        state |= {f"{name}.{key}".lstrip("."): digest for key, digest in _attributes(module, 0).items()}
    return state


def changed_parts(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return the names of what differs between two states."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _attributes(module: nn.Module, depth: int) -> dict[str, str]:
    return {key: _digest(value, depth + 1) for key, value in vars(module).items() if key not in _OWN}


def _digest(value: Any, depth: int) -> str:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
    if isinstance(value, np.ndarray):
        content = np.ascontiguousarray(value).tobytes() if value.dtype != object else b""
        return f"{value.dtype}{value.shape}{blake2b(content, digest_size=8).hexdigest()}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return blake2b(repr(value).encode(), digest_size=8).hexdigest()
    if depth >= _DEEPEST:
        return type(value).__name__
    if isinstance(value, nn.Module):
        tensors = [*value.named_parameters(), *value.named_buffers(), *value.named_children()]
        return _join([*_attributes(value, depth).items(), *((k, _digest(v, depth + 1)) for k, v in tensors)])
    if isinstance(value, Mapping):
        return _join((str(key), _digest(part, depth + 1)) for key, part in value.items())
    if isinstance(value, list | tuple | deque):
        return _join((str(number), _digest(part, depth + 1)) for number, part in enumerate(value))
    if isinstance(value, set | frozenset):
        return _join((digest, "") for digest in sorted(_digest(part, depth + 1) for part in value))
    if isinstance(value, MethodType):
        value = value.__func__
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell.cell_contents is not value]
        return _join((str(number), _digest(cell, depth + 1)) for number, cell in enumerate(cells))
    return type(value).__name__ + _join((k, _digest(v, depth + 1)) for k, v in getattr(value, "__dict__", {}).items())


def _join(parts: Any) -> str:
    digest = blake2b(digest_size=8)
    for name, part in parts:
        digest.update(f"{name}={part};".encode())
    return digest.hexdigest()
