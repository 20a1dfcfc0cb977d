"""What the tests start as several processes: `program.py WHAT [--coordinator ...]`.

It joins the others, and prints one line of JSON that tells what it has seen.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time

from adabatch_jax import cluster
from adabatch_jax.system.errors import AdabatchError

HEARD = []


def say(**told):
    print(json.dumps(told), flush=True)


def sum_over_devices(processes):
    """Each process brings its number plus one on each of its devices."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    devices = jax.devices()
    mesh = Mesh(np.array(devices), ("data",))
    where = NamedSharding(mesh, PartitionSpec("data"))
    own = np.full(len(jax.local_devices()), processes.index + 1.0, np.float32)
    array = jax.make_array_from_process_local_data(where, own)
    total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))(array)
    return {"devices": len(devices), "local": len(own), "sum": float(total)}


def talk(processes):
    """Exchanges from the main thread and from another at the same time."""
    said, there = [], []

    def other():
        for k in range(5):
            there.append(processes.exchange("in the background", f"{k} {processes.index}", 20))

    thread = threading.Thread(target=other)
    thread.start()
    for k in range(5):
        said.append(processes.exchange("rows", f"ü{k}-{processes.index}", 20))
    said.append(processes.exchange("nothing", "", 20))
    thread.join()
    processes.barrier("end", 20)
    return {"said": said, "there": there, "failure": processes.failure()}


def late(processes):
    """The last process says nothing."""
    if processes.index == processes.count - 1:
        time.sleep(2.5)
        return {}
    try:
        processes.exchange("plan", "x", 1.5)
    except AdabatchError as error:
        return {"error": str(error), "code": error.exit_code}


def fail(processes):
    """Process 0 fails, the others wait in an exchange and end with its code."""
    if processes.index == 0:
        time.sleep(1)
        processes.say_failure("the disk is full.", 5)
        processes.end_now(5)
    try:
        processes.exchange("never", "x", 60)
    except AdabatchError as error:
        say(error=str(error), code=error.exit_code)
        processes.end_now(error.exit_code)


def stop(processes):
    """Each process gets a SIGTERM that its own handler hears."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)
    return {"heard": HEARD}


def all_of_it(processes):
    told = sum_over_devices(processes) | talk(processes) | stop(processes)
    return told | {"again": cluster.initialize().index if cluster.current() is processes else None}


KINDS = {"all": all_of_it, "sum": sum_over_devices, "talk": talk, "late": late, "fail": fail}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", default="sum")
    parser.add_argument("--coordinator")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: HEARD.append(number))
    if arguments.what == "devices first":
        import jax

        jax.devices()
    try:
        processes = cluster.initialize(
            arguments.coordinator, arguments.num_processes, arguments.process_id,
            start_timeout=20, heartbeat_timeout=10, shutdown_timeout=10,
        )  # fmt: skip
    except AdabatchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    say(index=processes.index, count=processes.count, **KINDS[arguments.what](processes))
    processes.barrier("all have done it", 30)


if __name__ == "__main__":
    main()
