"""One of the processes that `run_locally` starts in the tests: `worker FOLDER DOES...`.

The I-th of DOES is what the I-th process does. It joins nobody and needs no JAX.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from adabatch_jax.cluster.local_processes import end_with_parent


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("does", nargs="+")
    for flag in ("coordinator", "num-processes", "process-id", "local-processes"):
        parser.add_argument(f"--{flag}")
    given = parser.parse_args()
    end_with_parent()
    index = int(given.process_id)
    told = vars(given) | {"pid": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
    what = given.does[index]
    heard = []
    if what == "ignores":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif what in ("saves", "saves long"):

        def save(number, frame):
            heard.append(number)
            time.sleep(0 if what == "saves" else 1.5)
            print(f"saved after {[*map(int, heard)]}")
            sys.exit(130 if number == signal.SIGINT else 143)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, save)
    if what == "has a child":
        told["child"] = subprocess.Popen(["sleep", "60"]).pid
    path = given.folder / f"{index}.json"
    path.with_suffix(".part").write_text(json.dumps(told, default=str))
    path.with_suffix(".part").rename(path)
    # Nobody ends before all have begun.
    while len([*given.folder.glob("*.json")]) < int(given.num_processes):
        time.sleep(0.01)
    print(f"this is {index}")
    print("and an error", file=sys.stderr)
    if what.startswith("ends with "):
        sys.exit(int(what.removeprefix("ends with ")))
    if what.startswith("dies of "):
        os.kill(os.getpid(), int(what.removeprefix("dies of ")))
    if what == "ends soon":
        time.sleep(0.5)
        sys.exit(134)
    time.sleep(60)


if __name__ == "__main__":
    main()
