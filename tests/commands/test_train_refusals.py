"""`python -m adabatch_jax.train`: what it refuses before anything is there, and how it says so."""

import os
import subprocess
import sys

import pytest

from adabatch_jax.runs.folder.workdir_choice import check_workdir
from adabatch_jax.train import main


def test_a_folder_with_somebody_elses_config(tmp_path, refused):
    for content in ('{"architectures": ["Bert"]}', '{"step', "[]"):
        (tmp_path / "config.json").write_text(content)
        refused(main, f"--workdir {tmp_path}", "config.json")
        assert (tmp_path / "config.json").read_text() == content


def test_a_new_disk_is_an_empty_folder(tmp_path, refused):
    (tmp_path / "lost+found").mkdir()
    check_workdir(tmp_path)
    (tmp_path / "photos").mkdir()
    refused(main, f"--workdir {tmp_path}", "holds 'photos' but no run")


@pytest.mark.parametrize(
    ("lr", "said"),
    [
        (
            "1e30 --batch-schedule 1442",  # golden
            "error: the test accuracy/loss is not finite after update 1 (sample 1,442, phase 1 of "
            "1, batch size 1442, lr 1e+30); a rerun as it is would diverge again: lower the "
            "learning rate, lengthen its warm-up, or grow the batch later; labels that are no class, "
            "and NaN in the examples, do the same.",
        ),
        ("1e6", "after update … lr 1e+06"),
    ],
)
def test_divergence_ends_with_3(tmp_path, refused, lr, said):
    refused(main, f"--epochs 1 --lr {lr} --workdir {tmp_path / 'run'}", said, code=3)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_backend_that_is_not_there_ends_with_2(tmp_path):
    outcome = subprocess.run(
        [sys.executable, "-m", "adabatch_jax.train", "--workdir", str(tmp_path / "run")],
        env={**os.environ, "JAX_PLATFORMS": "nonsense"},
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 2
    assert outcome.stderr.startswith("error: JAX can't use the devices it is told to")
    assert len(outcome.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        # golden: an unknown flag, a refused value, too little memory
        ("--datset digits", "error: there is no flag --datset; did you mean '--dataset'?"),
        ("--microbatch-size 0", "error: microbatch_size: must be at least 1, got 0."),
        (
            "--device-memory 5KiB --input resident --microbatch-size 32 --eval-batch-size 1",
            "error: the input can't be resident: its examples take 12,308 bytes on each of 8 "
            "devices, where 5,120 are free; stream it.",
        ),
        ("--dataset digts", "'digts' … 'digits'"),
        ("--model resnet20", "'resnet20' … 'resnet20_cifar'"),
        ("--optimizer adam", "optimizer: 'adam' … sgd, adamw"),
        ("--remainder cary", "remainder: 'cary' … 'carry'"),
        ("--coupling liner", "coupling: … 'liner' … linear"),
        ("--batch-schedule 0", "batch_schedule: … 0"),
        ("--batch-schedule 64 x0 every 2ep", "batch_schedule: … `growth_factor` … 0"),
        ("--batch-schedule 64 x2 every 2epochs", "batch_schedule: … 2epochs … 'ep'"),
        ("--batch-schedule 64, 3ep: 128, 2ep: 256", "'64, 3ep: 128, 2ep: 256' … 2ep … 3ep"),
        ("--batch-schedule 5000", "5000 … 1442"),
        ("--lr 0.1 x0.5 evry 2ep", "lr: … '0.1 x0.5 evry 2ep' … 'evry'"),
        ("--microbatch-size atuo", "microbatch_size: 'atuo' … none, auto"),
        ("--steps-per-dispatch 0", "steps_per_dispatch: … 0"),
        ("--accumulation split", "accumulation … microbatch_size"),
        ("--input disk", "input: 'disk' … auto, resident, streaming"),
        ("--device-memory lots", "device_memory: 'lots' … '16GiB'"),
        ("--profile 20:10", "profile: '20:10'"),
        ("--cpu-devices 0", "--cpu-devices: … 0"),
        ("--epochs 0", "epochs: … 0"),
        ("--seed 4294967296", "seed: … 4294967296"),
        ("--coupling 1/0", "coupling: … '1/0'"),
        ("--coupling 1e999", "coupling: … '1e999'"),
        ("--lr 0.1 x1e-99999999 every 1ep", "lr: … x1e-99999999"),
        ("--epochs ten", "epochs: … 'ten'"),
        ("--seed -1", "seed: … -1"),
        ("--log-every 0st", "log_every: "),
        ("--config nowhere.py", "--config: … 'nowhere.py'"),
        ("--name ../up", "name: '../up'"),
        ("--dataset cifar10 --data.dir empty", "python -m adabatch_jax.prepare cifar10"),
        ("--data.train-split trian", "'trian' … 'train'"),
        ("--data.crop-padding -1", "data.crop_padding: … -1"),
    ],
)
def test_mistakes(refused, tmp_path, arguments, text):
    refused(main, f"{arguments} --workdir {tmp_path / 'run'}", text)


def test_foreign_and_impossible_folders(refused, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("")
    refused(main, f"--workdir {foreign}", f"--workdir: … {foreign} … 'thesis.tex'")
    refused(main, f"--workdir {foreign / 'thesis.tex'}", f"{foreign / 'thesis.tex'} … file")
    refused(main, f"--workdir {foreign / 'thesis.tex' / 'run'}", "run … Not a directory")
    assert sorted(path.name for path in foreign.iterdir()) == ["thesis.tex"]


def test_bad_config_files(refused, tmp_path):
    for name, content, text in [
        ("a.py", "confg = 1", "a.py … config = TrainConfig"),
        ("b.py", "import nothing_like_that", "b.py … ModuleNotFoundError"),
        ("c.json", '{"modle": "cnn_digits"}', "c.json … 'modle' … 'model'"),
        ("d.json", "{", "d.json … JSON"),
        ("h.json", '{"data": {"flp": true}}', "h.json … 'data.flp' … 'data.flip'"),
        ("i.json", "[]", "i.json … object"),
        ("e.json", '{"seed": "one"}', "seed: … 'one'"),
        ("g.py", "import sys; sys.exit(0)", "g.py"),
        ("f.yaml", "", "f.yaml … .py"),
    ]:
        (tmp_path / name).write_text(content)
        refused(main, f"--config {tmp_path / name}", text)
