"""At how many counts conventional PET reaches the error of another method: `python ci/dose_equivalence.py METHOD ...`.

From the recorded results (docs/leaderboard): the NRMSE of the reference at 2.5, 5, 10 and 50 trues a pixel, as straight
lines over the logarithm of the counts, gives the counts at which it would have the method's error, slice by slice. The
ratio of these to the method's own counts is how much dose or time the method saves; above 1 it saves some. Slices whose
error the reference does not reach within its range count as the end of the range, and are counted.
"""

import argparse
import math
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from multirecon.harness.records import read_records
from multirecon.harness.statistics import anatomy_interval

COUNTS = {"pet_counts_2p5": 2.5, "pet_counts_5": 5.0, "pet_counts_10": 10.0, "pet_counts_50": 50.0}
OTHERS = {"pet_counts_5_t1": 5.0}
"""Tasks with the same scans and something beside them."""


def counts_of(line: list[tuple[float, float]], error: float) -> tuple[float, bool]:
    """Return the counts at which a line of ``(counts, error)`` has an error, and whether that lies within it."""
    for (a, high), (b, low) in pairwise(line):
        if min(high, low) <= error <= max(high, low) and high != low:
            share = (high - error) / (high - low)
            return math.exp(math.log(a) + share * (math.log(b) - math.log(a))), True
    return (line[0][0] if error > line[0][1] else line[-1][0]), False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", help="NAME or NAME:VARIANT")
    parser.add_argument("--reference", default="osem_pet")
    parser.add_argument("--results", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "leaderboard")
    arguments = parser.parse_args()
    errors: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for record in read_records(arguments.results / "records.jsonl")[0]:
        method = ":".join(part for part in (record.bundle, record.variant) if part)
        if record.status == "ok" and record.task in {**COUNTS, **OTHERS}:
            errors[method, record.task][record.sample] = record.metrics["pet_fdg"]["nrmse"]
    print(f"| method | task | counts of {arguments.reference} with that NRMSE over its own | within its range |")
    print("|---|---|---|---|")
    for method in arguments.methods:
        for task, own in {**COUNTS, **OTHERS}.items():
            rows, inside = [], 0
            for sample, error in errors[method, task].items():
                line = [(n, errors[arguments.reference, t][sample]) for t, n in COUNTS.items()
                        if sample in errors[arguments.reference, t]]  # fmt: skip
                if len(line) == len(COUNTS):
                    found, within = counts_of(line, error)
                    rows.append((sample.split("/")[0], found / own))
                    inside += within
            if rows:
                print(f"| {method} | {task} | {anatomy_interval(rows).text(2)} | {inside} of {len(rows)} |")


if __name__ == "__main__":
    main()
