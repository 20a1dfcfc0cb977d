"""How a network of tokens is built other than its name says."""

from typing import Any, Literal

from adabatch_jax.config.declarations import Role, check, setting, settings

Norms = Literal["layer", "rms"]
Positions = Literal["learned", "rotary"]
Attention = Literal["xla", "cudnn"]

_AS_NAMED = "none: as the network's name says"

# fmt: off


@settings
class GPTSettings:
    """What of a GPT isn't to be as its name says; `adabatch_jax.models.gpt.GPTShape` tells more.

    >>> GPTSettings(width=96, tied=True).chosen
    {'width': 96, 'tied': True}
    """

    width: int | None = setting(
        None, Role.NUMBERS, at_least=1,
        help=f"Features of each token, a multiple of the heads; {_AS_NAMED}.")
    num_layers: int | None = setting(
        None, Role.NUMBERS, at_least=1, help=f"Blocks of attention and MLP; {_AS_NAMED}.")
    num_heads: int | None = setting(
        None, Role.NUMBERS, at_least=1, help=f"Heads of each attention; {_AS_NAMED}.")
    num_positions: int | None = setting(
        None, Role.NUMBERS, at_least=1,
        help=f"The longest sequence where positions are learned; {_AS_NAMED}.")
    norm: Norms | None = setting(
        None, Role.NUMBERS, help=f"layer (LayerNorm) or rms (RMSNorm); {_AS_NAMED}.")
    positions: Positions | None = setting(
        None, Role.NUMBERS, help=f"learned or rotary; {_AS_NAMED}.")
    tied: bool | None = setting(
        None, Role.NUMBERS, help=f"Whether the head is the embedding; {_AS_NAMED}.")
    bias: bool | None = setting(
        None, Role.NUMBERS, help=f"Whether its layers have biases; {_AS_NAMED}.")
    remat: bool | None = setting(
        None, Role.NUMBERS, is_changeable=True,
        help="Whether activations are computed again in the backward pass and not kept: memory "
        "for a third more time.")
    attention: Attention | None = setting(
        None, Role.NUMBERS, is_changeable=True,
        help="What computes attention: xla, or on GPUs and in bfloat16 cudnn; none: xla.")

    def __post_init__(self):
        check(self, lambda name: f"gpt.{name}")

    @property
    def chosen(self) -> dict[str, Any]:
        """Those that were given."""
        return {name: value for name, value in vars(self).items() if value is not None}
