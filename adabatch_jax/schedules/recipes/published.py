"""The published figures of large runs, as texts of schedules and learning rates.

Only what was read in a paper or in source code is here. `STAGES` and `RATE` stand where a text needs
a figure that nobody published; what else a source says without a figure is in `notes`.
"""

from collections.abc import Iterator, Mapping

from adabatch_jax.schedules.recipes.recipe import Recipe
from adabatch_jax.system.errors import did_you_mean

_LISTED = (
    Recipe(
        "gpt3-175b",
        "GPT-3 175B",
        "arXiv 2005.14165; NVIDIA/Megatron-LM, examples/gpt3/train_gpt3_175b_distributed.sh",
        "16, 2.4Btok: 320, 4.8Btok: 624, 7.2Btok: 928, 9.6Btok: 1232, 12Btok: 1536",
        "6e-5 cosine to 6e-6",
        sequence_length=2048,
        notes=("the paper: from 32K to 3.2M tokens over 4 to 12B; the steps are Megatron-LM's",),
    ),
    Recipe(
        "nemotron4-15b",
        "Nemotron-4 15B",
        "arXiv 2402.16819; NVIDIA/Megatron-LM, tests/functional_tests, gpt3_15b_8t_release/"
        "model_config.yaml",
        "384, 200Btok: 768, 400Btok: 1152",
        "4.5e-4 cosine to 4.5e-5",
        sequence_length=4096,
    ),
    Recipe(
        "palm-540b",
        "PaLM 540B",
        "arXiv 2204.02311",
        "512, 50Kst: 1024, 115Kst: 2048",
        "1e-2",
        duration="255Kst",
        sequence_length=2048,
        notes=(
            "the rate is Adafactor's, and constant here; later it was divided by the root of the "
            'position (`--lr "1e-2 constant over D then rsqrt"`)',
        ),
    ),
    Recipe(
        "bloom",
        "BLOOM 176B",
        "bigscience-workshop/bigscience, train/tr11-176B-ml",
        "192 to 2048 over 9765625sp in 117",
        "6e-5 cosine to 6e-6",
        sequence_length=2048,
    ),
    Recipe(
        "llama3-405b",
        "Llama 3 405B",
        "arXiv 2407.21783",
        "4000000, 252Mtok: 8000000, 2.87Ttok: 16000000",
        "8e-5 cosine to 8e-7 over 1.2Mst warmup 8Kst",
        counts="tokens",
        sequence_length=4096,
        notes=(
            "the second size came with sequences of 8,192 tokens: told here at one length",
            "ours: that its cosine begins with the run, and goes, as the warm-up does, over the "
            "samples of its steps",
        ),
    ),
    Recipe(
        "deepseek-v2",
        "DeepSeek-V2 236B",
        "arXiv 2405.04434",
        "2304 to 9216 over 225Btok in STAGES",
        "2.4e-4 times 1, 60%: 0.316, 90%: 0.099856",
        duration="8.1Ttok",
    ),
    Recipe(
        "deepseek-v3",
        "DeepSeek-V3 671B",
        "arXiv 2412.19437",
        "3072 to 15360 over 469Btok in STAGES",
        "2.2e-4 constant until 10Ttok then cosine to 2.2e-5 over 4.3Ttok then constant over 333Btok "
        "then 7.3e-6 over 167Btok",
        duration="14.8Ttok",
    ),
    Recipe(
        "glm-4.5",
        "GLM-4.5 355B",
        "arXiv 2508.06471",
        "16000000 to 64000000 over 500Btok in STAGES",
        "2.5e-4 cosine to 2.5e-5",
        counts="tokens",
        notes=("the rate is Muon's",),
    ),
    Recipe(
        "minimax-01",
        "MiniMax-01 456B",
        "arXiv 2501.08313",
        "16000000, 69Btok: 32000000, 790Btok: 64000000, 4.7Ttok: 128000000",
        "2e-4, 7.2Ttok: 1.3e-4",
        duration="10.4Ttok",
        counts="tokens",
        notes=(
            "the length is that of its two rates, 7.2T and 3.2T tokens",
            "each size began where the loss came to a value: 2.22, 1.98, 1.77, 1.58",
        ),
    ),
    Recipe(
        "moonlight",
        "Moonlight 16B",
        "arXiv 2502.16982",
        "2048, 200Btok: 4096",
        "4.2e-4 cosine to 4.2e-5 over 5.2Ttok then 1e-4 linear to 0 over 500Btok",
        duration="5.7Ttok",
        sequence_length=8192,
        notes=(
            "the rate is Muon's; its ends are published, and ours is how it goes from one to the "
            "other: by a cosine, and in the cool-down by a line",
        ),
    ),
    Recipe(
        "marin-8b",
        "Marin 8B",
        "marin-community/marin, docs/reports/marin-8b-retro.md",
        "4194304, 2.77Ttok: 12582912, 11.1Ttok: 16777216",
        "1e-3, 2.77Ttok: 1.7e-3",
        counts="tokens",
        notes=("its cool-down begins with the last size, at 11.1T tokens",),
    ),
    Recipe(
        "marin-32b",
        "Marin 32B",
        "marin-community/marin, experiments and docs/reports (32B)",
        "8192, 18500st: 7680, 21010st: 8192",
        "7e-4",
    ),
    Recipe(
        "olmo-cbs",
        "OLMo 1B, by its critical batch size",
        "arXiv 2505.23971",
        "1024, 168Btok: 2048, 503Btok: 4096",
        "RATE",
        coupling="sqrt",
    ),
    Recipe(
        "modernbert",
        "ModernBERT-base 149M",
        "arXiv 2412.13663",
        "768 to 4608 over 50Btok in STAGES",
        "8e-4",
        has_equal_updates=True,
    ),
    Recipe(
        "modernbert-large",
        "ModernBERT-large 395M",
        "arXiv 2412.13663",
        "448 to 4928 over 10Btok in STAGES",
        "5e-4",
        has_equal_updates=True,
        notes=("its rate ended at 5e-5",),
    ),
    Recipe(
        "speedrun",
        "GPT-2 124M, the speedrun's",
        "KellerJordan/modded-nanogpt, train_gpt.py",
        "131072, 1/3: 262144, 2/3: 393216",
        "RATE times 1, 1/3: 1.52, 2/3: 1.73",
        counts="tokens",
        sequence_length=2048,
        notes=("its first third has sequences of 896 tokens: told here at one length",),
    ),
    Recipe(
        "late-switch",
        "a mixture of experts of 1.1B, switched late",
        "arXiv 2602.14208",
        "1024, 75%: 2560",
        "RATE",
        duration="1Ttok",
    ),
    Recipe(
        "seesaw",
        "language models of up to 600M",
        "arXiv 2510.14717",
        "1 x2 seesaw",
        "RATE cosine",
        coupling="sqrt",
        counts="first batches",
        notes=("the rate falls by the root of 2 where the cosine would have halved it",),
    ),
    Recipe(
        "adabatch",
        "ResNet-20, VGG19 and AlexNet on CIFAR",
        "arXiv 1712.02029",
        "1 x2 every 20ep",
        "RATE x0.375 every 20ep",
        coupling="linear",
        counts="first batches",
        notes=("the rate falls by 0.75 beside each doubling, as by 0.375 at one size",),
    ),
)


class Recipes(Mapping[str, Recipe]):
    """The recipes of published runs by their names, as `--recipe` takes them.

    >>> from adabatch_jax import recipes
    >>> recipes["llama3-405b"].batch_schedule, recipes["llama3-405b"].source
    ('4000000, 252Mtok: 8000000, 2.87Ttok: 16000000', 'arXiv 2407.21783')
    """

    def __init__(self, listed: tuple[Recipe, ...]):
        self._by_name = {recipe.name: recipe for recipe in listed}

    def __getitem__(self, name: str) -> Recipe:
        """The recipe of a name; raises a KeyError, which names the nearest one, if there is none."""
        if name not in self._by_name:
            hint = did_you_mean(str(name), self._by_name) or f"; there are {', '.join(self)}."
            raise KeyError(f"there is no recipe {name!r}{hint}")
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)


recipes = Recipes(_LISTED)
