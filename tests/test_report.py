"""The report as a reader's browser gets it: parsed, not searched as text where avoidable."""

from base64 import b64decode, b64encode
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from counterdoor.attacks import AllToOne
from counterdoor.metrics import summarize
from counterdoor.report import GLOSSARY, render_report

NAN = float("nan")
VOID = {"meta", "link", "img", "br"}
METRICS = {
    "ca": 0.9352,
    "ca_worst_class": 0.811,
    "ca_target_class": 0.922,
    "asr": 0.0041,
    "ba": 0.913,
    "ba_without_target": 0.904,
    "ca_unstamped": 0.901,
    "ca_worst_class_unstamped": 0.702,
    "ca_target_class_unstamped": 0.203,
    "asr_unstamped": 0.114,
    "ba_unstamped": 0.525,
    "ba_without_target_unstamped": 0.496,
    "undefended_ca": 0.9423,
    "undefended_ca_worst_class": 0.857,
    "undefended_ca_target_class": 0.968,
    "undefended_asr": 0.9992,
    "undefended_ba": 0.109,
    "undefended_ba_without_target": 0.001,
    "ca_drop": 0.0071,
    "ca_drop_worst_class": 0.0462,
    "der": 0.9943,
    "c_rej": 0.031,
    "psr": 0.917,
    "b_rej": 0.888,
    "dsr": 0.979,
    "detection_precision": 0.953,
    "detection_tpr": 0.476,
    "detection_fpr": 0.0028,
    "detection_auroc": 0.987,
    "pseudo_label_accuracy": 0.864,
    "pseudo_label_accuracy_all": 0.935,
    "n_train": 50000.0,
    "n_trusted": 2500.0,
    "n_poisoned": 5000.0,
    "n_cover": 1000.0,
    "n_suspects": 2497.0,
    "n_stamped": 2391.0,
}
SECONDS = pd.DataFrame({"stage": ["warm-up", "train"], "seconds": [12.34, 1100.0]})
FIGURES = {"outcome": b"\x89PNG first \x00\xff", "suspects": b"\x89PNG second"}


class Page(HTMLParser):
    """Collects a page's tags, table rows by section, and text; checks that tags are nested well."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.section = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        if tag == "tr":
            self.rows.setdefault(self.section, []).append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not data.strip():
            return
        self.texts.append((self.open[-1], data))
        if self.open[-1] in ("th", "td"):
            self.rows[self.section][-1].append(data)

    def text_of(self, tag: str) -> list[str]:
        return [text for owner, text in self.texts if owner == tag]

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def table(self, section: str) -> dict[str, list[str]]:
        return {row[0]: row[1:] for row in self.rows[section]}


def page(
    *,
    title: str = "A run",
    metrics: dict[str, float] | None = None,
    choices: dict[str, object] | None = None,
    figures: dict[str, bytes] | None = None,
    notes: tuple[str, ...] = (),
    seconds: pd.DataFrame = SECONDS,
) -> Page:
    html = render_report(
        title=title,
        metrics=METRICS | (metrics or {}),
        seconds=seconds,
        choices={"detector": "lga"} if choices is None else choices,
        figures=FIGURES if figures is None else figures,
        notes=notes,
    )
    return Page(html)


def verdict(**metrics: float) -> str:
    (text,) = [t for tag, t in page(metrics=metrics).texts if tag == "p"]
    return text


def test_outcome_table_sets_the_undefended_net_beside_the_defended() -> None:
    assert page().rows["outcome"] == [
        ["Measure", "Undefended", "Defended, as deployed", "Defended, unstamped"],
        ["Clean accuracy (CA)", "94.2%", "93.5%", "90.1%"],
        ["CA of the worst class", "85.7%", "81.1%", "70.2%"],
        ["CA of the target class", "96.8%", "92.2%", "20.3%"],
        ["Attack success rate (ASR)", "99.9%", "0.4%", "11.4%"],
        ["Backdoor accuracy (BA)", "10.9%", "91.3%", "52.5%"],
        ["BA without the target class", "0.1%", "90.4%", "49.6%"],
    ]


def test_without_one_target_class_its_rows_are_left_out() -> None:
    several = {name: value for name, value in METRICS.items() if "target" not in name}
    html = render_report(
        title="", metrics=several, seconds=SECONDS, choices={}, figures={}, notes=[]
    )
    assert [name for name, *_ in Page(html).rows["outcome"][1:]] == [
        "Clean accuracy (CA)",
        "CA of the worst class",
        "Attack success rate (ASR)",
        "Backdoor accuracy (BA)",
    ]


def test_other_tables_show_every_metric() -> None:
    read = page()
    assert read.table("detection") == {
        "Precision": ["95.3%"],
        "TPR": ["47.6%"],
        "FPR": ["0.3%"],
        "AUROC": ["98.7%"],
        "Pseudo-labels right, suspects": ["86.4%"],
        "Pseudo-labels right, all samples": ["93.5%"],
        "Training samples": ["50,000"],
        "Suspects": ["2,497"],
        "Poisoned": ["5,000"],
        "Cover samples": ["1,000"],
        "Stamped": ["2,391"],
        "Trusted": ["2,500"],
    }
    assert read.table("filter") == {
        "C-REJ": ["3.1%"],
        "PSR": ["91.7%"],
        "B-REJ": ["88.8%"],
        "DSR": ["97.9%"],
    }
    assert list(read.table("trade").values()) == [["99.4%"], ["0.7 points"], ["4.6 points"]]


def test_metrics_of_a_run_are_the_ones_reported() -> None:
    true = np.array([0, 1, 0, 1])
    nets = ("defended", "undefended")
    columns = [
        f"{net}_{images}_{condition}"
        for net in nets
        for images in ("clean", "triggered")
        for condition in ("plain", "stamped")
    ]
    metrics = summarize(
        pd.DataFrame(
            {"true_label": true, **{name: 1 - true * (len(name) % 2) for name in columns}}
        ),
        pd.DataFrame(
            {
                "score": [0.1, 0.2, 0.3, 0.4],
                "trusted": False,
                "suspect": [False, False, True, True],
                "pseudo_label": [0, 1, 0, 0],
                "stamped": [False, False, False, True],
            }
        ),
        pd.DataFrame({"true_label": true, "is_poisoned": true == 1, "is_cover": False}),
        labels=AllToOne(target_class=1),
        num_classes=2,
        deployed_stamped=True,
    )
    assert set(metrics) == set(METRICS)
    read = page(metrics=metrics)
    assert read.table("outcome")["Clean accuracy (CA)"][1] == f"{100 * metrics['ca']:.1f}%"
    assert read.table("detection")["Precision"] == ["50.0%"]


def test_seconds_have_a_total_and_choices_their_values() -> None:
    read = page(choices={"detector.share": 0.05, "stamp": (1, 2), "none": None, "nan": NAN})
    assert read.rows["seconds"] == [
        ["Stage", "Seconds"],
        ["warm-up", "12.3"],
        ["train", "1,100.0"],
        ["Total", "1,112.3"],
    ]
    assert read.table("choices") == {
        "detector.share": ["0.05"],
        "stamp": ["(1, 2)"],
        "none": ["None"],
        "nan": ["n/a"],
    }


def test_sections_come_in_the_order_of_interest() -> None:
    sections = [attributes["id"] for attributes in page(notes=("beware",)).attributes("section")]
    assert sections == [
        "outcome", "notes", "figures", "detection", "filter", "trade", "seconds", "choices",
        "glossary",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (
            {},
            (
                "the attack success rate fell from 99.9% to 0.4%; "
                "the clean accuracy fell from 94.2% to 93.5%, by 0.7 points."
            ),
        ),
        (
            {"undefended_asr": 0.02, "asr": 0.3, "undefended_ca": 0.8, "ca": 0.812},
            (
                "the attack success rate rose from 2.0% to 30.0%; "
                "the clean accuracy rose from 80.0% to 81.2%, by 1.2 points."
            ),
        ),
        (
            {"undefended_asr": NAN, "undefended_ca": 0.93521},
            "the attack success rate went from n/a to 0.4%; the clean accuracy stayed at 93.5%.",
        ),
        (
            {"ca": NAN},
            (
                "the attack success rate fell from 99.9% to 0.4%; "
                "the clean accuracy went from 94.2% to n/a."
            ),
        ),
    ],
)
def test_verdict_says_what_changed(metrics: dict[str, float], expected: str) -> None:
    assert verdict(**metrics) == f"With the defence, {expected}"


def test_verdict_without_an_attack_is_of_the_clean_accuracy_alone() -> None:
    without = {"n_poisoned": 0.0, "undefended_asr": NAN, "asr": NAN, "ca": 0.9412}
    assert verdict(**without) == (
        "Nobody is poisoned. With the defence, the clean accuracy fell from 94.2% to 94.1%, "
        "by 0.1 points."
    )


def test_figures_are_embedded_in_order_under_their_caption() -> None:
    read = page()
    assert read.text_of("figcaption") == ["outcome", "suspects"]
    sources = [image["src"] or "" for image in read.attributes("img")]
    assert sources == [
        f"data:image/png;base64,{b64encode(png).decode()}" for png in FIGURES.values()
    ]
    assert [b64decode(source.partition(",")[2]) for source in sources] == list(FIGURES.values())
    assert [image["alt"] for image in read.attributes("img")] == ["outcome", "suspects"]


def test_page_refers_to_nothing_outside() -> None:
    read = page(notes=("beware",))
    references = [
        value
        for _, attributes in read.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert len(references) == 1 + len(FIGURES)
    assert all(value and value.startswith("data:") for value in references)
    assert not read.attributes("script")
    for outside in ("http://", "https://", "@import", "url("):
        assert outside not in read.html


def test_hostile_names_are_escaped() -> None:
    hostile = '"><script>alert(1)</script>'
    read = page(
        title=hostile,
        choices={hostile: hostile},
        figures={hostile: b"png"},
        notes=(hostile,),
        seconds=pd.DataFrame({"stage": [hostile], "seconds": [1.0]}),
    )
    assert "<script" not in read.html
    assert read.text_of("h1") == read.text_of("title") == [hostile]
    assert read.text_of("li") == read.text_of("figcaption") == [hostile]
    assert read.table("choices") == {hostile: [hostile]}
    assert read.rows["seconds"][1] == [hostile, "1.0"]
    assert read.attributes("img")[0]["alt"] == hostile


def test_nan_is_not_available() -> None:
    read = page(metrics=dict.fromkeys(METRICS, NAN))
    tables = [read.rows["outcome"][1:], *(read.rows[name] for name in ("detection", "filter"))]
    cells = [cell for rows in [*tables, read.rows["trade"]] for row in rows for cell in row[1:]]
    assert len(cells) == len(METRICS)
    assert set(cells) == {"n/a"}
    assert "nan" not in " ".join(cells).lower()


def test_gain_is_a_negative_fall_and_zero_has_no_sign() -> None:
    falls = page(metrics={"ca_drop": -0.0123, "ca_drop_worst_class": -0.0001}).table("trade")
    assert list(falls.values())[1:] == [["−1.2 points"], ["0.0 points"]]


def test_no_figure_and_no_note_leave_no_empty_section() -> None:
    read = page(figures={})
    assert not {"figures", "notes"} & {tag["id"] for tag in read.attributes("section")}
    assert not read.attributes("img")


def test_notes_are_listed() -> None:
    assert page(notes=("one", "two")).text_of("li") == ["one", "two"]


def test_glossary_explains_every_abbreviation() -> None:
    read = page()
    assert read.text_of("dt") == list(GLOSSARY)
    assert len(read.text_of("dd")) == len(GLOSSARY)
    used = {"CA", "ASR", "BA", "DER", "C-REJ", "PSR", "B-REJ", "DSR"}
    assert used | {"Precision", "TPR", "FPR", "AUROC"} <= set(GLOSSARY)


def test_page_suits_a_phone_and_both_colour_schemes() -> None:
    read = page()
    metas = {meta.get("name"): meta.get("content") for meta in read.attributes("meta")}
    assert metas["viewport"] == "width=device-width, initial-scale=1"
    assert metas["color-scheme"] == "light dark"
    assert "@media (prefers-color-scheme: dark)" in read.html


def test_missing_metric_is_an_error() -> None:
    metrics = {name: value for name, value in METRICS.items() if name != "dsr"}
    with pytest.raises(KeyError, match="dsr"):
        render_report(title="", metrics=metrics, seconds=SECONDS, choices={}, figures={}, notes=[])
