"""Whether the examples of a run that goes on are those that it was trained on so far."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from adabatch_jax.data.datasets.known_datasets import TextSpec
from adabatch_jax.data.sources import Source, contents_digests
from adabatch_jax.runs.resuming import Change
from adabatch_jax.system.errors import RestoreError

Digests = dict[str, list[str]]  # of each source, by what a sentence calls its examples


def data_digests(source: Source, eval_sources: Mapping[str, Source]) -> Digests:
    """The digests of a run's sources, of those that have any.

    >>> class Stream:
    ...     def digest(self): return "4711"
    >>> data_digests(Stream(), {"test": object()})
    {'training examples': ['4711']}
    """
    sources = {"training examples": source}
    sources |= {f"examples of {name!r}": source for name, source in eval_sources.items()}
    digests = {name: contents_digests(source) for name, source in sources.items()}
    return {name: found for name, found in digests.items() if found}


def check_data(
    run: Mapping[str, Any], now: Digests, workdir: Path, allow_change: Collection[str]
) -> Change | None:
    """Compares a run's sources with those of a checkpoint's own values, `run`.

    Returns what changed with the leave of `allow_change`; raises a RestoreError without it.
    """
    differing = differing_sources(run, now)
    if not differing:
        return None
    before = run["data"]
    if "dataset" in allow_change:
        old, new = ({name: side[name] for name in differing} for side in (before, now))
        return Change(run["step"], "dataset", old, new)
    others = " and ".join(
        f"other {name} (digest {before[name][0][:12]}, not {now[name][0][:12]})"
        for name in differing
    )
    names = " ".join([*allow_change, "dataset"])
    raise RestoreError(
        f"the run in {workdir} has {others}; put those back, use another workdir, or go on with "
        f"these from here on with --allow-change {names}."
    )


def check_tokenizer(run: Mapping[str, Any], now: TextSpec | None, workdir: Path) -> None:
    """Compares a text's tokenizer with that of a checkpoint's own values, `run`.

    Raises a RestoreError where that is known, and now there is another one or none.
    """
    before = (run["dataset"] or {}).get("text")
    if now is None or before is None or before["tokenizer"] is None:
        return
    if now.tokenizer is None or now.tokenizer_digest != before["tokenizer_digest"]:
        raise RestoreError(
            f"the run in {workdir} was begun with the tokenizer {before['tokenizer']}, and "
            f"{now.tokenizer or 'none'} isn't the same; give that in --data.tokenizer, or use "
            "another workdir."
        )


def known_digests(run: Mapping[str, Any], now: Digests) -> Digests:
    """What a run knows of its sources that goes on from a checkpoint's own values, `run`.

    >>> known_digests({"data": {"training examples": ["of arrays", "of files"]}},
    ...               {"training examples": ["of arrays"]})
    {'training examples': ['of arrays', 'of files']}
    """
    differing = differing_sources(run, now)
    before = {name: known for name, known in run["data"].items() if name not in differing}
    return {
        name: list(dict.fromkeys([*now.get(name, []), *before.get(name, [])]))
        for name in {**before, **now}
    }


def differing_sources(run: Mapping[str, Any], now: Digests) -> list[str]:
    """The sources that are known not to hold what a checkpoint's own values say."""
    before = run["data"]
    return [name for name in now if name in before and not {*now[name]} & {*before[name]}]
