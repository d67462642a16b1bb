"""One report in three forms; the suffix of the file to write says which."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import edgeslim
from edgeslim.errors import RecipeError, did_you_mean
from edgeslim.output import refuse_existing_file, write_file
from edgeslim.reporting.measurements import Measurement, Object, as_measurements, read_objects


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is reported: every measurement, by which `version` of edgeslim and when (UTC, to the minute)."""

    measurements: tuple[Measurement, ...]
    created: str
    version: str

    @property
    def measured(self) -> tuple[Measurement, ...]:
        """The measurements proper."""
        return tuple(each for each in self.measurements if each.measured)

    @property
    def estimated(self) -> tuple[Measurement, ...]:
        """What was estimated, which never stands beside what was measured."""
        return tuple(each for each in self.measurements if not each.measured)

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON object; `edgeslim report` reads its file again."""
        profiles = [dict(each.values) for each in self.measurements]
        return {"edgeslim": self.version, "created": self.created, "profiles": profiles}


def write_report(profiles: Sequence[str | Path | Object], output: Path, *, force: bool = False) -> Report:
    """Write the report on `profiles`, objects or files of them, to `output`; return it.

    Raises: RecipeError, OutputError.
    """
    render = check_output(output, force=force)
    report = make_report(profiles)
    write_file(output, render(report), force=force)
    return report


def make_report(profiles: Sequence[str | Path | Object]) -> Report:
    """Return the report on `profiles`, objects or files of them.

    Raises: RecipeError.
    """
    objects: list[tuple[str, Object]] = []
    for number, each in enumerate(profiles, start=1):
        if isinstance(each, Mapping):
            objects.append((f"profile {number}", each))
        else:
            objects += [(str(each), value) for value in read_objects(Path(each))]
    measurements = as_measurements(objects)
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Report(measurements=tuple(measurements), created=created, version=edgeslim.__version__)


def check_output(output: Path, *, force: bool) -> Callable[[Report], str]:
    """Return what renders a report for `output`, by its suffix.

    Raises: RecipeError for another suffix; OutputError where `output` is not to be written.
    """
    if output.suffix not in _FORMS:
        raise RecipeError(f"{output}: unknown form {output.suffix!r}{did_you_mean(output.suffix, _FORMS)}")
    refuse_existing_file(output, force=force)
    return _FORMS[output.suffix]


def _html(report: Report) -> str:
    from edgeslim.reporting.html import render

    return render(report)


def _markdown(report: Report) -> str:
    from edgeslim.reporting.markdown import render

    return render(report)


def _json(report: Report) -> str:
    return json.dumps(report.to_json(), indent=1) + "\n"


_FORMS: dict[str, Callable[[Report], str]] = {".html": _html, ".md": _markdown, ".json": _json}
