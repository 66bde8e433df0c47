"""Eight equal runs on two Ray nodes of one core against one such node: times as fast, and the same results.

python -m benchmarks.speed.cluster [--runs 8] [--epochs 8] [--images 96] [--out FILE]

Goal: at least 1.7 times. The nodes are processes of this machine, so it needs two cores that are free; the load is
printed beside the ratio, since with other work on the machine the ratio says nothing.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

GOAL = 1.7
_PAGE = """# Two Ray nodes against one

`python -m benchmarks.speed.cluster {typed}`: `resnet10t` at 64 pixels on synthetic images, a node a core of this
machine, nothing else running. Research software. Not for diagnosis."""


def runs_of(images: Path, folder: Path, given: argparse.Namespace) -> list[Any]:
    """A study's folder with `runs` equal runs but for the seed, and their training tasks."""
    from trustcxr.recipes.parsing import validate
    from trustcxr.recipes.study_recipe import StudyRecipe, run_recipe
    from trustcxr.recipes.training_recipe import DefenceRecipe
    from trustcxr.storage import atomic, layout
    from trustcxr.study.engines import Task

    content = {
        "name": "equal",
        "data": {"size": 64},
        "models": [{"name": "resnet10t", "weights": "none"}],
        "training": {"epochs": given.epochs, "batch_size": 16},
        "seeds": list(range(given.runs)),
    }
    recipe = validate(StudyRecipe, content, "equal")
    folder.mkdir()
    atomic.write_yaml(folder / layout.STUDY_FILE, {"recipe": recipe.model_dump(mode="json")})
    atomic.write_yaml(folder / layout.DATA_FILE, {"path": str(images)})
    names = [run_recipe(recipe, recipe.models[0], DefenceRecipe(), seed).name for seed in recipe.seeds]
    return [Task(folder, name, "train") for name in names]


def measure(nodes: int, images: Path, work: Path, given: argparse.Namespace) -> tuple[float, list[bytes]]:
    """Seconds that a cluster of so many nodes takes for the runs, after one to warm each node; the weights."""
    from ray.cluster_utils import Cluster

    from trustcxr.study.engines import EngineOptions, get
    from trustcxr.study.run_study import carry_out

    options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=options | {"include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**options)
        import ray

        ray.init(cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        engine = get("ray", options=EngineOptions(address=cluster.address))
        engine.map(carry_out, runs_of(images, work / f"warm{nodes}", given)[:nodes])  # imports torch, opens the images
        tasks, began = runs_of(images, work / f"study{nodes}", given), time.perf_counter()
        if failed := [outcome for outcome in engine.map(carry_out, tasks) if outcome is not None]:
            raise SystemExit(f"not done: {failed[0]}")
        taken = time.perf_counter() - began
        ray.shutdown()
    finally:
        cluster.shutdown()
    return taken, [(t.study / "runs" / t.run / "model.safetensors").read_bytes() for t in tasks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--out", type=Path, help="a Markdown file for what is printed")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    from trustcxr.data.phantom import write_files

    with tempfile.TemporaryDirectory() as work:
        os.environ["TRUSTCXR_CACHE"] = f"{work}/cache"
        images = write_files.write(
            Path(work) / "images", {"Train": -(-given.images // 3), "Val": 8, "Test": 2}, size=64
        )
        before = os.getloadavg()[0]
        (one, first), (two, second) = (measure(nodes, images, Path(work), given) for nodes in (1, 2))
    said = [
        f"{given.runs} equal runs, {os.cpu_count()} cores, load {before:.1f} before and {os.getloadavg()[0]:.1f} after",
        f"one node {one:.1f} s, two nodes {two:.1f} s; {'the same weights' if first == second else 'OTHER WEIGHTS'}",
        f"two nodes are {one / two:.2f} times as fast: {'met' if one / two >= GOAL else 'MISSED'} (>= {GOAL})",
    ]
    print("\n".join(said))
    if given.out:
        page = _PAGE.format(typed=" ".join(sys.argv[1:]))
        lines = "\n".join(f"    {line}" for line in said)
        given.out.write_text(f"{page}\n\n{lines}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
