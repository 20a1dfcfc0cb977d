"""Ways to damage a checkpoint, each a function of its folder."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path


def flip_bit(path: Path, position: float = 0.5) -> None:
    """Changes one bit, so far into the file."""
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1
    path.write_bytes(content)


def files(folder: Path) -> list[Path]:
    """All files below a folder, in an order that doesn't change."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def arrays(checkpoint: Path) -> Path:
    """The file that holds most of the arrays' bytes."""
    return max(files(checkpoint / "state"), key=lambda path: path.stat().st_size)


def _zero_block(checkpoint: Path) -> None:
    with open(arrays(checkpoint), "r+b") as file:
        file.seek(4096)
        file.write(bytes(4096))


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _replace_by_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("")


def _replace_by_empty_folder(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def _rename_by_one(checkpoint: Path) -> None:
    checkpoint.rename(checkpoint.with_name(str(int(checkpoint.name) + 1)))


def _later_copy_with_other_step(checkpoint: Path) -> None:
    shutil.copytree(checkpoint, checkpoint.with_name("100000"))
    _truncate(arrays(checkpoint))


# After each of them the checkpoint must not be used.
DAMAGES: dict[str, Callable[[Path], None]] = {
    "bit flipped in the arrays": lambda c: flip_bit(arrays(c)),
    "first bit flipped in the arrays": lambda c: flip_bit(arrays(c), 0),
    "bit flipped in the manifest of the arrays": lambda c: flip_bit(
        c / "state" / "0" / "manifest.ocdbt"
    ),
    "bit flipped in the manifest": lambda c: flip_bit(c / "manifest"),
    "bit flipped at the manifest's beginning": lambda c: flip_bit(c / "manifest", 0.01),
    "bit flipped in a digest of an array": lambda c: flip_bit(c / "manifest", 0.1),
    "4 KiB of the arrays zeroed": _zero_block,
    "arrays truncated": lambda c: _truncate(arrays(c)),
    "arrays emptied": lambda c: os.truncate(arrays(c), 0),
    "arrays deleted": lambda c: arrays(c).unlink(),
    "a file added": lambda c: (c / "state" / "stray").write_text(""),
    "manifest truncated": lambda c: _truncate(c / "manifest"),
    "manifest emptied": lambda c: os.truncate(c / "manifest", 0),
    "manifest deleted": lambda c: (c / "manifest").unlink(),
    "state deleted": lambda c: shutil.rmtree(c / "state"),
    "state a file": lambda c: _replace_by_file(c / "state"),
    "manifest.ocdbt deleted": lambda c: (c / "state" / "0" / "manifest.ocdbt").unlink(),
    "empty folder": _replace_by_empty_folder,
    "a file in its place": _replace_by_file,
    "gone": shutil.rmtree,
    "renamed to a later step": _rename_by_one,
    "copied to a later step and damaged": _later_copy_with_other_step,
}


def _empty_folder(checkpoints: Path) -> None:
    (checkpoints / "99999").mkdir()


def _foreign_folder(checkpoints: Path) -> None:
    (checkpoints / "99998").mkdir()
    (checkpoints / "99998" / "model.safetensors").write_bytes(bytes(1000))


def _newest(checkpoints: Path) -> Path:
    return max(
        (path for path in checkpoints.iterdir() if path.name.isdecimal()),
        key=lambda path: int(path.name),
    )


def _copies(checkpoints: Path) -> None:
    newest = _newest(checkpoints)
    shutil.copytree(newest, checkpoints / f"{newest.name} (copy)")
    shutil.copytree(newest, checkpoints / f"0{newest.name}")
    shutil.copytree(newest, checkpoints / f"{newest.name}.orbax-checkpoint-tmp")
    shutil.copytree(newest, checkpoints / "step_99997")


def _links(checkpoints: Path) -> None:
    newest = _newest(checkpoints)
    (checkpoints / "99996").symlink_to(newest.name)
    (checkpoints / "99995").symlink_to("nowhere")


def _odd_names(checkpoints: Path) -> None:
    (checkpoints / "99994").write_text("a file")
    (checkpoints / "-5").mkdir()
    (checkpoints / "\u0663").mkdir()  # a digit, though not one of ours
    (checkpoints / "1e9").mkdir()


def _left_by_a_save_that_was_killed(checkpoints: Path) -> None:
    folder = checkpoints / "99993.orbax-checkpoint-tmp" / "state.orbax-checkpoint-tmp"
    folder.mkdir(parents=True)
    (folder / "d").write_bytes(bytes(10))


# Put beside the checkpoints, each is no checkpoint.
STRAYS: dict[str, Callable[[Path], None]] = {
    "an empty folder with a step's name": _empty_folder,
    "a foreign folder with a step's name": _foreign_folder,
    "copies": _copies,
    "links": _links,
    "odd names": _odd_names,
    "what a killed save leaves": _left_by_a_save_that_was_killed,
}


def damage_at_random(checkpoint: Path, draw: random.Random) -> str:
    """Damages one file that a restore reads; returns what was done."""
    read = [
        path
        for path in (checkpoint / "manifest", *files(checkpoint / "state"))
        if path.stat().st_size and path.name != "commit_success.txt"
    ]
    path = draw.choice(read)
    what = draw.choice(["bit flipped in", "truncated", "emptied", "deleted"])
    if what == "bit flipped in":
        flip_bit(path, draw.random())
    elif what == "truncated":
        os.truncate(path, draw.randrange(path.stat().st_size))
    elif what == "emptied":
        os.truncate(path, 0)
    else:
        path.unlink()
    return f"{what} {path.relative_to(checkpoint.parent)}"


HOSTILE = (
    b"", b"{", b"{}", b"[]", b"null", b"[" * 100_000, b"9" * 10_000, b'{"step": 1e999}', b"\xff\0",
)  # fmt: skip


def edit_at_random(path: Path, draw: random.Random, foreign: Path) -> str:
    """Changes a file of a run's folder, which may be missing; returns what was done.

    `foreign` is the same file of another run.
    """
    content = path.read_bytes() if path.exists() else b""
    lines, place = content.splitlines(keepends=True), draw.randrange(len(content) or 1)
    some = draw.randrange(len(lines) or 1)
    edits = {
        "a bit": content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)])
        + content[place + 1 :] if content else b"x",
        "cut": content[:place],
        "more": content[:place] + draw.randbytes(20) + content[place:],
        "zeros": content[:place] + bytes(len(content[place : place + 500])) + content[place + 500 :],
        "twice": content * 2,
        "a line twice": b"".join([*lines[:some], *lines[some : some + 1], *lines[some:]]),
        "a line less": b"".join([*lines[:some], *lines[some + 1 :]]),
        "lines swapped": b"".join([*lines[:some], *lines[some : some + 2][::-1], *lines[some + 2 :]]),
        "hostile": draw.choice(HOSTILE),
        "another run's": foreign.read_bytes(),
        "gone": None,
    }  # fmt: skip
    what = draw.choice(list(edits))
    path.unlink(missing_ok=True)
    if edits[what] is not None:
        path.write_bytes(edits[what])
    return f"{path.name}: {what}"
