import json
import os
import subprocess
import sys

import pytest

from adabatch_jax.system.command_lines import command_text
from adabatch_jax.system.environment import describe_environment


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
