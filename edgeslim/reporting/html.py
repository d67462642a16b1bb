"""The report as one HTML file: no scripts, no network, readable on a phone, light and dark."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from edgeslim.reporting.charts import Bar, Point, bars, key, scatter
from edgeslim.reporting.devices import compare_devices
from edgeslim.reporting.figures import (
    ENERGY,
    FURTHER,
    PEAK,
    PERPLEXITY,
    PHASES,
    TABLE,
    TOKEN,
    WEIGHTS,
    Figure,
    settings,
    significant,
    warnings,
)
from edgeslim.reporting.measurements import Measurement
from edgeslim.reporting.operators import Operators, operators
from edgeslim.reporting.report import Report

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_ESTIMATES = (
    "Nothing in this section was measured. Figures are worked out from the bundle's bytes and operations and from the "
    "device's file; ranges in brackets are the error that is expected."
)


def render(report: Report) -> str:
    """Return `report` as an HTML page; estimated figures and plots stand in a section of their own."""
    sections = [_measured(report.measured)] if report.measured else []
    sections += [_estimated(report.estimated)] if report.estimated else []
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>Profiles</title>\n<style>\n{style}</style>\n</head>\n<body>\n'
        f"{_head(report)}\n{''.join(sections)}\n</body>\n</html>\n"
    )


def _head(report: Report) -> str:
    counts = [f"{len(report.measured)} measured"] if report.measured else []
    counts += [f"{len(report.estimated)} estimated"] if report.estimated else []
    about = f"edgeslim {report.version} · {report.created} · {', '.join(counts)}"
    return f'<header><h1>Profiles</h1><p class="soft">{escape(about)}</p></header>'


def _measured(measurements: Sequence[Measurement]) -> str:
    parts = [_notice(measurements), _grid(_plots(measurements) + _phase_bars(measurements)), _table(measurements)]
    parts += [_devices(measurements), _operators(measurements), _details(measurements)]
    return f'<section id="measured"><h2>Measured</h2>{"".join(parts)}</section>'


def _estimated(measurements: Sequence[Measurement]) -> str:
    parts = [f'<p class="notice">{_ESTIMATES}</p>', _notice(measurements), _grid(_phase_bars(measurements))]
    parts += [_table(measurements), _details(measurements)]
    return f'<section id="estimated" class="estimated"><h2>Estimated, not measured</h2>{"".join(parts)}</section>'


def _notice(measurements: Sequence[Measurement]) -> str:
    """Return what was run where, which figures nothing gave, and every warning with whom it is about."""
    conditions, devices = dict.fromkeys(each.conditions for each in measurements), _devices_of(measurements)
    tokens = f"{'; '.join(conditions)} (of prompt, then decoded)"
    lines = [f'<p class="soft">{escape(tokens)}, on {escape(", ".join(devices))}.</p>']
    if missing := ", ".join(figure.label for figure in _missing(measurements)):
        lead = "Not measured" if measurements[0].measured else "Not estimated"
        lines.append(f'<p class="soft">{lead}: {escape(missing)}.</p>')
    if len(conditions) > 1:
        lines.append('<p class="notice">Prompts or new tokens differ: compare with care.</p>')
    about: dict[str, list[str]] = {}
    for each in measurements:
        for warning in warnings(each):
            about.setdefault(warning, []).append(f"{each.name} on {each.device}")
    entries = "".join(f"<li>{escape(text)} ({escape('; '.join(whom))})</li>" for text, whom in about.items())
    return "".join(lines) + (f'<ul class="notice">{entries}</ul>' if entries else "")


def _plots(measurements: Sequence[Measurement]) -> list[str]:
    """Return decode latency over size and over perplexity, of the measurements where these are known."""
    return [
        _plot(measurements, TOKEN, WEIGHTS, lambda value: value / 1e6),
        _plot(measurements, TOKEN, PERPLEXITY, lambda value: value),
    ]


def _plot(measurements: Sequence[Measurement], y: Figure, x: Figure, unit: Callable[[float], float]) -> str:
    known = [m for m in measurements if m.number(x.key) is not None and m.number(y.key) is not None]
    if not known:
        return ""
    names = _devices_of(measurements)
    points = [
        Point(x=unit(m.number(x.key) or 0.0), y=m.number(y.key) or 0.0, label=m.name, series=names.index(m.device))
        for m in known
    ]
    left_out = len(measurements) - len(known)
    note = f" <small>{left_out} without {x.label} left out</small>" if left_out else ""
    caption = f"<figcaption>Latency over {x.label}{note}</figcaption>"
    return f'<figure class="tall">{caption}{scatter(points, x.heading, y.heading)}{key(names)}</figure>'


def _phase_bars(measurements: Sequence[Measurement]) -> list[str]:
    """Return a chart for each phase, and for memory and energy, that any of `measurements` has."""
    figures = (*PHASES, PEAK, ENERGY)
    return [_bar_chart(measurements, figure) for figure in figures if figure not in _missing(measurements)]


def _missing(measurements: Sequence[Measurement]) -> list[Figure]:
    """Return the figures that none of `measurements` has."""
    return [figure for figure in TABLE if all(each.number(figure.key) is None for each in measurements)]


def _bar_chart(measurements: Sequence[Measurement], figure: Figure) -> str:
    groups = {
        device: [
            Bar(label=m.name, value=m.number(figure.key), text=figure.show(m), series=series)
            for m in measurements
            if m.device == device
        ]
        for series, device in enumerate(_devices_of(measurements))
    }
    sense = "more is better" if figure.unit.endswith("/s") else "less is better"
    return f"<figure><figcaption>{escape(figure.label)} <small>{sense}</small></figcaption>{bars(groups)}</figure>"


def _table(measurements: Sequence[Measurement]) -> str:
    """Return a row a measurement, with the figures that any of them has."""
    shown = [figure for figure in TABLE if figure not in _missing(measurements)]
    columns = [(escape(figure.heading), [_cell(figure, m) for m in measurements]) for figure in shown]
    lead = [("device", [_text(m.device) for m in measurements])]
    if len({m.conditions for m in measurements}) > 1:
        lead.append(("tokens", [_text(m.conditions) for m in measurements]))
    heads = "".join(f'<th scope="col" class="text">{name}</th>' for name, _ in lead)
    heads += "".join(f'<th scope="col">{name}</th>' for name, _ in columns)
    rows = [
        f'<tr><th scope="row">{_name(m)}</th>{"".join(cells[number] for _, cells in (*lead, *columns))}</tr>'
        for number, m in enumerate(measurements)
    ]
    return _scroll(f'<thead><tr><th scope="col">bundle</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody>')


def _devices(measurements: Sequence[Measurement]) -> str:
    comparison = compare_devices(measurements)
    if comparison is None:
        return ""
    heads = "".join(f'<th scope="col">{escape(device)}</th>' for device in comparison.devices)
    tables = []
    for figure, rows in comparison.tables():
        body = "".join(
            f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
            for row in rows
        )
        head = f'<thead><tr><th scope="col">{escape(figure.heading)}</th>{heads}</tr></thead>'
        tables.append(_scroll(f"{head}<tbody>{body}</tbody>"))
    return f'<h3>Devices</h3><div class="grid">{"".join(tables)}</div>'


def _operators(measurements: Sequence[Measurement]) -> str:
    found = [each for each in map(operators, measurements) if each is not None]
    if not found:
        return ""
    charts = [_operator_chart(each, phase) for each in found for phase in dict.fromkeys(e.phase for e in each.entries)]
    return f"<h3>Operators</h3>{_grid(charts)}"


def _operator_chart(found: Operators, phase: str) -> str:
    rows = [
        Bar(label=f"{e.op} × {e.calls}", value=e.ms, text=f"{significant(e.ms)} ms, {e.share:.0%}", series=0)
        for e in found.entries
        if e.phase == phase
    ]
    place = ", ".join(escape(each) for each in (found.measurement.device, phase) if each)
    caption = f"{escape(found.measurement.name)} <small>{place}</small>"
    return f"<figure><figcaption>{caption}</figcaption>{bars({'': rows})}</figure>"


def _details(measurements: Sequence[Measurement]) -> str:
    return "<h3>Settings</h3>" + "".join(map(_detail, measurements))


def _detail(measurement: Measurement) -> str:
    rows = settings(measurement)
    rows += [(figure.label, figure.show(measurement)) for figure in FURTHER if measurement.number(figure.key)]
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    summary = f'{_name(measurement)} <span class="soft">{escape(measurement.device)}</span>'
    return f"<details><summary>{summary}</summary><dl>{entries}</dl></details>"


def _devices_of(measurements: Sequence[Measurement]) -> list[str]:
    return list(dict.fromkeys(each.device for each in measurements))


def _name(measurement: Measurement) -> str:
    tag = "" if measurement.measured else ' <span class="tag">estimated</span>'
    return escape(measurement.name) + tag


def _cell(figure: Figure, measurement: Measurement) -> str:
    if measurement.number(figure.key) is None:
        return f'<td class="none">{figure.show(measurement)}</td>'
    beside = figure.beside(measurement)
    small = f"<small>{escape(beside)}</small>" if beside else ""
    return f"<td>{escape(figure.text(measurement))}{small}</td>"


def _text(text: str) -> str:
    return f'<td class="text">{escape(text)}</td>'


def _grid(charts: Sequence[str]) -> str:
    return f'<div class="grid">{"".join(charts)}</div>'


def _scroll(table: str) -> str:
    return f'<div class="scroll" tabindex="0"><table>{table}</table></div>'
