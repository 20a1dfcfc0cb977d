import json
import os
import subprocess
import sys

import pytest

from adabatch_jax.system.command_lines import command_text
from adabatch_jax.system.environment import (
    cpu_instructions,
    describe_environment,
    rounding_variables,
    usable_cores,
    xla_threads,
)


def test_environment_is_json_and_complete():
    environment = describe_environment(["NVIDIA H100", "NVIDIA H100"])
    assert json.loads(json.dumps(environment)) == environment
    assert environment["devices"] == {"NVIDIA H100": 2}
    assert environment["cores"] >= 1 and environment["cpu"]
    assert {"jax", "optax", "numpy"} <= environment["packages"].keys()


def test_command_can_be_pasted_into_a_shell():
    code = (
        "from adabatch_jax.system.environment import describe_environment as d;"
        "print(d()['command'])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code, "--lr", "0.1 cosine"], capture_output=True, text=True
    )
    assert printed.stdout.rstrip().endswith("--lr '0.1 cosine'")
    program = printed.stdout.split()[0]  # not where this machine's interpreter lies
    assert program.startswith("python") and "/" not in program


@pytest.mark.parametrize(
    "name", ["it's", "a\nb", "\x1b[2J", "\\", "$(id)`", "ü", "\udcff", "-x", ""]
)
def test_a_command_can_be_pasted_whatever_its_words(name):
    text = command_text(["printf", "%s", name])
    assert text.isprintable()
    done = subprocess.run(["bash", "-c", text], capture_output=True, check=True)
    assert done.stdout == os.fsencode(name)


def test_describing_needs_no_jax():
    code = (
        "import sys; from adabatch_jax.system.environment import describe_environment;"
        "describe_environment(); print('jax' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.stdout == "False\n"


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({"PJRT_NPROC": "3", "NPROC": "5"}, 3),
        ({"NPROC": "5"}, 5),
        ({"PJRT_NPROC": "x", "NPROC": "4"}, 4),
        ({"PJRT_NPROC": "0"}, 1),
        ({"PJRT_NPROC": "", "PYTHON_CPU_COUNT": "7"}, usable_cores()),
    ],
)
def test_the_threads_that_xla_takes(monkeypatch, variables, threads):
    for name in ("PJRT_NPROC", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert xla_threads() == threads


def test_flags_are_the_same_in_any_order_and_however_often(monkeypatch, tmp_path):
    def flags(text):
        monkeypatch.setenv("XLA_FLAGS", text)
        return rounding_variables()["XLA_FLAGS"]

    expected = ["--xla_cpu_enable_fast_math=true", "--xla_cpu_max_isa=AVX"]
    assert flags("--xla_cpu_max_isa=AVX --xla_cpu_enable_fast_math") == expected
    text = "--xla_cpu_enable_fast_math=true  --xla_cpu_max_isa=SSE4_2 --xla_cpu_max_isa=AVX"
    assert flags(text) == expected
    assert flags("--xla_dump_to=x --xla_force_host_platform_device_count=8") == []
    (tmp_path / "flags").write_text(text)
    assert flags(str(tmp_path / "flags")) == expected
    assert flags(str(tmp_path / "none")) == []


def test_instructions_are_those_of_arithmetic(monkeypatch):
    info = "flags : fpu sse4_2 avx2 smep avx512f ibrs\nfeatures : x\n"
    monkeypatch.setattr("pathlib.Path.read_text", lambda path: info)
    assert cpu_instructions() == ["avx2", "avx512f", "sse4_2"]
