"""The report as Markdown: the tables of the HTML, without its plots."""

from collections.abc import Sequence

from edgeslim.reporting.devices import compare_devices
from edgeslim.reporting.figures import FURTHER, TABLE, settings, warnings
from edgeslim.reporting.measurements import Measurement
from edgeslim.reporting.operators import Operators, operators
from edgeslim.reporting.report import Report


def render(report: Report) -> str:
    """Return `report` as Markdown; estimated figures stand in a section of their own."""
    parts = [f"# Profiles\n\nedgeslim {report.version}, {report.created}"]
    if report.measured:
        parts.append(f"## Measured\n\n{_figures(report.measured)}")
        parts += [_comparison(report.measured)] if compare_devices(report.measured) else []
        parts += [_operators(each) for each in map(operators, report.measured) if each]
    if report.estimated:
        parts.append(f"## Estimated, not measured\n\n{_figures(report.estimated)}")
    parts.append("## Settings\n\n" + "\n".join(_details(each) for each in report.measurements))
    return "\n\n".join(parts) + "\n"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int) -> str:
    """Return a Markdown table; all columns but the first `text_columns` are flush right."""
    rule = ["---" if number < text_columns else "---:" for number in range(len(headings))]
    return "\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in (headings, rule, *rows))


def _figures(measurements: Sequence[Measurement]) -> str:
    headings = ("bundle", "device", "tokens", *(figure.label for figure in TABLE))
    rows = [(m.name, m.device, m.conditions, *(figure.show(m) for figure in TABLE)) for m in measurements]
    return table(headings, rows, text_columns=3)


def _comparison(measurements: Sequence[Measurement]) -> str:
    comparison = compare_devices(measurements)
    assert comparison is not None
    tables = [
        f"{figure.heading}\n\n" + table(("bundle", *comparison.devices), rows, text_columns=1)
        for figure, rows in comparison.tables()
    ]
    return "\n\n".join(("## Devices", *tables))


def _operators(found: Operators) -> str:
    rows = [(each.op, each.phase, str(each.calls), f"{each.ms:.3f}", f"{each.share:.1%}") for each in found.entries]
    heading = f"## Operators of {found.measurement.name} on {found.measurement.device}"
    return f"{heading}\n\n" + table(("operator", "phase", "calls", "ms", "share"), rows, text_columns=2)


def _details(measurement: Measurement) -> str:
    shown = [f"{name}: {value}" for name, value in settings(measurement)]
    shown += [f"{figure.label}: {figure.show(measurement)}" for figure in FURTHER if measurement.number(figure.key)]
    lines = [f"- **{_escaped(measurement.name)}** on {_escaped(measurement.device)}: {_escaped('; '.join(shown))}"]
    return "\n".join([*lines, *(f"  - warning: {_escaped(each)}" for each in warnings(measurement))])


def _escaped(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())
