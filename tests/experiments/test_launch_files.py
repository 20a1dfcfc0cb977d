"""The launch files, as far as they can be looked at where there is no cluster."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest

from adabatch_jax import plan
from adabatch_jax.cluster.membership import membership
from adabatch_jax.config.command_line import parse_arguments
from adabatch_jax.train import Options
from experiments.launch.phase_sizes import phase_sizes
from tests.pages import ROOT

LAUNCH = ROOT / "experiments" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
PHASES = "--epochs 3 --batch-schedule 64 x2 every 1ep max 256".split()


@pytest.fixture
def stand_in(tmp_path):
    """`stand_in("sbatch", "echo 7")`: a program that notes its arguments, a list for each call."""
    noted = tmp_path / "calls"

    def write(name, code=""):
        note = f"import json, sys; print(json.dumps(sys.argv[1:]), file=open({str(noted)!r}, 'a'))"
        text = f'#!/bin/bash\n{sys.executable} -c {shlex.quote(note)} "$@"\n{code}\n'
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def calls():
        return [*map(json.loads, noted.read_text().splitlines())] if noted.exists() else []

    write.calls = calls
    return write


def bash(tmp_path, script, *arguments, **variables):
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | variables
    return subprocess.run(
        ["bash", LAUNCH / script, *arguments], env=environment, cwd=ROOT, capture_output=True,
        text=True, timeout=30,
    )  # fmt: skip


def train_options(command):
    """What train understands of a command's words, from `adabatch_jax.train` on."""
    words = command[command.index("adabatch_jax.train") + 1 :]
    return parse_arguments(Options, words, "train", "")[0]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_and_shellcheck_have_nothing_to_say(script):
    subprocess.run(["bash", "-n", script], check=True, timeout=10)
    if shutil.which("shellcheck") is None:
        pytest.skip("read by bash -n alone: shellcheck isn't installed")
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 42, 130, 134, 137, 139, 143])
def test_a_job_is_queued_again_for_codes_after_which_it_goes_on(stand_in, tmp_path, code):
    stand_in("scontrol")
    variables = {"SLURM_JOB_ID": "7", "MAX_RESTARTS": "2"}
    goes_on = code in (42, 134, 137, 143)
    for restarts, is_queued in (("", True), ("1", True), ("2", False), ("3", False)):
        counted = {"SLURM_RESTART_COUNT": restarts} if restarts else {}  # not set at first
        before = len(stand_in.calls())
        done = bash(tmp_path, "slurm_requeue.sh", str(code), **variables, **counted)
        assert done.returncode == code
        queued = stand_in.calls()[before:]
        assert queued == ([["requeue", "7"]] if goes_on and is_queued else [])
        assert ("gives up" in done.stdout) == (goes_on and not is_queued)
        assert bool(done.stdout) == goes_on


@pytest.mark.parametrize(
    ("codes", "limit", "num_calls", "code"),
    [
        ([42, 134, 137, 0], 3, 4, 0),
        ([42, 134, 137, 0], 2, 3, 137),
        ([42, 0], 0, 1, 42),
        ([137, 143, 0], 20, 2, 143),
        ([2, 0], 20, 1, 2),
        ([0], 20, 1, 0),
    ],
)
def test_a_command_is_started_again(stand_in, tmp_path, codes, limit, num_calls, code):
    stand_in(
        "flaky",
        f"codes=({' '.join(map(str, codes))})\nexit ${{codes[$(wc -l < {tmp_path}/calls) - 1]}}",
    )
    done = bash(tmp_path, "restarting.sh", "flaky", "a b", MAX_RESTARTS=str(limit))
    assert done.returncode == code
    assert stand_in.calls() == [["a b"]] * num_calls
    assert ("giving up" in done.stderr) == (code in (42, 137))


@pytest.mark.parametrize("kind", ["gpu", "node"])
def test_a_job_runs_train_by_srun(stand_in, tmp_path, kind):
    stand_in("srun", "exit 5")
    stand_in("scontrol")
    done = bash(tmp_path, f"slurm_task_per_{kind}.sh", "--workdir", "runs/a b", "--epochs", "3")
    assert done.returncode == 5, done.stderr
    (words,) = stand_in.calls()
    options = train_options(words)
    assert (options.workdir, options.stall_timeout) == ("runs/a b", "30m")


def test_a_chain_has_a_job_for_each_phase_that_waits_for_the_one_before(stand_in, tmp_path):
    stand_in("sbatch", f"echo 10$(wc -l < {tmp_path}/calls)")
    done = bash(
        tmp_path, "slurm_chain.sh", "0 4 8 32", *PHASES, "--workdir", "runs/a b", GPUS_PER_NODE="8",
        SBATCH_OPTIONS="--partition=main --time=01:00:00",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.findall(r"phase (\d) on (\d+) GPUs: job (\d+)", done.stdout) == [
        ("2", "4", "101"),
        ("3", "8", "102"),
        ("4", "32", "103"),
    ]
    before, shapes, stops = [], [], []
    for words in stand_in.calls():
        at = words.index("experiments/launch/slurm_task_per_gpu.sh")
        options = dict(word.lstrip("-").partition("=")[::2] for word in words[:at])
        assert options["partition"] == "main" and options["time"] == "01:00:00"
        before.append(options.get("dependency"))
        names = ("nodes", "ntasks-per-node", "gpus-per-node")
        shapes.append(tuple(int(options[name]) for name in names))
        read = train_options(["adabatch_jax.train", *words[at + 1 :]])
        assert read.workdir == "runs/a b"
        stops.append(read.stop_at_phase)
    assert before == [None, "afterok:101", "afterok:102"]
    assert shapes == [(1, 4, 4), (1, 8, 8), (4, 8, 8)]
    assert stops == [3, 4, None]


def test_gpus_that_are_no_whole_nodes(stand_in, tmp_path):
    stand_in("sbatch", "echo 1")
    done = bash(tmp_path, "slurm_chain.sh", "8 12", GPUS_PER_NODE="8")
    assert done.returncode == 2 and stand_in.calls() == []
    assert done.stderr == "error: 12 GPUs aren't whole nodes of 8\n"


def test_the_sizes_of_a_chain_come_from_a_plan(capsys):
    assert plan.main([*PHASES, "--devices", "1,2,4", "--json", "--no-memory"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert phase_sizes(told, 64) == [1, 2, 4]
    assert phase_sizes(told, 63) == [1, 2, 4] and phase_sizes(told, 65) == [1, 1, 2]
    assert phase_sizes(told, 1000) == [1, 1, 1]
    assert phase_sizes(told, 1, at_least_efficiency=0.5) == [1, 1, 1]  # nothing was measured
    for row in told["rows"]:
        for there in row["by_devices"]:
            number = there["num_devices"]
            there["predicted_efficiency"] = [1 - number / 8, 1.0]
    assert phase_sizes(told, 1, at_least_efficiency=0.75) == [2, 2, 2]


def test_a_pod_of_tpus_runs_train_on_all_its_hosts(stand_in, tmp_path):
    stand_in("gcloud", f"(( $(wc -l < {tmp_path}/calls) != 4 )) || exit 42")
    stand_in("git")
    done = bash(tmp_path, "tpu_pod.sh", "pod", "zone-a", "--workdir", "/mnt/runs/a b")
    assert done.returncode == 0, done.stderr
    _, copied, installed, *trained = stand_in.calls()
    assert copied[3:6] == ["scp", "adabatch.tar.gz", "pod:"] and trained[0] == trained[1]
    assert len(trained) == 2 and "restart 1 of at most 20" in done.stderr
    for words in (installed, *trained):
        assert words[2:7] == ["tpu-vm", "ssh", "pod", "--zone=zone-a", "--worker=all"]
        code = words[7].removeprefix("--command=")
        subprocess.run(["bash", "-n", "-c", code], check=True, timeout=10)
    assert train_options(shlex.split(code)).workdir == "/mnt/runs/a b"


def manifest(name):
    yaml = pytest.importorskip("yaml", reason="needs the package PyYAML, which isn't installed")
    return yaml.safe_load((LAUNCH / name).read_text())


def test_each_pod_of_a_jobset_finds_the_others():
    jobset = manifest("jobset.yaml")
    name = jobset["metadata"]["name"]
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    options = train_options(["adabatch_jax.train", *container["args"]])
    assert job["completions"] == job["parallelism"] == options.num_processes
    # As JobSet names them: JOBSET-REPLICATED_JOB-JOB-POD.JOBSET.
    host, port = options.coordinator.split(":")
    assert host == f"{name}-{workers['name']}-0-0.{name}"
    assert [int(port)] == [each["containerPort"] for each in container["ports"]]
    for index in range(job["completions"]):
        variables = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": str(index)}
        place = membership(variables, options.coordinator, options.num_processes, None)
        assert (place.process_id, place.num_processes) == (index, job["completions"])
        assert place.coordinator == options.coordinator
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in job["template"]["spec"]["volumes"]
    }


def test_a_jobset_begins_anew_for_the_same_codes_as_slurm():
    jobset = manifest("jobset.yaml")
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "NotIn"
    script = (LAUNCH / "slurm_requeue.sh").read_text()
    codes = re.search(r"^  ([\d |]+)\)$", script, re.M)[1].split(" | ")
    assert rule["onExitCodes"]["values"] == [*map(int, codes)] == [42, 134, 137, 143]
    assert rule["onExitCodes"]["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    # What the Job ends with then is what the JobSet ends for; with anything else it begins anew.
    policy = jobset["spec"]["failurePolicy"]
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in policy["rules"]] == [
        ("FailJobSet", ["PodFailurePolicy"])
    ]
    assert policy["maxRestarts"] == 20 and job["backoffLimit"] == 0


def unknown(told, known, path=""):
    """Where the first has what the second, which was read from it, has not."""
    if isinstance(told, dict):
        lost = [f"{path}/{name}" for name in told if name not in known]
        there = [name for name in told if name in known]
        return lost + sum((unknown(told[n], known[n], f"{path}/{n}") for n in there), [])
    if isinstance(told, list) and len(told) == len(known):
        return sum((unknown(told[n], known[n], f"{path}/{n}") for n in range(len(told))), [])
    return [] if told == known else [path]


def test_a_jobset_is_one_by_its_schema():
    """By the models that are made of JobSet's own OpenAPI, which leave out what they don't know."""
    if importlib.util.find_spec("kubeflow_trainer_api") is None:
        pytest.skip("needs the package kubeflow-trainer-api, which isn't installed")
    from kubeflow_trainer_api import models

    jobset = manifest("jobset.yaml")
    assert unknown(jobset, models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict()) == []
    jobset["spec"]["failurePolicy"]["maxRestart"] = 20
    known = models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict()
    assert unknown(jobset, known) == ["/spec/failurePolicy/maxRestart"]


def test_the_job_in_a_jobset_is_one_by_its_schema():
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="needs the package kubernetes-validate, which isn't installed"
    )
    spec = manifest("jobset.yaml")["spec"]["replicatedJobs"][0]["template"]["spec"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": spec}
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def test_skypilot_runs_train_on_each_node():
    task = manifest("skypilot.yaml")
    lines = task["setup"] + task["run"]
    subprocess.run(["bash", "-n", "-c", lines], check=True, timeout=10)
    options = train_options(shlex.split(task["run"]))
    assert options.workdir.startswith(f"{[*task['volumes']][0]}/")
    for index in range(task["num_nodes"]):
        variables = {
            "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
            "SKYPILOT_NUM_NODES": str(task["num_nodes"]),
            "SKYPILOT_NODE_RANK": str(index),
        }
        assert membership(variables, None, None, None).process_id == index


def test_skypilot_reads_its_task(monkeypatch, tmp_path):
    monkeypatch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    monkeypatch.chdir(ROOT)
    sky = pytest.importorskip("sky", reason="needs the package skypilot, which isn't installed")
    task = sky.Task.from_yaml(str(LAUNCH / "skypilot.yaml"))
    (resources,) = task.resources
    assert task.num_nodes == 2 and resources.accelerators == {"H100": 8}


def test_an_image_has_what_it_copies_and_extras_that_there_are():
    text = (LAUNCH / "Dockerfile").read_text()
    for copied in re.findall(r"^COPY (.+) \S+$", text, re.M):
        assert all((ROOT / name).exists() for name in copied.split())
    with open(ROOT / "pyproject.toml", "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    named = re.findall(r"EXTRAS=(\S+)", text)
    assert named == ["train,cuda13", "train,tpu", "train"]
    assert {extra for names in named for extra in names.split(",")} <= {*extras}
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint isn't installed")
    done = subprocess.run(["hadolint", LAUNCH / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
