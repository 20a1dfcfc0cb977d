import dataclasses
import html.parser
import json
import os
import re
import urllib.parse

import pytest

from adabatch_jax.report import write_comparison, write_report
from adabatch_jax.reporting import quoted_figures
from adabatch_jax.reporting.report_pages import comparison_page, run_page
from adabatch_jax.reporting.saved_run import load_run
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.files import read_sealed, write_sealed
from adabatch_jax.training.time_prediction import predict

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)>'


class Page(html.parser.HTMLParser):
    """Collects the tags, and checks that each element is closed where it should be."""

    VOID = {"meta", "br", "img", "input"}

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
    assert Page(page).tags.count("svg") == 3 * 5


def predicted_run(make_run, measured=(40.0, 20.0, 10.0, 5.0), **options):
    """A run that was predicted, from the times of its first and its last batch size."""
    directory = make_run(**options)
    content = json.loads((directory / "plan.json").read_text())
    prediction = predict(BatchPlan.from_dict(content), {128: 0.005, 1024: 0.0125})
    (directory / "plan.json").write_text(json.dumps(content | {"prediction": prediction.to_dict()}))
    if (directory / "summary.json").exists():
        summary = read_sealed(directory / "summary.json")
        summary |= {"phase_training_seconds": list(measured), "background_compile_seconds": 3.25}
        write_sealed(directory / "summary.json", summary)
    return load_run(directory)


def test_predicted_beside_measured(make_run):
    run = predicted_run(make_run)
    text = plain(run_page(run))
    updates = [p["stop_step"] - p["start_step"] for p in run.plan["phases"]]
    seconds = [0.005, 0.005 + 0.0075 / 7, 0.005 + 3 * 0.0075 / 7, 0.0125]
    predicted = [n * s for n, s in zip(updates, seconds, strict=True)]
    assert f"1 128 7,813 0.005 s {predicted[0]:.3g} s 40 s {predicted[0] / 40:.2f}" in text
    assert f"2 256 3,906 ~0.00607 s {predicted[1]:.3g} s 20 s {predicted[1] / 20:.2f}" in text
    total = sum(predicted)
    assert f"total 14,650 {total:.3g} s 75 s {total / 75:.2f}" in text
    fixed = 31_250 * 0.005
    assert f"Predicted speed-up over the first batch throughout: {fixed / total:.2f}." in text
    assert "3.25 s more of compilation went on while the run trained." in text
    text = plain(comparison_page([run, load_run(make_run("b-2"))]))
    assert "predicted / measured" in text and f" {total / 75:.2f} " in text


def test_what_is_not_known_of_a_prediction(make_run):
    text = plain(run_page(predicted_run(make_run, finished=False)))
    assert "1 128 7,813 0.005 s 39.1 s - -" in text
    # The plan was changed since.
    run = predicted_run(make_run, folder="other")
    run.plan["phases"][-1]["stop_step"] += 1
    assert "Predicted and measured" not in plain(run_page(run))
    assert quoted_figures.predicted_over_measured(run) is None


@pytest.mark.parametrize("make_page", [run_page, lambda run: comparison_page([run, run])])
def test_pages_need_nothing_from_elsewhere(make_run, make_page):
    page = make_page(load_run(make_run()))
    tags = set(Page(page).tags)
    assert not tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert "@import" not in page and "url(http" not in page
    for tag, name, value in Page(page).attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:text/csv;")), (tag, value)
        else:
            assert name.startswith("xmlns") or "://" not in (value or ""), (tag, name, value)


@pytest.mark.parametrize("make_page", [run_page, lambda run: comparison_page([run, run])])
def test_hostile_values_are_text(make_run, make_page):
    directory = make_run(name=HOSTILE, dataset=HOSTILE, **{HOSTILE: HOSTILE})
    (directory / "environment.json").write_text('{"command": "<script>1</script>"}')
    page = make_page(load_run(directory))
    assert not {"script", "img"} & set(Page(page).tags)
    assert HOSTILE in plain(page)


def test_hostile_folders_and_metrics_are_text(make_run, tmp_path):
    folder = os.fsdecode(b"<script>alert(1) \xff")
    row = {"step": 1, "samples": 128, "epoch": 0.1, "batch_size": 128, "train_loss": 2.3}
    first = make_run(folder, name=None, rows=[row | {HOSTILE: 0.5, "examples_digest": HOSTILE}])
    write_report(first)
    write_comparison([load_run(first), load_run(make_run())], tmp_path / "comparison.html")
    for page in (first / "report.html", tmp_path / "comparison.html"):
        text = page.read_text()
        assert not {"script", "img"} & set(Page(text).tags)
        assert r"<script>alert(1) \udcff" in plain(text)


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
    for row in (
        "run growing fixed batch size 128 to 1,024 128 epochs 80 20 updates 14,650 7,813",
        "test accuracy 94.68 % ",
        " best test accuracy 94.96 % ",
        "The best is the highest of accuracy and the lowest of loss, or what --keep-best says.",
    ):
        assert row in text
    differing = text[text.index("Settings that differ") : text.index("settings in common")]
    for name in ("batch_schedule", "lr", "epochs"):
        assert name in differing
    assert "seed" not in differing and "momentum" not in differing


def test_settings_of_runs_that_have_others(make_run):
    """Of `fit` with an `identity` of one's own, or with none."""
    runs = [load_run(make_run("a")), load_run(make_run("b", batch_sizes=(64, 128)))]
    runs = [dataclasses.replace(runs[0], config={"net": {"depth": 3}, "lr": 0.1}),
            dataclasses.replace(runs[1], config={"net": {"depth": 4}})]  # fmt: skip
    differing, common = quoted_figures.differing_settings(runs)
    assert differing["net.depth"] == [3, 4] and differing["lr"] == [0.1, "-"]
    assert differing["plan.batch_sizes"] == ["128 to 1,024", "64 to 128"]
    assert common["plan.num_examples"] == 50_000
    text = plain(comparison_page(runs))
    assert "net.depth 3 4" in text


@pytest.mark.parametrize("make_page", [run_page, lambda run: comparison_page([run, run])])
def test_every_figure_can_be_enlarged_and_carries_its_data(make_run, make_page):
    page = Page(make_page(load_run(make_run())))
    identifiers = {value for _, name, value in page.attributes if name == "id"}
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    data = [link for link in links if link.startswith("data:text/csv;charset=utf-8,run,step,")]
    assert len(data) == page.tags.count("figure") == page.tags.count("svg") / 3
    for number in range(len(data)):
        assert f"#figure_{number}" in links and f"#at-figure_{number}" in links
    assert {link[1:] for link in links if link[0] == "#"} <= identifiers
    labels = {value for tag, name, value in page.attributes if (tag, name) == ("label", "for")}
    assert len(labels) == 3 and labels <= identifiers
    first = urllib.parse.unquote(data[0])
    assert first.count("\n") > 20 and ",0.1," not in first.splitlines()[0]


def test_an_enlarged_figure_of_several_runs_names_them(make_run):
    runs = [load_run(make_run("a", name="one")), load_run(make_run("b", name="two"))]
    page = comparison_page(runs)
    keys = re.findall(r'<figure id="\w+">\n<p class="keys">(.*?)</p><a', page)
    assert len(keys) == page.count("<figure ") > 3
    assert all(">one</span>" in key and ">two</span>" in key for key in keys)
    assert "figure .keys { display: none; }" in page  # else the one above them will do
    assert '<figure id="figure_0">\n<a' in run_page(runs[0])


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
    assert sentence in quoted_figures.digests_sentence(runs)


def test_time_split_adds_up_to_the_total(make_run):
    run = load_run(make_run())
    split = quoted_figures.time_split(run)
    assert sum(split.values()) == pytest.approx(run.summary["total_seconds"])
    assert split["other"] == pytest.approx(0.04 * run.summary["total_seconds"])


def test_run_with_a_constant_batch_is_compared_with_nothing(make_run):
    outcome = quoted_figures.outcome(load_run(make_run(batch_sizes=(128,))))
    assert outcome.endswith("after 7,813 updates.")


def test_page_is_readable_in_light_dark_and_print(make_run):
    page = run_page(load_run(make_run()))
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    for colour in re.findall(r"var\((--[\w-]+)\)", page):
        assert f"{colour}:" in page, colour
