"""The page as a whole."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from library import storage
from library.evaluation import TOP_K, Evaluation, Mistake
from library.report import tables
from library.report.charts import line_chart, reliability_chart
from library.report.content import Content, Counts, Subject, account, speed
from library.scoring import Example

_AS_IT_IS = "png"  # small pictures are kept so; the page enlarges them without smoothing


def render(content: Content) -> str:
    """A report as one HTML document."""
    names = [escape(storage.name_of(subject.name)) for subject in content.subjects]
    sections = "".join(
        _subject(subject, number, alone=len(names) == 1) for number, subject in enumerate(content.subjects)
    )
    compared = ""
    if len(names) > 1:
        words = tables.side_by_side(content.subjects, content.comparison)
        compared = f"<section class='card long'><h2 id='both' style='margin-top:0'>Side by side</h2>{words}</section>"
    title = " and ".join(names)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title} on {escape(storage.name_of(content.dataset))}</title><style>{_css()}</style></head><body>"
        f"<header><h1>{title} on {escape(storage.name_of(content.dataset))}</h1>{_heading(content)}</header>"
        f"<main>{compared}{sections}</main><footer>{escape(content.made)}</footer></body></html>\n"
    )


def _css() -> str:
    return files("library.report").joinpath("style.css").read_text(encoding="utf-8")


def _heading(content: Content) -> str:
    facts = {
        "dataset": f"{escape(content.dataset)} <span class='quiet key'>{content.dataset_digest[:12]}</span>",
        "speed": escape(speed(content.throughput)),
    }
    return f"<dl class='facts'>{_facts(facts)}</dl>"


def _subject(subject: Subject, number: int, *, alone: bool) -> str:
    evaluation = subject.evaluation
    where = f"s{number}"
    parts = [] if alone else [f"<h2 id='{where}'>{escape(subject.name)}</h2>"]
    links = {
        "confusion": "confusion matrix",
        "classes": "classes",
        "calibration": "calibration",
        "mistakes": "mistakes",
    }
    links |= {"robustness": "robustness"} if subject.robustness else {}
    links |= {"origin": "where it came from"}
    parts.append(
        "<nav aria-label='sections'>"
        + " ".join(f"<a href='#{where}-{name}'>{words}</a>" for name, words in links.items())
        + "</nav>"
    )
    parts.append(_tiles(evaluation, subject.counts))
    parts.append(f"<p class='quiet'>{escape(account(subject.counts))}</p>")
    parts.append(_card(where, "confusion", "Confusion matrix", tables.confusion(evaluation)))
    parts.append(_card(where, "classes", "Classes", tables.classes(evaluation)))
    parts.append(f"<div class='pair'>{_calibration(where, evaluation)}{_curves(subject.curves)}</div>")
    parts.append(_card(where, "mistakes", "Most confident mistakes", _mistakes(subject.mistakes, subject.examples)))
    if subject.robustness:
        parts.append(_card(where, "robustness", "Robustness", tables.robustness(subject.robustness)))
    parts.append(_card(where, "origin", "Where it came from", _origin(subject)))
    return "".join(parts)


def _card(where: str, name: str, title: str, content: str) -> str:
    return f"<section class='card long'><h3 id='{where}-{name}'>{title}</h3>{content}</section>"


def _tiles(evaluation: Evaluation, counts: Counts) -> str:
    def tile(name: str, value: str, note: str) -> str:
        return f"<div class='tile'><dt>{name}</dt><dd>{value}</dd><dd class='note'>{note}</dd></div>"

    def share(name: str, metric: str) -> str:
        low, high = evaluation.intervals[metric]
        value = tables.percent(getattr(evaluation, metric), 2)
        return tile(name, value, f"95% interval {low * 100:.2f} to {high * 100:.2f}")

    tiles = [share("top-1", "top1")]
    if len(evaluation.classes) > TOP_K:
        tiles.append(share(f"top-{TOP_K}", "top5"))
    low, high = evaluation.intervals["loss"]
    tiles.append(tile("loss", f"{evaluation.loss:.4f}", f"95% interval {low:.4f} to {high:.4f}"))
    tiles.append(tile("calibration error", f"{evaluation.calibration.ece:.4f}", "expected, over 15 bins"))
    tiles.append(tile("pictures", f"{counts.evaluated:,}", f"of {len(evaluation.classes):,} classes"))
    return f"<dl class='tiles'>{''.join(tiles)}</dl>"


def _calibration(where: str, evaluation: Evaluation) -> str:
    words = (
        "Of pictures judged with a confidence of 80%, four in five should be right (the dashed line). "
        "<span class='c1'><span class='swatch'></span>more confidence than accuracy</span> "
        "<span class='c2'><span class='swatch'></span>more accuracy than confidence</span>"
    )
    return (
        f"<section class='card'><h3 id='{where}-calibration'>Calibration</h3><figure>"
        f"{reliability_chart(evaluation.calibration)}<figcaption>{words}</figcaption></figure>"
        f"{tables.calibration(evaluation)}</section>"
    )


_CURVES: tuple[tuple[str, dict[str, str], Callable[[float], str]], ...] = (
    ("Loss", {"train_loss": "training", "val_loss": "validation"}, "{:.3g}".format),
    ("Top-1", {"train_top1": "training", "val_top1": "validation"}, lambda share: f"{share * 100:.4g}%"),
    ("Learning rate", {"lr": "learning rate"}, "{:.3g}".format),
)


def _curves(lines: Sequence[Mapping[str, Any]]) -> str:
    charts: list[str] = []
    for title, names, show in _CURVES:
        series = {
            words: points
            for name, words in names.items()
            if (points := [(float(line["epoch"]), float(line[name])) for line in lines if _has(line, name)])
        }
        chart = line_chart(series, x_title="epoch", y_title=title, show=show)
        if chart:
            legend = "".join(f"<span class='swatch c{n}'></span>{name}" for n, name in enumerate(series))
            figure = f"<figure>{chart}<figcaption>{legend}</figcaption></figure>"
            charts.append(f"<section class='card'><h3>{title}</h3>{figure}</section>")
    return "".join(charts)


def _has(line: Mapping[str, Any], name: str) -> bool:
    return line.get("epoch") is not None and line.get(name) is not None


def _mistakes(mistakes: Sequence[Mistake], examples: Mapping[str, Example]) -> str:
    if not mistakes:
        return "<p>There is none: every picture was judged rightly.</p>"
    items: list[str] = []
    for mistake in mistakes:
        key, label, predicted = (escape(text) for text in (mistake.key, mistake.label, mistake.predicted))
        picture = ""
        if (example := examples.get(mistake.key)) is not None:
            small = " class='small'" if example.format == _AS_IT_IS else ""
            data = base64.b64encode(example.data).decode()
            words = f"{key}: {label}, taken for {predicted}"
            picture = f"<img{small} alt='{words}' src='data:image/{example.format};base64,{data}'>"
        items.append(
            f"<li><figure>{picture}<figcaption>true <span class='true'>{label}</span>, taken for "
            f"<span class='said'>{predicted}</span> with {mistake.confidence:.1%}<br><span class='key'>{key}</span>"
            "</figcaption></figure></li>"
        )
    return f"<ul class='pictures'>{''.join(items)}</ul>"


def _origin(subject: Subject) -> str:
    record = subject.record
    plain: dict[str, str] = {"bundle": escape(subject.name), "id": f"<span class='key'>{subject.bundle_id}</span>"}
    plain |= {name: _value(value) for name, value in record.items() if name not in ("provenance", "classes")}
    provenance: Mapping[str, Any] = record.get("provenance", {})
    plain |= {name: _value(value) for name, value in provenance.items()}
    return f"<dl class='facts'>{_facts(plain)}</dl>"


def _value(value: Any) -> str:
    """What is long is folded away."""
    if not isinstance(value, Mapping | list | tuple):
        text = str(value)
        return f"<pre>{escape(text)}</pre>" if "\n" in text else f"<code>{escape(text)}</code>"
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
    if len(text) < 100:
        return f"<code>{escape(json.dumps(value, ensure_ascii=False, default=str))}</code>"
    return f"<details><summary>{len(value)} entries</summary><pre>{escape(text)}</pre></details>"


def _facts(facts: Mapping[str, str]) -> str:
    """Names with values that are HTML already."""
    return "".join(
        f"<dt>{escape(str(name).replace('_', ' '))}</dt><dd>{value}</dd>"
        for name, value in facts.items()
        if value not in ("<code></code>", "<code>None</code>", "<code>[]</code>", "<code>{}</code>")
    )
