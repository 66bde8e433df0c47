"""The house stays as it was built: few loose files, short functions, typed documents, every name in the catalogue."""

import ast
import inspect
import statistics
from collections.abc import Iterator
from pathlib import Path

from trustcxr import attacks, data, registry
from trustcxr.data.checks import check

SOURCE = Path(__file__).parent.parent / "src" / "trustcxr"
FILES = sorted(SOURCE.rglob("*.py"))


def functions() -> Iterator[tuple[int, str]]:
    """Lines of every function, and where it is."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) and node.body[1:] else node.body
                yield (node.end_lineno or 0) - body[0].lineno + 1, f"{path.relative_to(SOURCE)}: {node.name}"


def test_at_most_ten_files_lie_at_the_root() -> None:
    assert len([path for path in SOURCE.iterdir() if path.is_file()]) <= 10


def test_no_file_is_longer_than_600_lines() -> None:
    assert [str(path) for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 600] == []


def test_functions_are_short() -> None:
    found = sorted(functions())
    lengths = [lines for lines, _ in found]
    assert statistics.median(lengths) <= 8
    assert lengths[int(0.95 * len(lengths))] <= 32
    assert [where for lines, where in found if lines > 60] == []


def test_documents_have_types() -> None:
    counts = {path: path.read_text(encoding="utf-8").count("dict[str, Any]") for path in FILES}
    assert sum(counts.values()) <= 90, {str(path): count for path, count in counts.items() if count}


def test_the_name_of_an_attack_is_read_off_the_catalogue() -> None:
    said = [str(path.relative_to(SOURCE)) for path in FILES if '"fgsm"' in path.read_text(encoding="utf-8")]
    assert len(said) <= 8, said


def test_every_attack_and_saliency_method_and_what_reads_data_has_an_example_that_runs() -> None:
    methods = [entry.function for entry in registry.SALIENCY.values() if entry.function]
    found = [getattr(attack, "func", attack) for attack in map(attacks.get, registry.ATTACKS)]
    found += [registry.load_function("explain", method) for method in methods]
    found += [data.load_dataset, check.check_data]
    assert [function for function in found if ">>> " not in (inspect.getdoc(function) or "")] == []
