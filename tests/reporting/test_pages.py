import html.parser
import re

import pytest

from adabatch_jax.reporting import figures
from adabatch_jax.reporting.pages import comparison_page, run_page
from adabatch_jax.reporting.runs import load_run

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)>'


class Page(html.parser.HTMLParser):
    """Collects the tags, and checks that each element is closed where it should be."""

    VOID = {"meta", "br", "img"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def plain(text):
    return " ".join(" ".join(Page(text).texts).split())


def test_page_of_a_finished_run(make_run):
    page = run_page(load_run(make_run()))
    text = plain(page)
    assert "Trained 80 epochs in 77.9 s: test accuracy 94.68 % after 14,650 updates." in text
    assert "A constant batch of 128 would have needed 31,250 updates, 2.13 times as many." in text
    assert "7,813 to 11,719 1,000,064 to 2,000,000 20.00 to 40.00 256 0.075 0.000293" in text
    assert "augmentation.crop_padding 4" in text
    assert "packages.jax 0.10.2" in text
    assert "evaluation 5.45 s 7.0 %" in text
    assert Page(page).tags.count("svg") == 3


@pytest.mark.parametrize("make_page", [run_page, lambda run: comparison_page([run, run])])
def test_pages_need_nothing_from_elsewhere(make_run, make_page):
    page = make_page(load_run(make_run()))
    tags = set(Page(page).tags)
    assert not tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert "@import" not in page and "url(http" not in page
    for tag, name, value in Page(page).attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#"), (tag, value)
        else:
            assert name.startswith("xmlns") or "://" not in (value or ""), (tag, name, value)


@pytest.mark.parametrize("make_page", [run_page, lambda run: comparison_page([run, run])])
def test_hostile_values_are_text(make_run, make_page):
    directory = make_run(name=HOSTILE, dataset=HOSTILE, **{HOSTILE: HOSTILE})
    (directory / "environment.json").write_text('{"command": "<script>1</script>"}')
    page = make_page(load_run(directory))
    assert not {"script", "img"} & set(Page(page).tags)
    assert HOSTILE in plain(page)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1, "samples": 128, "epoch": 0.1, "batch_size": 128, "train_loss": 2.3}],
        [{"step": 1, "samples": 128, "train_loss": None, "test_accuracy": None}],
    ],
    ids=["empty", "one row", "nan"],
)
def test_pages_of_unfinished_runs(make_run, rows):
    run = load_run(make_run(rows=rows, finished=False))
    assert "Unfinished: " in plain(run_page(run))
    assert f"{len(rows)} of 14,650" in plain(comparison_page([run, run]))
    assert ("is not finite" in plain(run_page(run))) == (rows != [] and "epoch" not in rows[0])


def test_comparison(make_run):
    runs = [
        load_run(make_run("a", name="growing")),
        load_run(make_run("b", name="fixed", batch_sizes=(128,), lr="0.1", seed=0)),
    ]
    text = plain(comparison_page(runs))
    assert "growing 128 to 1,024 80 14,650 4,000,000 94.68 % 5.32 % 94.96 % 77.9 s" in text
    assert "fixed 128 20 7,813 1,000,000" in text
    differing = text[text.index("Settings that differ") : text.index("settings in common")]
    for name in ("batch_schedule", "lr", "epochs"):
        assert name in differing
    assert "seed" not in differing and "momentum" not in differing


def test_comparison_of_equal_settings_has_none_that_differ(make_run):
    run = load_run(make_run())
    assert "Settings that differ" not in plain(comparison_page([run, run]))


@pytest.mark.parametrize(
    "second, sentence",
    [
        ({100: "a", 200: "b", 300: "c"}, "All runs saw the same 200 examples first"),
        ({100: "a", 200: "other"}, "didn't all see the same examples"),
        ({150: "a"}, "No position was logged by all runs"),
    ],
)
def test_digests_decide_whether_the_examples_were_the_same(make_run, second, sentence):
    runs = [
        load_run(
            make_run(
                folder,
                rows=[
                    {"step": samples // 50, "samples": samples, "examples_digest": digest}
                    for samples, digest in digests.items()
                ],
                finished=False,
            )
        )
        for folder, digests in (("a", {100: "a", 200: "b"}), ("b", second))
    ]
    assert sentence in figures.digests_sentence(runs)


def test_time_split_adds_up_to_the_total(make_run):
    run = load_run(make_run())
    split = figures.time_split(run)
    assert sum(split.values()) == pytest.approx(run.summary["total_seconds"])
    assert split["other"] == pytest.approx(0.04 * run.summary["total_seconds"])


def test_run_with_a_constant_batch_is_compared_with_nothing(make_run):
    outcome = figures.outcome(load_run(make_run(batch_sizes=(128,))))
    assert outcome.endswith("after 7,813 updates.")


def test_page_is_readable_in_light_dark_and_print(make_run):
    page = run_page(load_run(make_run()))
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    for colour in re.findall(r"var\((--[\w-]+)\)", page):
        assert f"{colour}:" in page, colour
