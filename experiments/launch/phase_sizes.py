"""How many devices each phase of a plan is worth, for `slurm_chain.sh`.

`plan ... --devices 8,16,64 --json | python -m experiments.launch.phase_sizes --at-least-rows 64`
"""

import argparse
import json
import sys
from collections.abc import Mapping


def phase_sizes(plan: Mapping, at_least_rows: int, at_least_efficiency: float = 0.0) -> list[int]:
    """The largest number of devices that each phase has work for.

    Args:
      plan: what `plan --devices A,B,... --json` prints.
      at_least_rows: of an update, on each device.
      at_least_efficiency: the share of the devices that is used, by the lower end of what
        `plan --measure` predicts; numbers of devices of which it says nothing are left out.

    Returns:
      One number for each phase; the smallest of a phase's legal ones where none is good enough.

    >>> by_devices = [
    ...     {"num_devices": n, "rows_per_device": 64 // n, "predicted_efficiency": None}
    ...     for n in (1, 2, 4)
    ... ]
    >>> plan = {"rows": [{"legal_devices": [1, 2, 4], "by_devices": by_devices}]}
    >>> phase_sizes(plan, at_least_rows=32), phase_sizes(plan, at_least_rows=128)
    ([2], [1])
    """
    sizes = []
    for row in plan["rows"]:
        good = [
            there["num_devices"]
            for there in row["by_devices"]
            if there["num_devices"] in row["legal_devices"]
            and there["rows_per_device"] >= at_least_rows
            and (not at_least_efficiency or _lowest(there) >= at_least_efficiency)
        ]
        sizes.append(max(good, default=min(row["legal_devices"])))
    return sizes


def _lowest(there: Mapping) -> float:
    return min(there["predicted_efficiency"] or [0.0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--at-least-rows", type=int, default=32, help="on each device")
    parser.add_argument("--at-least-efficiency", type=float, default=0.0, help="such as 0.5")
    given = parser.parse_args()
    print(*phase_sizes(json.load(sys.stdin), given.at_least_rows, given.at_least_efficiency))


if __name__ == "__main__":
    main()
