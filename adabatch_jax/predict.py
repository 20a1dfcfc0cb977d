"""`python -m adabatch_jax.predict RUN FILES...`: which class a trained network sees in images."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from adabatch_jax.export import add_choice
from adabatch_jax.system import command_lines
from adabatch_jax.system.errors import StorageError, UsageError
from adabatch_jax.system.number_texts import printable

if TYPE_CHECKING:
    from adabatch_jax.runs.loaded_run import LoadedRun


def main(argv: Sequence[str] | None = None) -> int:
    """Prints classes and probabilities; returns the exit code."""
    return command_lines.run(lambda: _predict(parser().parse_args(argv)))


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = command_lines.Parser(
        prog="python -m adabatch_jax.predict",
        description="Prints the class and its probability for each image: JPEG, PNG, WebP or BMP, "
        "resized and normalized as the run's own were. Files that can't be read are named, and "
        "the exit code is then 5.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("files", metavar="FILE", nargs="+", help="an image")
    parser.add_argument(
        "--top", type=int, default=1, metavar="K", help="print the K likeliest classes (default: 1)"
    )
    add_choice(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, one object per file")
    return parser


def _predict(arguments: argparse.Namespace) -> int:
    from adabatch_jax.runs.loaded_run import load_run
    from adabatch_jax.training import compilation_cache
    from adabatch_jax.training.numerics import settle_for_commands

    if arguments.top < 1:
        raise UsageError(f"--top: must be at least 1, got {arguments.top}.")
    settle_for_commands()
    compilation_cache.enable()
    run = load_run(arguments.run, best=arguments.best, step=arguments.step)
    if run.data.text is not None:
        raise UsageError(
            f"{arguments.run} is a run of a text; python -m adabatch_jax.sample goes on with one."
        )
    if run.model is None:
        raise UsageError(f"{arguments.run}: {run.config.model} brings no module to predict with.")
    unreadable, results = [], []
    for file, found in _results(run, arguments.files, arguments.top):
        if isinstance(found, str):
            unreadable.append(f"{file} ({found})")
        results.append({"file": file, **({"error": found} if isinstance(found, str) else found)})
        if not arguments.json and not isinstance(found, str):
            likeliest = (f"{c['class']} {c['probability']:.4f}" for c in found["classes"])
            print(printable(f"{file}: {', '.join(likeliest)}"))
    if arguments.json:
        print(json.dumps(results, indent=2))
    if unreadable:
        raise StorageError(
            f"{len(unreadable)} of {len(results)} files can't be read: {', '.join(unreadable)}."
        )
    return 0


def _results(
    run: "LoadedRun", files: Sequence[str], top: int
) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """For each file its likeliest classes, or why it can't be read; some files at a time."""
    import numpy as np

    from adabatch_jax.data.datasets.image_decoding import read_picture

    shape, size = run.data.image_shape, run.config.data.image_size

    def read(file: str) -> np.ndarray | str:
        try:
            return read_picture(file, shape, size)
        except OSError as error:
            return error.strerror or str(error)
        except ValueError as error:
            return str(error)

    names = run.class_names or tuple(map(str, range(run.data.num_classes)))
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(files), run.config.eval_batch_size):
            some = files[start : start + run.config.eval_batch_size]
            images = list(threads.map(read, some))
            sound = [image for image in images if not isinstance(image, str)]
            rows = iter(run.predict(np.stack(sound)) if sound else ())
            for file, image in zip(some, images, strict=True):
                if isinstance(image, str):
                    yield file, image
                    continue
                row = next(rows)
                order = np.argsort(-row, kind="stable")[:top]
                classes = [{"class": names[i], "probability": float(row[i])} for i in order]
                yield file, {"classes": classes}


if __name__ == "__main__":
    sys.exit(main())
