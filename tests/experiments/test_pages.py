import functools
import html
import html.parser
import json
import re
import sys

import pytest

from adabatch_jax.system.errors import StorageError, UsageError
from experiments.reproduction.document import Paragraph, Table, to_markdown
from experiments.reproduction.pages import document, write_pages
from experiments.reproduction.results import load_study
from tests.experiments.conftest import ENVIRONMENT, study_arms, write_run_folder, write_study_file

NAMES = ("fixed_small", "adaptive", "goyal")
SEEDS = (0, 1, 2)
PAPERS_UNVERIFIED = ("933.79", "1571.35", "256.59", "3.54", "6.25")


class Page(html.parser.HTMLParser):
    """Collects what a page says, and checks that elements are closed where they should be."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.references, self.texts = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def fill(out, experiments=("digits_cnn",), states=None, **changes):
    """Writes a study; `states` says what became of the runs that didn't finish."""
    arms = {name: study_arms()[name] for name in NAMES}
    runs = [(e, name, seed) for e in experiments for name in NAMES for seed in SEEDS]
    for experiment, name, seed in runs:
        state = (states or {}).get((name, seed), "finished")
        if state is not None:
            error = 8 + 0.1 * seed + (name == "goyal")
            write_run_folder(out, experiment, name, arms[name], seed, error, state=state)
    return write_study_file(out, dict.fromkeys(experiments, arms), SEEDS, **changes)


@pytest.fixture
def make_study(tmp_path):
    return functools.partial(fill, tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The pages of a study with runs of all kinds: folder and paths."""
    states = {("goyal", 1): "diverged", ("goyal", 2): "unfinished"}
    notes = ["Other jobs shared the machine."]
    out = fill(tmp_path_factory.mktemp("study"), states=states, notes=notes)
    return out, write_pages(out)


def markdown_of(out):
    study = load_study(out)
    return to_markdown(study.title, document(study))


def test_pages_say_all_that_a_reader_needs(written):
    out, paths = written
    assert [path.name for path in paths] == [
        "results.md",
        "results.html",
        "results.json",
        "digits_cnn_test_error.png",
        "digits_cnn_speedup.png",
        "digits_cnn_schedules.png",
    ]
    assert all(path.parent == out and path.stat().st_size > 0 for path in paths)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[3:])
    markdown, page = paths[0].read_text(), Page(paths[1].read_text())
    for text in (
        "AdaBatch works here: adaptive needs 2.13 times fewer updates than fixed_small (94 inst",
        "Other jobs shared the machine.",
        "python -m experiments.reproduce digits --seeds 3",
        "JAX devices: cpu; 2 cores of Some Processor",
        "Python 3.11.7, jax 0.10.2, numpy 2.4.6, Linux",
        "Dataset digits; seeds 0, 1, 2",
        "--config experiments/digits_cnn.py:adaptive --seed 0",
        "In common: dataset digits",
    ):
        assert text in markdown and text in page.text, text
    assert page.tags.count("svg") == 3


def test_markdown_links_to_the_pictures_that_exist(written):
    out, paths = written
    paths = {path.name for path in paths}
    linked = set(re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (out / "results.md").read_text()))
    assert linked == {name for name in paths if name.endswith(".png")}


def test_both_pages_have_the_same_tables(written):
    _, (markdown, page, *_) = written
    cells = [
        cell.strip()
        for line in markdown.read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| ---")
        for cell in line.strip("|").split(" | ")
    ]
    found = re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", page.read_text())
    assert [html.unescape(cell) for cell in found] == cells


def test_numbers_are_strict_json_and_unrounded(written):
    out, _ = written
    numbers = json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)
    arms = numbers["experiments"]["digits_cnn"]["arms"]
    folder = out / "runs/digits_cnn/adaptive/seed0"
    summary = json.loads((folder / "summary.json").read_text())
    run = arms["adaptive"]["runs"][0]
    assert run["test_error_percent"] == pytest.approx(100 - 100 * summary["test_accuracy"])
    assert arms["adaptive"]["updates"] == summary["step"]
    assert [r["state"] for r in arms["goyal"]["runs"]] == ["finished", "diverged", "unfinished"]
    assert arms["goyal"]["test_error_percent"]["n"] == 1
    assert arms["goyal"]["test_error_percent"]["interval"] is None
    text = (out / "results.md").read_text()
    assert numbers["experiments"]["digits_cnn"]["sentences"][0] in text


def test_unfinished_study_says_so(make_study):
    states = {("adaptive", 1): "unfinished", ("adaptive", 2): None, ("goyal", 0): "diverged"}
    out = make_study(states=states)
    text = markdown_of(out)
    assert (
        "This study is unfinished: 6 of 9 runs are finished, 1 diverged, 2 are still to come"
        in text
    )
    assert "| 1 of 3 " in text


def test_study_that_has_not_begun(make_study):
    out = make_study(states={(name, seed): None for name in NAMES for seed in SEEDS})
    text = markdown_of(out)
    assert "Nothing can be said yet: of adaptive no runs, of fixed_small no runs finished." in text
    assert "0 of 9 runs are finished" in text


def test_failures_are_listed_and_harmless(make_study):
    out = make_study(states={("goyal", 1): "diverged", ("adaptive", 2): "diverged"})
    text = markdown_of(out)
    for arm in ("goyal, seed 1", "adaptive, seed 2"):
        assert f"* {arm}, diverged: the loss is nan | \\<b>at 7\\</b>\n" in text
    assert "AdaBatch fails here: 1 of 3 runs of adaptive diverged." in text


def test_hostile_texts_are_texts(written):
    page = Page((written[0] / "results.html").read_text())
    assert "goyal, seed 1, diverged: the loss is nan | <b>at 7</b>" in page.text
    assert "b" not in page.tags


HOSTILE = '<script>alert("1")</script> | [x](javascript:alert(2)) ![x](http://x/y) ``` <img src=x>'


def test_hostile_texts_are_texts_everywhere(make_study):
    out = make_study(title=HOSTILE, command=f"{HOSTILE}\n```\n<script>", notes=[HOSTILE])
    for seed in SEEDS:
        file = out / f"runs/digits_cnn/goyal/seed{seed}/environment.json"
        packages = {**ENVIRONMENT["packages"], "jax": HOSTILE}
        file.write_text(json.dumps({**ENVIRONMENT, "packages": packages, "cpu": HOSTILE}))
    paths = write_pages(out)
    markdown, page = paths[0].read_text(), Page(paths[1].read_text())
    assert not set(page.tags) & {"script", "img", "iframe"}
    assert page.text.count(" ".join(HOSTILE.split())) >= 4
    fenced = re.compile(r"^(`{3,})bash\n.*?^\1$", re.MULTILINE | re.DOTALL)
    inline = fenced.sub("", markdown)
    assert "<script>" in markdown.replace(inline, "") and "`" not in inline.replace("\\`", "")
    assert not re.search(r"(?<!\\)<[a-zA-Z/!]|(?<!\\)\]\((?!digits_cnn_\w+\.png\))", inline)


@pytest.mark.parametrize("name", ["../../elsewhere", "reproduction.estimate/x", "", ".hidden"])
def test_names_that_lead_elsewhere_are_refused(make_study, name):
    out = make_study()
    content = json.loads((out / "study.json").read_text())
    for arms in ({name: content["arms"]["digits_cnn"]}, {"digits_cnn": {name: {}}}):
        (out / "study.json").write_text(json.dumps(content | {"arms": arms}))
        with pytest.raises(StorageError, match="study.json .*damaged"):
            write_pages(out)
    (out / "study.json").write_text(json.dumps(content | {"seeds": ["/../../elsewhere"]}))
    with pytest.raises(StorageError, match="study.json .*elsewhere"):
        write_pages(out)


def test_no_module_is_imported_that_a_study_names(make_study, monkeypatch):
    out = make_study()
    content = json.loads((out / "study.json").read_text())
    content["arms"] = {"benchmarks.host_memory": content["arms"]["digits_cnn"]}
    (out / "study.json").write_text(json.dumps(content))
    monkeypatch.delitem(sys.modules, "experiments.benchmarks.host_memory", raising=False)
    assert "benchmarks.host_memory" in markdown_of(out)
    assert "experiments.benchmarks.host_memory" not in sys.modules


def test_several_experiments_begin_with_a_summary(make_study):
    text = markdown_of(make_study(experiments=("digits_cnn", "digits_other")))
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    network = "cnn_digits on digits, 4 epochs"
    assert headings == ["Summary", network, network, "Where these figures come from"]
    assert text.count("cnn_digits on digits: AdaBatch works here") == 2
    assert "(digits_cnn_speedup.png)" in text and "(digits_other_speedup.png)" in text


def test_different_machines_are_pointed_out(make_study):
    out = make_study()
    file = out / "runs/digits_cnn/goyal/seed0/environment.json"
    file.write_text(json.dumps({**ENVIRONMENT, "cores": 64}))
    text = markdown_of(out)
    assert "made in 2 different environments" in text
    assert "64 cores of Some Processor" in text and "Runs: goyal seed 0." in text


def test_page_needs_nothing_from_elsewhere(written):
    out, _ = written
    text = (out / "results.html").read_text()
    page = Page(text)
    assert not set(page.tags) & {"script", "link", "img", "iframe", "object"}
    assert all(reference.startswith("#") for reference in page.references)
    assert "@import" not in text and "url(http" not in text
    for colour in re.findall(r"var\((--[\w-]+)\)", text):
        assert f"{colour}:" in text, colour


def test_pages_are_the_same_when_written_again(written):
    out, paths = written
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_pages(out)] == before


def test_nothing_but_measured_figures_is_printed(written):
    out, _ = written
    for name in ("results.md", "results.json"):
        assert not any(figure in (out / name).read_text() for figure in PAPERS_UNVERIFIED)


def test_folder_without_a_study(tmp_path):
    with pytest.raises(UsageError, match=r"no study\.json"):
        write_pages(tmp_path)


def test_markdown_shows_texts_as_they_are():
    text = to_markdown("A `b`", [Paragraph("2 * 3 < 4\n<i>"), Table(("a|b",), (("< 0.001",),))])
    assert text == ("# A \\`b\\`\n\n2 \\* 3 < 4 \\<i>\n\n| a\\|b    |\n| ------- |\n| < 0.001 |\n")
