"""The pages of documentation: their commands, code and links."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    README,
    *sorted((ROOT / "adabatch_jax").rglob("*.md")),
    ROOT / "experiments" / "README.md",
    ROOT / "experiments" / "launch" / "README.md",
]


def blocks_of(text, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def anchors_of(text):
    """What GitHub calls a page's headings in links."""
    headings = re.findall(r"^##? (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def commands_of(text):
    """The lines of its bash blocks."""
    return [line for block in blocks_of(text, "bash") for line in block.splitlines()]


def files_of(text):
    """The blocks that are files, by the name in their first line."""
    named = [(re.match(r"# (\w+\.py)\n", block), block) for block in blocks_of(text)]
    return {name[1]: block for name, block in named if name}
