"""A dry run: what a study will cost on this machine, from timed steps of each network at the recipe's size and batch.

Nothing is trained. Of each network, with random weights, a few steps of training and a few passes are timed, on noise;
of a network that is too slow for the whole batch as many images as the time allows, which is said. What a step takes
whatever the batch, the optimiser's part, is timed apart, and counted once. What was timed is kept in the cache at
once, so that a dry run that was stopped goes on, and the next one on this machine is quick. How many passes a film
takes in testing and explaining is counted, not assumed: the real work is done on a few synthetic films by a network so
small that what is left of the time is that of all else (corruptions, measures, tables).
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from trustcxr import attacks, console
from trustcxr.about import __version__
from trustcxr.catalogue import PLAIN_STEP, Method
from trustcxr.console import Progress
from trustcxr.data import load_dataset
from trustcxr.data.phantom import writing
from trustcxr.data.store import cache_folder
from trustcxr.evaluation import predictions
from trustcxr.evaluation.run import Run, device
from trustcxr.explain import lesions, scores
from trustcxr.models import factory
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.study import StudyRecipe
from trustcxr.recipes.testing import AttackRecipe, ExplanationRecipe
from trustcxr.results import documents, files
from trustcxr.results.documents import CostDocument, FilmCost, WayCost
from trustcxr.study import planned
from trustcxr.study.costs import kind
from trustcxr.training import precision
from trustcxr.training.provenance import hardware
from trustcxr.training.step import TrainingStep

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset

SECONDS = 1.0  # that each thing is timed for, about; a network of which one try takes longer is tried once
_FIRST, _TIMES = 2, 3  # images of the first trial; trials at the size that is kept
_COUNTER = "test_resnet"  # whose passes are counted: timm's own for tests
KEPT = "timed"  # in the user's cache: what was timed on this machine
_IDLE = 0.7  # of one core, below which other work is in the way
_CLASSES = 3
_NOT_TIMED = {  # keys of a run that no step's time hangs on
    "model": ("label", "weights", "training"),
    "defence": ("label", "training"),
    "training": (
        *("epochs", "learning_rate", "schedule", "warmup_epochs", "patience"),
        *("refit", "track", "tracking_uri"),
    ),
}
_FILMS = {"Val": 1, "Test": 2}  # synthetic, of each class


def measure(
    recipe: StudyRecipe, counts: dict[str, int], *, seconds: float = SECONDS, again: bool = False
) -> CostDocument:
    """Costs of every run of a recipe on this machine. `counts`: images of each role, as CostDocument has them.

    `seconds`: about how long each step and pass is timed. What was timed on this machine before is taken from there,
    which is said, unless `again`. Raises UserError where a network cannot be built.
    """
    runs = planned.runs(recipe, None)
    ways = {kind(run): run for run in (*runs.certain, *runs.open)}
    found = CostDocument(
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=hardware(),
        threads=torch.get_num_threads(),
        size=recipe.data.size,
        counts=counts,
        films={},
        ways={},
        notes=_notes(list(ways.values())),
    )
    began = time.perf_counter(), time.process_time()
    before = {} if again else _before(ways.values())
    known = len(before)
    with Progress(f"timing {len(ways)} ways of training", len(ways) + 1) as bar:
        found.films = _per_film(recipe, counts)
        bar.advance(note="passes counted")
        bar.skip(len(before))
        networks: dict[str, WayCost] = {}
        for name, run in sorted(ways.items(), key=lambda pair: pair[1].defence.attacks):  # the cheaper first
            network = f"{run.model.called} {run.lung_gate}"
            if name not in before:
                before[name] = way(run, seconds=seconds, like=networks.get(network))
                files.write_json(cache_folder() / KEPT / f"{_key(run)}.json", before[name])
                bar.advance(note=name)
            found.ways[name] = networks[network] = before[name]
    found.notes += [f"{known} of {len(ways)} were timed here before; --again times them anew"] if known else []
    found.notes += _busy(time.perf_counter() - began[0], time.process_time() - began[1])
    return found


def _busy(seconds: float, worked: float) -> list[str]:
    """What to say where this process had much less of the processor than one thread can have."""
    share = worked / seconds if seconds else 1.0
    if torch.cuda.is_available() or share > _IDLE:
        return []
    had = f"the machine was busy: one thread had {share:.0%} of a core"
    if _alone():
        return [f"{had}; the figures are of processor time, so while other work goes on all takes longer"]
    return [f"{had}, so on an idle machine all takes less"]


def _key(run: RunRecipe) -> str:
    """What the time of a network and its training hangs on, on this machine, as a file's name."""
    said = run.model_dump(mode="json", include={"model", "defence", "training"})
    for part, names in _NOT_TIMED.items():
        for name in names:
            said[part].pop(name, None)
    machine = [hardware().plain(), torch.get_num_threads(), torch.__version__, __version__]
    return sha256(json.dumps([said, run.data.size, machine], sort_keys=True).encode()).hexdigest()[:24]


def _before(ways: Iterable[RunRecipe]) -> dict[str, WayCost]:
    """Of these ways those that were timed on this machine before."""
    place = cache_folder() / KEPT
    found = {kind(run): documents.read_if_whole(WayCost, place / f"{_key(run)}.json") for run in ways}
    return {name: cost for name, cost in found.items() if cost is not None}


def _notes(runs: Sequence[RunRecipe]) -> list[str]:
    """What is not in the figures."""
    found = ["at most: training may stop before its last epoch, and an attack at an image that it has broken"]
    if any(run.lung_gate for run in runs):
        found.append("the training of the lung segmenter behind each gate is not in it")
    if any(run.defence.certifies for run in runs):
        found.append("proofs (certified.parquet) and bounds on validation are not in it")
    return found


def way(run: RunRecipe, *, seconds: float = SECONDS, like: WayCost | None = None) -> WayCost:
    """One network trained in one way: a step at the recipe's batch, and a film with and without its gradient.

    `like`: the same network trained in another way, whose passes cost the same and are not timed again.
    """
    model = factory.build(run.model.name, classes=_CLASSES, weights="none", **run.network_options()).to(device())
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = run.training.batch_size
    first = _Step(model, run, min(_FIRST, batch))
    first()
    moving = _timed(first.move)
    step, timed = _seconds_an_image(lambda count: _Step(model, run, count), batch, seconds, beside=moving)
    found = WayCost(step=moving + step * batch, batch=batch, timed=timed)
    if like is not None:
        return found.model_copy(update={"forward": like.forward, "gradient": like.gradient})
    model.eval()
    found.forward, _ = _seconds_an_image(lambda count: _forward(model, run, count), batch, seconds / 2)
    found.gradient, _ = _seconds_an_image(lambda count: _gradient(model, run, count), batch, seconds / 2)
    return found


def _seconds_an_image(
    prepare: Callable[[int], Callable[[], object]], most: int, budget: float, *, beside: float = 0.0
) -> tuple[float, int]:
    """Seconds an image, and with how many at once that was timed: as many as the budget lets try, up to `most`.

    `beside`: seconds of the work that are the same for any number of images.
    """
    count, spent = min(_FIRST, most), 0.0
    work = prepare(count)
    work()  # what is done once alone: memory, choice of kernels
    while True:
        one = _timed(work)
        spent += one
        next_count = min(most, int(count * (budget - spent) / (2 * one)) if one else most)
        if next_count <= count:
            break
        count = next_count
        work = prepare(count)
        spent += _timed(work)  # memory anew
    tries = [one]
    while len(tries) < _TIMES and spent + one < budget:
        tries.append(_timed(work))
        spent += tries[-1]
    return max(float(np.median(tries)) - beside, 0.0) / count, count


def _timed(work: Callable[[], object]) -> float:
    """Seconds: of one thread its processor time, which other work on the machine touches little."""
    clock = time.process_time if _alone() else time.perf_counter
    began = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began


def _alone() -> bool:
    """Whether one thread does all the work, so that its processor time is how long an idle machine takes."""
    return torch.get_num_threads() == 1 and not torch.cuda.is_available()


class _Step:
    """A whole step of training on `count` films of noise: augmentation, attack, loss, gradient, optimiser."""

    def __init__(self, model: nn.Module, run: RunRecipe, count: int) -> None:
        size = run.data.size
        training = run.training.model_copy(update={"batch_size": count})
        self.module = TrainingStep(
            model,
            run.model_copy(update={"training": training}),
            classes=_CLASSES,
            steps_per_epoch=100,
            lungs=_discs(count, size, 0.3) if run.needs_lungs else None,
            lesions=_discs(count, size, 0.1) if run.training.needs_lesions else None,
            healthy=0 if run.training.counterfactuals else None,
        ).to(device())
        self.module.train()
        self.optimiser = self.module.configure_optimizers()["optimizer"]
        batch = _noise(count, size), torch.arange(count) % _CLASSES, torch.arange(count)
        self.batch = tuple(part.to(device()) for part in batch)
        self.lower = precision.lower(training.precision, device().type)

    def __call__(self) -> None:
        self.optimiser.zero_grad()
        with torch.autocast(device().type, self.lower or torch.bfloat16, enabled=self.lower is not None):
            loss = self.module.training_step(self.batch, 0)  # type: ignore[arg-type]
        loss.backward()
        self.move()

    def move(self) -> None:
        """What the optimiser does with the gradients that are there, however many images they are of."""
        self.optimiser.step()


def _forward(model: nn.Module, run: RunRecipe, count: int) -> Callable[[], object]:
    images = _noise(count, run.data.size).to(device()) / 255

    def forward() -> Tensor:
        with torch.inference_mode(), attacks.undisturbed(model):
            return model(images)

    return forward


def _gradient(model: nn.Module, run: RunRecipe, count: int) -> Callable[[], object]:
    images = _noise(count, run.data.size).to(device()) / 255
    labels = torch.zeros(count, dtype=torch.long, device=device())
    return lambda: attacks.get(PLAIN_STEP)(model, images, labels, epsilon=0.01)


def _noise(count: int, size: int) -> Tensor:
    drawn = torch.randint(0, 256, (count, 1, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return drawn.contiguous(memory_format=torch.channels_last)


def _discs(count: int, size: int, radius: float) -> np.ndarray:
    """Masks (count, size, size) of 0 and 1."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    return np.repeat((np.hypot(x, y) < radius)[None].astype(np.uint8), count, 0)


# --- passes, counted -------------------------------------------------------------------------------------------------


@dataclass
class _Passes:
    """Images that went through a network, without and with gradients."""

    forward: float = 0.0
    gradient: float = 0.0
    handles: list[torch.utils.hooks.RemovableHandle] = field(default_factory=list)

    def watch(self, model: nn.Module) -> None:
        """Count from now on, in copies of the model too."""

        def seen(module: nn.Module, given: tuple[Tensor, ...], answer: object) -> None:
            if torch.is_grad_enabled():
                self.gradient += len(given[0])
            else:
                self.forward += len(given[0])

        self.handles.append(model.cam_layer.register_forward_hook(seen))  # type: ignore[union-attr]


def _per_film(recipe: StudyRecipe, counts: dict[str, int]) -> dict[str, FilmCost]:
    """Passes and other seconds a film of each kind of work, from doing it on a few synthetic films."""
    passes = _Passes()
    with tempfile.TemporaryDirectory() as place, _quietly():
        films = writing.write(Path(place) / "films", _FILMS, size=recipe.data.size)
        test, val = (load_dataset(films, split, recipe.data.size, cache=place, workers=1) for split in ("Test", "Val"))
        run = _counter(recipe, Path(place), test.classes)
        passes.watch(run.model)
        found = {"test": _counted(passes, len(test), lambda: _test(run, test, recipe))}
        if counts.get("annotated"):
            found |= _explaining(passes, run, test, val, recipe.explanation)
    return found


def _counter(recipe: StudyRecipe, place: Path, classes: tuple[str, ...]) -> Run:
    """The network whose passes are counted, as a run that was never trained."""
    content = {"model": {"name": _COUNTER, "weights": "none"}, "data": {"size": recipe.data.size}}
    model = factory.build(_COUNTER, classes=len(classes)).eval()
    return Run(place, model, classes, RunRecipe.model_validate(content))


def _test(run: Run, films: "Dataset", recipe: StudyRecipe) -> object:
    """All conditions of the evaluation, every attack to its end: images count as right, whatever is answered."""

    def carry_out(
        attack: AttackRecipe, images: Tensor, labels: Tensor, epsilon: float, options: predictions.Options
    ) -> Tensor:
        if "stop_when_wrong" in options:
            options["stop_when_wrong"] = False
        with torch.no_grad():
            labels = run.model(images).argmax(1)
        return attacks.get(attack.name)(run.model, images, labels, epsilon=epsilon, **options)

    options = recipe.evaluation
    asked = [attack for attack in options.attacks if attack.surrogate is None]
    return predictions.predict(
        run, films, asked, corruptions=options.corruptions, batch_size=len(films), carry_out=carry_out, at_once=False
    )


def _explaining(
    passes: _Passes, run: Run, test: "Dataset", val: "Dataset", options: ExplanationRecipe
) -> dict[str, FilmCost]:
    """Of every annotated film, of those that are drawn for the dear measures, and of thresholds on validation."""
    # A layer that a method names need not be in the small network: what it costs is that of the method elsewhere.
    methods = tuple(dict.fromkeys(_base(name) for name in options.methods))
    alone = options.model_copy(update={"methods": methods, "sample": 0})
    count = len(scores.annotated(test))

    def explain(some: ExplanationRecipe) -> None:
        for _ in scores.batches(run, test, some):
            pass

    every = _counted(passes, count, lambda: explain(alone))
    both = _counted(passes, count, lambda: explain(alone.model_copy(update={"sample": count})))
    removed = _counted(passes, count, lambda: lesions.of_run(run, test))
    sampled = _counted(passes, count, lambda: lesions.of_run(run, test, sample=count, epsilon=options.epsilon))
    tuned = _counted(passes, len(scores.annotated(val)), lambda: scores.tune(run, val, methods))
    share = len(options.methods) / len(methods)
    drawn = _combined(_scaled(_combined(both, every, -1), share), _combined(sampled, removed, -1), 1)
    return {
        "explain": _combined(_scaled(every, share), removed, 1),
        "sample": drawn.model_copy(update={"most": options.sample}),
        "tune": _scaled(tuned, share),
    }


def _base(name: str) -> str:
    base = Method.parse(name).base
    return "gradcam" if base.startswith(("evidence", "activation")) else base


def _counted(passes: _Passes, films: int, work: Callable[[], object]) -> FilmCost:
    """Passes and seconds a film of some work on so many films."""
    before, began = (passes.forward, passes.gradient), time.perf_counter()
    work()
    seconds = (time.perf_counter() - began) / films
    forward, gradient = (
        (now - then) / films for now, then in zip((passes.forward, passes.gradient), before, strict=True)
    )
    return FilmCost(forward=forward, gradient=gradient, seconds=seconds)


def _combined(first: FilmCost, second: FilmCost, sign: int) -> FilmCost:
    names = ("forward", "gradient", "seconds")
    return FilmCost(**{n: max((getattr(first, n) or 0.0) + sign * (getattr(second, n) or 0.0), 0.0) for n in names})


def _scaled(film: FilmCost, by: float) -> FilmCost:
    return FilmCost(**{n: (getattr(film, n) or 0.0) * by for n in ("forward", "gradient", "seconds")})


@contextmanager
def _quietly() -> Iterator[None]:
    """No bars and lines of the work on synthetic films, which is not the user's."""
    before = console.tell(lambda text: None)
    try:
        yield
    finally:
        console.tell(before)
