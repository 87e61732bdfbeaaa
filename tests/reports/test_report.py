"""The report shows what the result files say, and names what is wrong with them."""

import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from branchprune.cli.commands import show_summary
from branchprune.errors import PruneError
from branchprune.experiments.metrics_csv import read_metrics
from branchprune.planning.staying import short
from branchprune.reports.plots import alpha_courses, blending
from branchprune.reports.report import write_report

pytestmark = pytest.mark.usefixtures("charts_drawn_once")

Result = dict[str, Any]
Make = Callable[..., str]

RESULT = """{
"experiment": "digits", "command": "branchprune run configs/digits.yaml", "seed": 7,
"date": "2026-11-20T08:00:00+00:00", "hardware": "AMD EPYC, 2 cores", "commit": null,
"versions": {"branchprune": "0.1.0", "torch": "2.15.0"},
"configuration": "seed: 0\\n", "recalibrate": 16,
"metric": {"column": "metric/val_acc", "label": "acc", "mode": "max", "format": "percent"},
"scores": {"dense": {"val": 0.981, "test": 0.97456}, "blended_at_zero": {"val": 0.9617},
           "small": {"val": 0.9617, "test": 0.96543}},
"cost": {
  "dense": {"channels": 4234, "params": 1234567, "macs": 313201664, "file_bytes": 4940000,
    "latency": {"median_s": 0.0412, "iqr_s": 0.0012, "batch_size": 64, "device": "cpu"},
    "peak_memory_bytes": 402653184},
  "small": {"channels": 1455, "params": 145679, "macs": 37801984, "file_bytes": 588000,
    "latency": {"median_s": 0.0103, "iqr_s": 0.0004, "batch_size": 64, "device": "cpu"},
    "peak_memory_bytes": 96468992}},
"collapse": {"relative_error": 1.2e-15, "tolerance": 1e-10, "relative_error_own_dtype": 3.1e-7},
"plan": {"groups": [
    {"name": "features.0", "layers": ["features.0", "features.3"], "width": 64, "kept": 22,
     "macs_share": 0.123, "reason": null},
    {"name": "classifier", "layers": ["classifier"], "width": 10, "kept": 10,
     "macs_share": 0.001, "reason": "it is an output of the model"}],
  "before": {"channels": 4234, "params": 1234567, "macs": 313201664},
  "after": {"channels": 1455, "params": 145679, "macs": 37801984}},
"stages": {"dense": {"seconds": 20.1, "loader_share": 0.021},
  "prune": {"seconds": 144.0, "loader_share": 0.0084}},
"rounds": [], "epochs": {"dense": 3, "prune": 4}, "seconds": {"dense": 20.1, "prune": 144.0}
}"""
PRUNE = """epoch,step,loss/train,loss/val,metric/val_acc,metric/val_acc_branch,alpha/features.0,lr
,0,,,,,,0.1
0,9,,0.3,0.98,0.2,,
0,9,0.5,,,,0.5,
1,19,0.4,0.3,0.97,0.8,0.25,0.1
2,29,0.3,0.25,0.96,0.96,0.0,0.05
3,39,0.3,0.25,0.962,0.962,0.0,0.01
4,40,,,,,,
"""
DENSE = "epoch,step,loss/train,loss/val,lr\n0,9,2.0,1.9,0.1\n1,19,1.0,1.1,0.1\n"


@pytest.fixture
def result() -> Result:
    content: Result = json.loads(RESULT)
    return content


@pytest.fixture
def report(tmp_path: Path, result: Result) -> Make:
    """Write the run folder, make the report, return its HTML."""

    def make(dense: str | None = DENSE, prune: str = PRUNE) -> str:
        (tmp_path / "result.json").write_text(json.dumps(result))
        for phase, text in {"dense": dense, "prune": prune}.items():
            if text is not None:
                (tmp_path / phase).mkdir(exist_ok=True)
                (tmp_path / phase / "metrics.csv").write_text(text)
        assert write_report(tmp_path) == tmp_path / "report.html"
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return make


class Page(HTMLParser):
    """The tags, references and texts of a page, and the texts of each table row in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str | None] = []
        self.rows: list[list[str]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [v for name, v in attrs if name.split(":")[-1] in ("href", "src")]
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        data = data.replace("\u00a0", " ")
        self.text.append(data)
        if self.rows and data.strip():
            self.rows[-1].append(data.strip())

    def row(self, label: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == label)


def test_table_shows_the_numbers_of_the_result(report: Make) -> None:
    page = Page(report())
    for label, *cells in [
        ("Acc, test", "97.46 %", "96.54 %", "−0.92 points"),
        ("Acc, validation", "98.10 %", "96.17 %", "−1.93 points"),
        ("Channels", "4,234", "1,455", "−65.6 %"),
        ("Parameters", "1,234,567", "145,679", "−88.2 %"),
        ("MACs", "313,201,664", "37,801,984", "−87.9 %"),
        ("File size", "4.94 MB", "588 kB", "−88.1 %"),
        ("Latency, batch 64", "41.2 ms", "10.3 ms", "4.00× as fast"),
        ("Peak memory", "403 MB", "96.5 MB", "−76.0 %"),
    ]:
        assert page.row(label)[-3:] == cells


def test_headline_comes_first(report: Make) -> None:
    text = Page(report()).text
    for number in ("97.46 → 96.54 %", "−88.2 %", "1.23 M → 146 k", "313 M → 37.8 M", "4.00×"):
        assert text.index(number) < text.index("Before and after")


def test_a_speed_up_below_the_spread_is_none(report: Make, result: Result) -> None:
    result["cost"]["small"]["latency"] |= {"median_s": 0.0395, "iqr_s": 0.0018}
    text = Page(report()).text
    assert text[text.index("Speed-up") + 1] == "unclear"
    assert "41.2 ms → 39.5 ms on CPU, less than their spread (IQR 1.80 ms)" in text
    result["cost"]["small"]["latency"]["iqr_s"] = 0.0001
    assert "1.04×" not in text and "1.04×" in Page(report()).text


@pytest.mark.parametrize("iqr", [0.0, None])
def test_a_speed_up_of_unknown_spread_is_none(report: Make, result: Result, iqr: float) -> None:
    result["cost"]["small"]["latency"]["iqr_s"] = iqr
    page = Page(report())
    assert page.text[page.text.index("Speed-up") + 1] == "unclear"
    assert page.row("Latency, batch 64")[-1] == "unclear"


@pytest.mark.parametrize(
    ("quartiles", "card", "cell"),
    [
        ((1.9, 2.1), "2.00×", "2.00× as fast"),
        ((0.9, 2.1), "unclear", "unclear"),
        ((1.0, 2.1), "unclear", "unclear"),
    ],
)
def test_card_table_and_terminal_say_the_same_of_the_speed(
    report: Make, result: Result, quartiles: tuple[float, float], card: str, cell: str
) -> None:
    low, high = quartiles
    result["cost"]["speed_up"] = {"median": 2.0, "low": low, "high": high}
    for model in ("dense", "small"):
        result["cost"][model]["latency"]["count"] = 37
    page, console = Page(report()), Console(width=80, file=io.StringIO(), record=True)
    place = page.text.index("Speed-up")
    fine = f"41.2 ms → 10.3 ms on CPU, quartiles {low:.2f}–{high:.2f}×"
    assert page.text[place + 1] == card and fine in page.text
    note = "median of 37 on CPU; IQR 1.20 ms → 400 µs"
    assert page.row("Latency, batch 64")[1:] == [note, "41.2 ms", "10.3 ms", cell]
    show_summary(result, console)
    text = console.export_text().replace("\u00a0", " ")
    line = next(line for line in text.splitlines() if "Latency" in line)
    assert [part.strip() for part in line.split("│")[1:-1]] == [
        *("Latency, batch 64", "41.2 ms", "10.3 ms", cell)
    ]


def test_the_table_that_ends_a_run_shortens_nothing(result: Result) -> None:
    tables = {width: Console(width=width, file=io.StringIO(), record=True) for width in (40, 60)}
    for console in tables.values():
        show_summary(result, console)
    texts = (console.export_text() for console in tables.values())
    narrow, wide = (text.replace("\u00a0", " ") for text in texts)
    assert "…" not in narrow + wide and "│" in wide
    lines = narrow.splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[lines.index("MACs") + 1] == "  313,201,664 → 37,801,984 (−87.9 %)"
    assert lines[-2:] == ["Error of the collapse, float64", "  1.2e-15"]


def test_a_dry_run_says_so_and_claims_no_speed(report: Make, result: Result) -> None:
    said = ": two batches an epoch, one epoch a stage."
    assert said not in report()
    result["fast"] = True
    page = Page(report())
    assert any(said in text for text in page.text[: page.text.index("Before and after")])
    assert page.text[page.text.index("Speed-up") + 1] == "–" and "4.00×" not in page.text
    assert page.row("Latency, batch 64")[-1] == "–"


def test_error_metric_is_shown_as_a_number_and_says_its_direction(
    report: Make, result: Result
) -> None:
    result["metric"] |= {"mode": "min", "format": "number"}
    row = Page(report()).row("Acc, test")
    assert row == ["Acc, test", "lower is better", "0.9746", "0.9654", "−0.0092"]


def test_exactness(report: Make, result: Result) -> None:
    html = report().replace("\u00a0", " ")
    assert "Yes." in html
    for number in ("1.2 × 10⁻¹⁵", "1.0 × 10⁻¹⁰", "3.1 × 10⁻⁷"):
        assert number in html
    result["collapse"]["relative_error"] = 2e-10
    html = report()
    assert "No." in html and "Yes." not in html


CUT = "prune: {criterion: {name: l1, fit: 0}, cut: {}, finetune: {epochs: 4, fresh: false}}"


def after(report: Make, heading: str) -> str:
    """Return what stands behind a heading, up to the next one."""
    html = report().partition(f"<h2>{heading}</h2>")[2].partition("<h2>")[0]
    return " ".join("".join(Page(html.partition("</main>")[0]).text).split())


@pytest.mark.parametrize(
    ("fit", "rounds", "said"),
    [
        (
            0,
            0,
            "fine-tuning, the small model computed the same as the dense one with these "
            "channels left out (relative error 1.2 × 10⁻¹⁵ in float64,",
        ),
        (8, 0, "these channels replaced by a linear fit of the others (relative"),
        (
            0,
            2,
            "fine-tuning in each round, the small model computed the same as the model "
            "before with these",
        ),
    ],
)
def test_exactness_of_a_cut(report: Make, result: Result, fit: int, rounds: int, said: str) -> None:
    result["configuration"] = CUT.replace("fit: 0", f"fit: {fit}")
    result["stages"]["finetune"] = result["stages"].pop("prune")
    result["rounds"] = [{"val": 0.95, "params": 300000}] * rounds
    assert said in after(report, "Is the cut exact?")
    assert "Is the collapse exact?" not in report()
    result["collapse"]["relative_error"] = 2e-10
    assert "No." in after(report, "Is the cut exact?")
    assert "did not compute the same" in after(report, "Is the cut exact?")


def test_nothing_is_said_to_be_exact_of_what_torch_pruning_removed(
    report: Make, result: Result
) -> None:
    result["configuration"] = "prune: {torch_pruning: {pruner: magnitude}}"
    result["stages"]["finetune"] = result["stages"].pop("prune")
    said = after(report, "Is the cut exact?")
    assert "nothing was folded" in said and "Yes" not in said


def test_how_much_longer_the_small_model_has_trained(report: Make, result: Result) -> None:
    said = "The small model has trained 4 epochs more than the dense one (3 epochs). To see what"
    assert said in after(report, "Before and after")
    result["epochs"] = {"dense": 0, "prune": 1}
    assert "trained 1 epoch more than the dense one. To" in after(report, "Before and after")
    result["epochs"]["prune"] = 0
    assert "epoch" not in after(report, "Before and after")
    result["epochs"] = {"dense": 3, "prune": 4}
    result["configuration"] = CUT.replace("fresh: false", "fresh: true")
    said = "trained from scratch, for 4 epochs; the dense one trained for 3 epochs."
    assert said in after(report, "Before and after")


def test_a_chart_of_losses_that_stands_alone_takes_the_width_of_the_page(report: Make) -> None:
    losses = report(dense=None).partition("<h2>Losses")[2].partition("<h2>")[0]
    widths = re.findall(r'class="(\w+)"><svg[^>]*width="([\d.]+)pt"', losses)
    assert dict(widths) == {"wide": "561.6", "narrow": "302.4"} and 'class="pair"' not in losses
    losses = report().partition("<h2>Losses")[2].partition("<h2>")[0]
    assert losses.count("<svg") == 2 and 'class="pair"' in losses and 'class="wide"' not in losses


def test_widths_and_the_reason_of_a_group_that_stays(report: Make) -> None:
    html = report()
    page = Page(html)
    bars = re.findall(r'<div (?:class="track.*?" )?style="width: (.*?)%">', html)
    assert bars == ["100.00", "34.38", "15.62", "100.00"]  # 22 of 64; 10 / 64, 10 of 10
    assert page.row("features.0")[1:] == ["+ features.3", "64 → 22", "12.3 %"]
    assert page.row("classifier")[1:] == ["stays: it is an output of the model", "10", "0.1 %"]


def test_all_that_the_test_measured_is_in_the_first_table(report: Make, result: Result) -> None:
    result["test"] = {
        "dense": {"metric/test_acc": 0.97456, "loss/test": 0.1234, "metric/test_ssim": 0.91},
        "small": {"metric/test_acc": 0.96543, "loss/test": 0.15, "metric/test_ssim": 0.88},
    }
    result["test"]["dense"] |= {"test_my_score": 2.0, "only_dense": 1.0, "metric/test_psnr": 30.25}
    result["test"]["small"] |= {"test_my_score": 1.5, "metric/test_psnr": 29.0}
    page = Page(report())
    first = page.rows[1 : next(i for i, row in enumerate(page.rows) if row[:1] == ["Channels"])]
    assert first == [
        ["Acc, test", "higher is better", "97.46 %", "96.54 %", "−0.92 points"],
        ["Loss, test", "lower is better", "0.1234", "0.15", "+0.0266"],
        ["My score, test", "2", "1.5", "−0.5"],
        ["PSNR in dB, test", "higher is better", "30.25", "29", "−1.25"],
        ["SSIM, test", "higher is better", "0.91", "0.88", "−0.03"],
        ["Acc, validation", "higher is better", "98.10 %", "96.17 %", "−1.93 points"],
    ]


def test_accuracy_beside_a_metric_of_another_kind_is_in_percent(
    report: Make, result: Result
) -> None:
    result["test"] = {"dense": {"metric/test_acc": 0.5}, "small": {"metric/test_acc": 0.25}}
    row = Page(report()).row("Accuracy, test")
    assert row[2:] == ["50.00 %", "25.00 %", "−25.00 points"]


def test_page_is_made_for_narrow_screens(report: Make) -> None:
    html = report()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert html.count("<table") == html.count('<div class="scroll"><table') == 2


def test_small_print(report: Make, result: Result) -> None:
    text = "".join(Page(report()).text)
    for part in (result["command"], result["hardware"], result["date"], "torch 2.15.0", "2.40 min"):
        assert part in text


def training(html: str) -> str:
    said = html.split("<dt>training</dt><dd>")[1].split("</dd>")[0]
    return " ".join(said.replace("\u00a0", " ").split())


def test_no_line_breaks_between_a_number_and_its_unit_nor_within_an_option(
    report: Make, result: Result
) -> None:
    html = re.sub("<svg.*?</svg>", "", report().partition("<details>")[0], flags=re.S)
    breakable = r"\d[ \n]+(?:%|(?:[GMk]?B|[GMk]|min|m?s|µs|points|epochs?)\b)"
    assert not re.findall(breakable, html.partition("<body>")[2])
    result["command"] = "branchprune run my.yaml --prune.cut '{}'"
    words = ("branchprune", "run", "my.yaml", "--prune.cut", "&#39;{}&#39;")
    assert " ".join(f"<span>{word}</span>" for word in words) in report()


def test_share_of_the_time_that_waited_for_data(report: Make, result: Result) -> None:
    assert training(report()) == (
        "dense 3 epochs, 20.1 s; pruning 4 epochs, 2.40 min; "
        "waited for data: 2.1 % of the dense training, 0.8 % of the pruning"
    )
    rounds = [(30.0, 0.1), (10.0, 0.5)]  # 3 s and 5 s of 40 s
    result["stages"] = {
        f"round_{i:02}": {"seconds": seconds, "loader_share": share}
        for i, (seconds, share) in enumerate(rounds, 1)
    }
    assert training(report()).endswith("; waited for data: 20.0 % of the pruning")
    for stage in result["stages"].values():
        stage["seconds"] = 0.0  # rounded
    assert training(report()).endswith("; waited for data: 30.0 % of the pruning")
    result["stages"] = {}
    assert training(report()).endswith("pruning 4 epochs, 2.40 min")


def test_page_needs_nothing_from_outside(report: Make) -> None:
    page = Page(report())
    assert page.references, "the charts refer to their own parts"
    assert all(str(reference).startswith("#") for reference in page.references)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "@import" not in report() and not re.search(r"url\((?!#)", report())


def test_same_files_give_the_same_page(report: Make) -> None:
    assert report() == report()


def test_hostile_names_are_escaped(report: Make, result: Result) -> None:
    hostile = "<script>alert('$x$ & y')</script>"
    result["experiment"] = result["plan"]["groups"][0]["name"] = hostile
    result["plan"]["groups"][1]["reason"] = hostile
    page = Page(report())
    assert hostile in page.text and f"stays: {hostile}" in page.row("classifier")
    assert page.row(hostile)[2] == "64 → 22"
    assert "script" not in page.tags


def delete(result: Result, path: str) -> None:
    *parents, last = path.split(".")
    for name in parents:
        result = result[name]
    del result[last]


@pytest.mark.parametrize(
    "key",
    [
        "experiment",
        "scores.small.test",
        "cost.dense.latency.iqr_s",
        "cost.speed_up.low",
        "plan.groups",
        "stages.prune.loader_share",
    ],
)
def test_missing_key_is_named_with_its_file(
    report: Make, result: Result, tmp_path: Path, key: str
) -> None:
    result["cost"]["speed_up"] = {"median": 2.0, "low": 1.9, "high": 2.1}
    delete(result, key)
    with pytest.raises(PruneError, match=rf"result\.json: key '{re.escape(key)}' is missing") as e:
        report()
    assert str(tmp_path) in str(e.value)
    assert not (tmp_path / "report.html").exists()


def test_missing_key_in_a_list_is_named_with_its_place(report: Make, result: Result) -> None:
    del result["plan"]["groups"][1]["kept"]
    with pytest.raises(PruneError, match=r"'plan\.groups\[1\]\.kept' is missing"):
        report()


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("metric", "mode", "up"), ("metric", "format", ["percent"]), ("epochs", "prune", "4")],
)
def test_wrong_value_is_named_with_its_key(
    report: Make, result: Result, part: str, key: str, value: object
) -> None:
    result[part][key] = value
    with pytest.raises(
        PruneError, match=rf"key '{part}\.{key}' cannot be {re.escape(repr(value))}"
    ):
        report()


def test_latencies_measured_differently_are_refused(report: Make, result: Result) -> None:
    result["cost"]["small"]["latency"]["device"] = "cuda"
    with pytest.raises(PruneError, match=r"cost\.small\.latency"):
        report()


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_unreadable_result_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(PruneError, match=re.escape(str(tmp_path / "result.json"))):
        write_report(tmp_path)


def test_dense_metrics_may_be_missing(report: Make) -> None:
    html = report(dense=None)
    assert "epochs of dense training" not in html and "epochs of blending" in html
    assert "epochs of dense training" in report()


@pytest.mark.parametrize("column", ["metric/val_acc", "metric/val_acc_branch"])
def test_missing_metric_column_is_named(report: Make, column: str) -> None:
    with pytest.raises(PruneError, match=rf"metrics\.csv: column '{column}' is missing"):
        report(prune=PRUNE.replace(f"{column},", "other,"))


def test_read_metrics_merges_sparse_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,lr,loss,acc\n1,,5,\n,0.1,,\n0,,3,\n0,,2,\n0,,,0.5\n1,,,0.75\n,0.01,,\n")
    assert read_metrics(path) == [
        {"epoch": 0, "lr": 0.1, "loss": 2, "acc": 0.5},
        {"epoch": 1, "loss": 5, "acc": 0.75},
    ]


def test_read_metrics_names_a_cell_that_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,loss\n0,1\n1,high\n")
    with pytest.raises(PruneError, match=r"metrics\.csv, line 3: column 'loss' \(='high'\)"):
        read_metrics(path)
    with pytest.raises(PruneError, match=r"none\.csv: there is no such file"):
        read_metrics(tmp_path / "none.csv")


def test_rounds_are_drawn_from_the_dense_model_on(
    report: Make, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounds(points: list[tuple[float, float]], metric: Result, width: float) -> str:
        drawn.append(points)
        return ""

    drawn: list[list[tuple[float, float]]] = []
    monkeypatch.setattr("branchprune.reports.plots.rounds", rounds)
    result["cost"]["dense"]["params"] = 1000
    result["rounds"] = [{"val": 0.95, "params": 500}, {"val": 0.9, "params": 250}]
    assert "removed in 2 rounds" in report()
    assert drawn == 2 * [[(1.0, 0.981), (0.5, 0.95), (0.25, 0.9)]]


ROWS = [
    {"epoch": e, "metric/psnr": 30.0 + e, "alpha/a": a, "alpha/b": a, "alpha/c": c}
    for e, (a, c) in enumerate([(1.0, 1.0), (0.5, 1.0), (0.0, 0.5), (0.0, 0.0)])
]
METRIC = {"column": "metric/psnr", "label": "psnr", "mode": "max", "format": "number"}


def test_groups_with_the_same_alpha_share_one_course() -> None:
    courses = alpha_courses(ROWS)
    assert [groups for groups, _ in courses] == [["a", "b"], ["c"]]
    assert courses[1][1] == [(0, 1.0), (1, 1.0), (2, 0.5), (3, 0.0)]


def test_chart_labels_each_course_and_shades_only_where_all_alphas_are_zero() -> None:
    svg = blending(ROWS, METRIC, dense=33.0)
    assert "α a + 1 more" in svg and "α c" in svg
    assert svg.count("fill: var(--shade)") == 2, "one stretch and its place in the legend"
    assert "var(--shade)" not in blending(ROWS[:3], METRIC, dense=33.0)


def test_chart_uses_only_colours_of_the_page() -> None:
    assert not re.search(r"#[0-9a-f]{6}", blending(ROWS, METRIC, dense=33.0))


def test_chart_escapes_names_and_reads_no_mathematics_in_them() -> None:
    rows = [{name.replace("/c", "/$<b>$"): value for name, value in row.items()} for row in ROWS]
    page = Page(blending(rows, METRIC, dense=33.0))
    assert "α $<b>$" in page.text and "b" not in page.tags


def test_a_target_is_shown_with_what_was_reached_and_what_others_would_change(
    report: Make, result: Result
) -> None:
    assert "Target" not in re.sub(r"<[^>]+>", " ", report())
    result["plan"] |= {
        "reached": [
            {
                **{"what": "macs", "most": 40e6, "before": 313e6, "after": 39.5e6},
                **{"predicted": 39.5e6, "uniform": 38.1e6},
            }
        ],
        **{"errors": [0.3, 0.0], "limited": ["floor", ""], "change": 0.321, "uniform": 0.654},
        **{"trade_off": [[0.5, 0.1, 0.2], [0.25, 0.3, 0.5]], "ms": [[2.5, 0.75], [0.125, 0.125]]},
    }
    page = report()
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert ["macs", *map(short, (313e6, 40e6, 39.5e6, 39.5e6, 38.1e6))] in Page(page).rows
    assert "before any training: 0.321" in text and "within the target 0.654" in text
    assert "64 → 22 12.3 % 2.5 → 0.75 100.0 % floor" in text
    assert "What other targets would change" in text and "one share of all" in text

    result["plan"]["reached"][0]["most"] = "half"
    with pytest.raises(PruneError, match=r"plan\.reached\[0\]\.most"):
        report()
