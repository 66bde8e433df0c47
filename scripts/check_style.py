"""Check what a linter does not know of our style: names, docstrings and module names. Run by `make lint`.

python scripts/check_style.py [FOLDER]

Prints one line for each problem and ends with exit code 1 if there is any.
"""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

VERB_FORMS = frozenset(
    [
        "said",
        "told",
        "asked",
        "given",
        "made",
        "kept",
        "found",
        "known",
        "gone",
        "held",
        "beside",
        "otherwise",
        "alike",
        "own",
        "place",
        "places",
    ]
)
VAGUE_FUNCTIONS = VERB_FORMS | {"of", "read", "check", "film", "films"}
LONGEST_LIFE = 10  # lines from the first to the last use of a local name
FIRST_WORDS = re.compile(r"^(What|Who|Whose|Whether|Of|Where|When|Which|How|Those|That)\b")
# A module name that stands for two kinds of the same thing, such as a table and a figure of accuracy.
TWO_KINDS = frozenset({"accuracy", "base", "calibration", "certified", "provenance", "roc", "saliency"})
Problem = tuple[int, str]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def find_problems(path: Path) -> Iterator[Problem]:
    """Yield the line and the text of each problem of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield from check_docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef) and node.name in VAGUE_FUNCTIONS:
            yield node.lineno, f"{node.name}: name it with a verb and an object"
        elif isinstance(node, ast.arg) and node.arg in VERB_FORMS:
            yield node.lineno, f"{node.arg}: a parameter needs a noun"
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr in VERB_FORMS:
            yield node.lineno, f"{node.attr}: an attribute needs a noun"
        elif isinstance(node, ast.ClassDef):
            yield from check_fields(node)
        if isinstance(node, Function | ast.Module):
            yield from check_lives(node)


def check_docstrings(tree: ast.Module) -> Iterator[Problem]:
    """Yield docstrings that begin with a question word."""
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef | ast.Module):
            text = ast.get_docstring(node) or ""
            if FIRST_WORDS.match(text):
                line = getattr(node, "lineno", 1)
                yield line, f"docstring begins with {text.split()[0]}: begin with an imperative verb"


def check_fields(node: ast.ClassDef) -> Iterator[Problem]:
    """Yield fields of a class that are called by a verb form."""
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.target.id in VERB_FORMS:
            yield part.lineno, f"{part.target.id}: a field needs a noun"


def check_lives(scope: Function | ast.Module) -> Iterator[Problem]:
    """Yield local names that are verb forms and live longer than ten lines."""
    bound: dict[str, int] = {}
    used: defaultdict[str, int] = defaultdict(int)
    inside = list(ast.walk(scope)) if isinstance(scope, Function) else list(scope.body)
    for node in inside:
        for name in ast.walk(node) if isinstance(scope, ast.Module) and isinstance(node, ast.Assign) else [node]:
            if isinstance(name, ast.Name) and name.id in VERB_FORMS:
                if isinstance(name.ctx, ast.Store):
                    bound.setdefault(name.id, name.lineno)
                used[name.id] = max(used[name.id], name.lineno)
    for verb, line in bound.items():
        if used[verb] - line > LONGEST_LIFE:
            yield line, f"{verb}: lives {used[verb] - line} lines; say what it is"


def check_module_names(files: list[Path], source: Path) -> Iterator[str]:
    """Yield module names that stand in two packages and mean two things."""
    homes = defaultdict(list)
    for path in files:
        name = path.parent.name if path.name == "__init__.py" else path.stem
        homes[name].append(path.relative_to(source).as_posix())
    for name, paths in sorted(homes.items()):
        if len(paths) > 1 and name not in TWO_KINDS and name != "__main__":
            yield f"module name {name} stands for {len(paths)} modules: {', '.join(paths)}"


def main() -> None:
    """Check every Python file below the source folder."""
    source = Path(sys.argv[1] if len(sys.argv) > 1 else "src")
    files = sorted(source.rglob("*.py"))
    problems = [f"{path}:{line}: {text}" for path in files for line, text in find_problems(path)]
    problems += check_module_names(files, source)
    print("\n".join(problems) or f"{len(files)} files: names and docstrings are in style")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
