"""Going on with a study: the same settings, with the rates that were found for it before."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adabatch_jax.runs.folder.lock import LOCK_NAME
from adabatch_jax.system.errors import UsageError
from experiments.reproduction.studies import Study
from experiments.reproduction.tuning import scale_text, with_scales


def check_out(out: Path) -> None:
    """Raises a UsageError unless the folder is new, empty, or a study's."""
    try:
        if out.exists() and not out.is_dir():
            raise UsageError(f"--out: {str(out)!r} is a file, not a folder.")
        out.mkdir(parents=True, exist_ok=True)
        content = sorted(path.name for path in out.iterdir() if path.name != LOCK_NAME)
    except OSError as error:
        raise UsageError(
            f"--out: {str(out)!r} can't be used ({error.strerror}); give another folder."
        ) from None
    if content and "study.json" not in content:
        raise UsageError(
            f"--out: {str(out)!r} holds {content[0]!r} but no study (no study.json); give an "
            "empty or a new folder."
        )


def resumed(saved: Study, wanted: Study, out: Path, lr_scales: Sequence[float]) -> Study:
    """Returns the study to run where another was begun before.

    More seeds than before go on too: what was run stays what it was.

    Args:
      saved: the study in the folder.
      wanted: what was asked for, before any search for learning rates.
      out: the folder.
      lr_scales: to search over; none: no search.

    Raises:
      UsageError: another study was begun there; the sentence names what differs.
    """
    _check_same_search(saved, out, lr_scales)
    scales = {
        (experiment, arm): finding["lr_scale"]
        for experiment, findings in saved.tuning.items()
        for arm, finding in findings.items()
    }
    wanted = dataclasses.replace(
        wanted, tuning=saved.tuning, passes=saved.passes, notes=saved.notes
    )
    wanted = with_scales(wanted, scales)
    _check_same(saved, wanted, out)
    return wanted


def _check_same_search(saved: Study, out: Path, lr_scales: Sequence[float]) -> None:
    tried = {
        tuple(sorted(map(float, finding["candidates"])))
        for findings in saved.tuning.values()
        for finding in findings.values()
    }
    wanted = tuple(sorted(set(lr_scales)))
    if not tried and wanted and (out / "runs").exists():
        raise UsageError(
            f"--tune-lr: the study in {str(out)!r} was begun without; give another --out."
        )
    if tried and tried != {wanted}:
        flags = " ".join(map(scale_text, next(iter(tried))))
        raise UsageError(
            f"--out: the study in {str(out)!r} was begun with --tune-lr --lr-scales {flags}; give "
            "another --out, or the same settings."
        )


def _check_same(saved: Study, wanted: Study, out: Path) -> None:
    """Raises a UsageError that names what differs, unless `wanted` goes on with `saved`."""
    differing = next(_differences(saved, wanted), None)
    if differing is not None:
        what, before, now = differing
        raise UsageError(
            f"--out: the study in {str(out)!r} has {what} {before}, not {now}; give another --out, "
            "or the same settings."
        )


def _differences(saved: Study, wanted: Study) -> Iterable[tuple[str, Any, Any]]:
    """Yields (what, before, now)."""
    for name in ("section", "dataset", "holdout_percent", "outcome", "margin"):
        before, now = getattr(saved, name), getattr(wanted, name)
        if before != now:
            yield name, repr(before), repr(now)
    if len(wanted.seeds) < len(saved.seeds):
        yield "seeds", len(saved.seeds), len(wanted.seeds)
    before, now = ([f"{e}/{arm}" for e, arm, _ in study.items()] for study in (saved, wanted))
    if before != now:
        yield "the arms", ", ".join(before), ", ".join(now)
        return
    for (experiment, arm, old), (_, _, new) in zip(saved.items(), wanted.items(), strict=True):
        for key, old_value, new_value in _differing_fields(old.to_dict(), new.to_dict()):
            yield f"in {experiment}/{arm} {key}", repr(old_value), repr(new_value)


def _differing_fields(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterable[tuple[str, Any, Any]]:
    for key, value in old.items():
        if isinstance(value, Mapping):
            yield from _differing_fields(value, new[key], f"{key}.")
        # Where the files lie decides nothing.
        elif value != new[key] and (prefix, key) != ("data.", "dir"):
            yield f"{prefix}{key}", value, new[key]
