"""Runs in Google's object store, as an emulator has it, in processes that are killed."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pytest

from adabatch_jax.cluster.local_processes import free_port
from tests.cluster.conftest import clean_environment

EMULATOR = shutil.which("gcp-storage-emulator")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        EMULATOR is None,
        reason="gcp-storage-emulator isn't on the PATH; pip install it into an environment of its own",
    ),
]
FLAGS = ("--epochs", "2", "--checkpoint-every", "10st", "--log-every", "5st")


class Emulator:
    def __init__(self, port):
        self.address = f"http://127.0.0.1:{port}"
        self._url = f"{self.address}/storage/v1/b/bucket/o"

    def variables(self, **more):
        return {
            "TENSORSTORE_GCS_HTTP_URL": self.address,
            "NO_GCE_CHECK": "true",
            "GCE_METADATA_IP": "127.0.0.1",
        } | more

    def names(self, folder):
        with urllib.request.urlopen(f"{self._url}?prefix={folder}/") as answer:
            return [item["name"] for item in json.load(answer).get("items", [])]

    def read(self, name):
        quoted = urllib.parse.quote(name, safe="")
        with urllib.request.urlopen(f"{self._url}/{quoted}?alt=media") as answer:
            return answer.read()

    def write(self, name, content):
        quoted = urllib.parse.quote(name, safe="")
        url = f"{self.address}/upload/storage/v1/b/bucket/o?uploadType=media&name={quoted}"
        urllib.request.urlopen(urllib.request.Request(url, content, method="POST")).close()

    def summary(self, folder):
        return json.loads(self.read(f"{folder}/summary.json"))


@pytest.fixture(scope="module")
def emulator():
    port = free_port()
    flags = [f"--port={port}", "--host=127.0.0.1", "--in-memory", "--default-bucket=bucket"]
    process = subprocess.Popen(
        ["timeout", "-k", "5", "500", EMULATOR, "start", *flags],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        started = Emulator(port)
        for _ in range(200):
            try:
                started.names("")
                break
            except OSError:
                time.sleep(0.05)
        yield started
    finally:
        process.terminate()
        process.wait(10)


def command(name, *flags, emulator, **variables):
    """A command's process, which `timeout` ends."""
    line = ["timeout", "-k", "5", "120", sys.executable, "-m", f"adabatch_jax.{name}", *flags]
    environment = clean_environment(**emulator.variables(**variables))
    return subprocess.Popen(
        line, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def ended(process):
    text = process.communicate(timeout=130)[0]
    return process.returncode, text


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The summary of the same run in a folder of this machine, by its number of processes."""
    found = {}

    def summary(*flags):
        if flags not in found:
            folder = tmp_path_factory.mktemp("local")
            line = [sys.executable, "-m", "adabatch_jax.train", "--workdir", folder, *FLAGS, *flags]
            subprocess.run(
                ["timeout", "-k", "5", "120", *line], env=clean_environment(), check=True,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            found[flags] = json.loads((folder / "summary.json").read_text())
        return found[flags]

    return summary


def assert_equal(summary, other):
    for key in ("weights_digest", "examples_digest", "step", "test_accuracy"):
        assert summary[key] == other[key]


def test_killed_in_a_save_it_goes_on_to_the_same_bits(emulator, local, tmp_path):
    run = ("--workdir", "gs://bucket/killed", *FLAGS)
    process = command("train", *run, emulator=emulator, ADABATCH_FAULT="save.mid:3:kill9")
    assert ended(process)[0] in (137, -9)  # which `timeout` takes over
    names = emulator.names("killed")
    assert "killed/checkpoints/20/manifest" in names and "killed/.lock" in names
    # Its newest checkpoint is damaged as well.
    data = max(
        (name for name in names if name.startswith("killed/checkpoints/20/state/")),
        key=lambda name: len(emulator.read(name)),
    )
    content = bytearray(emulator.read(data))
    content[len(content) // 2] ^= 1
    emulator.write(data, bytes(content))
    code, text = ended(command("train", *run, emulator=emulator))
    assert code == 0, text
    assert "waiting up to 30 s for a sign of life" in text
    assert "warning: checkpoint 20 can't be used" in text
    assert_equal(emulator.summary("killed"), local())
    assert "report gs://bucket/killed/report.html; run folder gs://bucket/killed" in text
    assert not [name for name in emulator.names("killed") if name.startswith("killed/.")]

    code, text = ended(command("train", *run, emulator=emulator))
    assert code == 0 and "finished already" in text
    code, text = ended(command("doctor", "gs://bucket/killed", emulator=emulator))
    assert code == 0 and "the run is finished: nothing would be done" in text
    code, text = ended(command("report", "gs://bucket/killed", emulator=emulator))
    assert code == 0 and "Report: gs://bucket/killed/report.html" in text
    assert b"</html>" in emulator.read("killed/report.html")
    weights = tmp_path / "w.npz"
    code, text = ended(
        command("export", "gs://bucket/killed", "--to", str(weights), emulator=emulator)
    )
    assert code == 0 and weights.exists()


def test_two_processes_share_a_folder_and_one_that_is_killed_costs_nothing(emulator, local):
    several = ("--local-processes", "2", "--shard-params")
    run = ("--workdir", "gs://bucket/shared", *FLAGS, *several)
    process = command("train", *run, emulator=emulator, ADABATCH_FAULT="save.mid:2:kill9")
    code, text = ended(process)
    assert code not in (0, 124), text
    code, text = ended(command("train", *run, "--take-over", emulator=emulator))
    assert code == 0, text
    assert_equal(emulator.summary("shared"), local(*several))
    names = emulator.names("shared")
    assert {"shared/logs/process-0000.log", "shared/logs/process-0001.log"} <= {*names}
    manifest = emulator.read("shared/checkpoints/37/manifest").decode()
    assert '"state/parts-0/0"' in manifest and '"state/parts-1/0"' in manifest
    code, text = ended(command("doctor", "gs://bucket/shared", emulator=emulator))
    assert code == 0, text


def test_of_two_starts_one_trains(emulator):
    run = ("--workdir", "gs://bucket/both", "--epochs", "4", "--checkpoint-every", "10st")
    first = command("train", *run, emulator=emulator, ADABATCH_FAULT="step.begin:3:sleep:12")
    for _ in range(600):
        if "both/config.json" in emulator.names("both"):
            break
        time.sleep(0.1)
    code, text = ended(command("train", *run, emulator=emulator))
    assert code == 2 and "another process is training in 'gs://bucket/both'" in text, text
    assert ended(first)[0] == 0
    assert os.path.exists("gs:") is False
