"""Keys that are taken and would do nothing, and values that no training survives: refused where a recipe is typed.

A recipe that is read back from a run or a study is let through: what was trained once stays readable.
"""

from collections.abc import Callable, Sequence

from trustcxr.catalogue import BACKGROUNDS
from trustcxr.errors import UserError
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.training import TrainingRecipe

Met = Callable[[RunRecipe], bool]


def _changes_films(run: RunRecipe) -> bool:
    return BACKGROUNDS[run.background].view is not None


def _made_films(run: RunRecipe) -> bool:
    return run.training.counterfactuals > 0


# A key of training -> whether a run uses it, and what to say where none does.
_MADE = (_made_films, "counterfactuals, such as training.counterfactuals: 0.3")
_NEEDS: dict[str, tuple[Met, str]] = {
    "balanced_by": (lambda run: run.training.balanced, "training.balanced: true"),
    "swap_share": (_changes_films, "a background that changes films: swap, mask or crop"),
    "counterfactual_fills": _MADE,
    "counterfactual_parts": _MADE,
    "counterfactual_epsilon": _MADE,
    "healthy": _MADE,
    "tracking_uri": (lambda run: run.training.track == "mlflow", "training.track: mlflow, which has a server"),
}


def check(runs: Sequence[RunRecipe], where: str) -> None:
    """UserError for a key that none of the runs of one recipe uses, or for a value with which one cannot be trained."""
    for key, (used, wanted) in _NEEDS.items():
        usual = TrainingRecipe.model_fields[key].default
        said = [run for run in runs if getattr(run.training, key) != usual]
        if said and not any(used(run) for run in said):
            value = getattr(said[0].training, key)
            raise UserError(f"{where}: {key}: {value} does nothing without {wanted}; add that, or leave {key} out")
    for run in runs:
        for problem in _impossible(run):
            raise UserError(f"{where}: {run.name}: {problem}")


def _impossible(run: RunRecipe) -> list[str]:
    training, defence = run.training, run.defence
    still = not defence.epsilon and not defence.epsilon_outside and not defence.weight_perturbation
    problems = {
        f"background: {run.background} with swap_share: 0 changes no film; give it a share, or leave background out": (
            _changes_films(run) and not training.swap_share
        ),
        f"{defence.name} at epsilon 0 attacks nothing; give it a radius, such as 0.02, or choose standard": (
            defence.attacks and still
        ),
        f"regulariser: {defence.regulariser:g} does nothing without an epsilon that grows; set defence.ramp, such as "
        "0.5, or leave regulariser out": defence.regulariser > 0 and not defence.ramp,
        "trades with beta: 0 has no loss on attacked images; give it a weight, such as 6, or choose standard": (
            defence.name == "trades" and not defence.beta
        ),
        "label_smoothing: 1 makes every class as right as any other; it must be below 1, such as 0.1": (
            training.label_smoothing == 1
        ),
        f"warmup_epochs: {training.warmup_epochs:g} is more than the {training.epochs} epochs of training; at most "
        f"{training.epochs}": training.warmup_epochs > training.epochs,
        f"weight_decay: {training.weight_decay:g} at a learning rate of {training.learning_rate:g} takes all of the "
        "weights away at each step; choose less, such as 0.01": training.weight_decay * training.learning_rate >= 1,
    }
    return [problem for problem, true in problems.items() if true]
