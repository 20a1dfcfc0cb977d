"""`python -m adabatch_jax.sample RUN --prompt TEXT`: goes on with a text, by a trained network."""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence

from adabatch_jax.export import add_choice
from adabatch_jax.system import command_lines
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.number_texts import printable


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a prompt and what follows it; returns the exit code."""
    return command_lines.run(lambda: _sample(parser().parse_args(argv)))


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = command_lines.Parser(
        prog="python -m adabatch_jax.sample",
        description="Goes on with a text, token by token, with the network of a run on a text, up "
        "to the end of a document or a number of tokens.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--prompt", default="\n", metavar="TEXT", help="what it begins with (default: a new line)"
    )
    parser.add_argument(
        "--tokens", type=int, default=200, metavar="N", help="at most so many tokens (default: 200)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.8, metavar="T",
        help="below 1 likely tokens come more often; 0: always the likeliest (default: 0.8)",
    )  # fmt: skip
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="draw from the K likeliest tokens (default: all)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="another one, another text (default: 0)"
    )
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="the tokenizer's file (default: the run's copy)"
    )
    add_choice(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, tokens too")
    return parser


def _sample(arguments: argparse.Namespace) -> int:
    from adabatch_jax.runs.loaded_run import load_run
    from adabatch_jax.runs.sampling import sampled_tokens, tokenizer_of
    from adabatch_jax.training import compilation_cache
    from adabatch_jax.training.numerics import settle_for_commands

    if arguments.tokens < 1:
        raise UsageError(f"--tokens: must be at least 1, got {arguments.tokens}.")
    if not 0 <= arguments.seed < 2**32:
        raise UsageError(f"--seed: must be from 0 to 2**32 - 1, got {arguments.seed}.")
    settle_for_commands()
    compilation_cache.enable()
    run = load_run(arguments.run, best=arguments.best, step=arguments.step)
    tokenizer = tokenizer_of(run, arguments.tokenizer)
    prompt = tokenizer.encode_text(arguments.prompt)
    drawn = sampled_tokens(
        run, prompt, arguments.temperature, arguments.top_k, arguments.seed
    )  # fmt: skip
    end = run.data.text.end_of_document
    drawn = itertools.takewhile(lambda token: token != end, drawn)
    tokens = [*itertools.islice(drawn, arguments.tokens)]
    text = tokenizer.decode([*prompt, *tokens])
    if arguments.json:
        content = {"prompt": arguments.prompt, "text": text, "tokens": tokens, "step": run.step}
        print(json.dumps(content, indent=2))
    else:
        print("\n".join(map(printable, text.splitlines())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
