"""Text from a trained language model, token by token."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from adabatch_jax.data.tokens.tokenizers import AnyTokenizer, open_tokenizer
from adabatch_jax.models.pure_functions import logits_of
from adabatch_jax.runs.loaded_run import LoadedRun
from adabatch_jax.system.errors import UsageError


def tokenizer_of(run: LoadedRun, given: str | None = None) -> AnyTokenizer:
    """The tokenizer that a run's text was made tokens by.

    Args:
      given: its file; None: the copy in the run's folder.

    Raises:
      UsageError: the run is of no text or none is known, or what is given is another one.
    """
    text = None if run.data is None else run.data.text
    if text is None:
        raise UsageError(f"{run.path} is no run of a text (--dataset text:FILE_OR_FOLDER).")
    if given is None:
        if text.tokenizer is None:
            raise UsageError(
                f"{run.path} was trained on tokens, whose tokenizer nobody told; give --tokenizer."
            )
        if run.tokenizer is None:
            raise UsageError(
                f"{run.path} lacks tokenizer.json as the run was begun with it; give --tokenizer, "
                f"that was {text.tokenizer}."
            )
        return run.tokenizer
    tokenizer = open_tokenizer(given, "--tokenizer")
    if text.tokenizer is not None and tokenizer.digest != text.tokenizer_digest:
        raise UsageError(
            f"--tokenizer: {given} isn't the tokenizer that {run.path} was trained with."
        )
    return tokenizer


def sampled_tokens(
    run: LoadedRun,
    prompt: Sequence[int],
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Yields tokens that go on with a prompt, for ever.

    Each is drawn from what the network predicts of the last `sequence_length` tokens before it.

    Args:
      run: of a text, with a module.
      prompt: at least one token.
      temperature: what the logits are divided by; 0 takes the likeliest token each time.
      top_k: how many of the likeliest tokens are drawn from; None: all.
      seed: the same gives the same tokens.

    Raises:
      UsageError: no prompt, or a token that is none of the vocabulary, or settings that can't be.
    """
    if run.model is None:
        raise UsageError(f"the run in {run.path} brings no module to sample from.")
    size, context = run.data.num_classes, run.data.text.sequence_length
    if not len(prompt):
        raise UsageError("the prompt is empty; give it at least one token.")
    wrong = [token for token in prompt if not 0 <= token < size]
    if wrong:
        raise UsageError(f"the prompt holds the token {wrong[0]}, and the run knows {size:,}.")
    if not temperature >= 0:
        raise UsageError(f"the temperature must be at least 0, got {temperature}.")
    if top_k is not None and top_k < 1:
        raise UsageError(f"top_k must be at least 1, got {top_k}.")
    forward = logits_of(run.model)

    @jax.jit
    def next_token(params, model_state, tokens, length, key):
        logits = forward(params, model_state, tokens[None])[0, length - 1]
        if temperature == 0:
            return logits.argmax()
        if top_k is not None and top_k < size:
            logits = jnp.where(logits < jax.lax.top_k(logits, top_k)[0][-1], -jnp.inf, logits)
        return jax.random.categorical(key, logits / temperature)

    def tokens_from(written: list[int]) -> Iterator[int]:
        begun, key = len(written), jax.random.key(seed)
        while True:
            tokens, last = np.zeros(context, np.int32), written[-context:]
            tokens[: len(last)] = last  # what is behind a token doesn't change what it predicts
            place = jax.random.fold_in(key, len(written) - begun)
            token = next_token(run.params, run.state.model_state, tokens, len(last), place)
            written.append(int(token))
            yield written[-1]

    return tokens_from(list(prompt))
