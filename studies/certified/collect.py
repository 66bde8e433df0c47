"""Add runs to the table, and write its means over seeds anew, with intervals over the seeds (Student's t).

    python studies/certified/collect.py --network '3 x plain3-ibp-0.02' --seed 3 RUN-EVALUATED RUN-CERTIFIED

RUN-EVALUATED is the output of `trustcxr evaluate RUN --attack worst-case`, RUN-CERTIFIED that of
`trustcxr certify RUN`, both on Test with the same values of epsilon. Intervals of one run are over groups of images.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from trustcxr.statistics import Bootstrap, share_interval
from trustcxr.storage.atomic import write_table

TABLE = Path(__file__).with_name("results.csv")
FIGURES = ("clean", "certified", "worst_case")
Row = dict[str, object]


def figure(name: str, right: pd.DataFrame) -> Row:
    """Return the columns of one figure, from images with `right`, `label` and `group`."""
    bootstrap = Bootstrap.over(right["group"])
    means = bootstrap.means(right["right"].to_numpy(float))
    low, high = share_interval(bootstrap, means)
    balanced = right.groupby("label")["right"].mean().mean()
    return {name: means[0], f"{name}_low": low, f"{name}_high": high, f"balanced_{name}": balanced}


def list_rows(evaluated: Path, certified: Path) -> list[Row]:
    """Return the figures of one run at each epsilon."""
    answers = pd.read_parquet(evaluated / "predictions.parquet")
    answers["right"] = np.stack(answers["logits"].to_list()).argmax(1) == answers["label"]
    rows = []
    proofs = pd.read_parquet(certified / "certified.parquet")
    for epsilon in proofs["epsilon"].unique():
        proof = proofs[proofs["epsilon"] == epsilon]
        attacked = answers[(answers["attack"] == "worst-case") & np.isclose(answers["epsilon"], epsilon)]
        rows.append(
            {"epsilon": epsilon, "n": len(proof)}
            | figure("clean", answers[answers["attack"] == "clean"])
            | figure("certified", proof.assign(right=proof["certified"]))
            | figure("worst_case", attacked)
        )
    return rows


def mean_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the means over the seeds of each network at each epsilon."""
    rows = []
    for (network, epsilon), part in table.groupby(["network", "epsilon"], sort=False):
        row: Row = {"network": network, "seed": "mean", "seeds": len(part), "epsilon": epsilon, "n": part["n"].iloc[0]}
        for name in FIGURES:
            mean, reach = part[name].mean(), stats.t.ppf(0.975, len(part) - 1) * part[name].sem()
            row |= {name: mean, f"{name}_low": mean - reach, f"{name}_high": mean + reach}
            row[f"balanced_{name}"] = part[f"balanced_{name}"].mean()
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluated", type=Path)
    parser.add_argument("certified", type=Path)
    parser.add_argument("--network", required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    table = pd.read_csv(TABLE, dtype={"seed": str}).query("seed != 'mean'")
    table = table[(table["network"] != options.network) | (table["seed"] != str(options.seed))]
    new = pd.DataFrame(list_rows(options.evaluated, options.certified))
    table = pd.concat([table, new.assign(network=options.network, seed=str(options.seed), seeds=1)])
    table = table.sort_values(["network", "epsilon", "seed"], ascending=[False, True, True])
    write_table(TABLE, pd.concat([table, mean_rows(table)]))


if __name__ == "__main__":
    main()
