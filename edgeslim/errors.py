"""Every expected fault of edgeslim, as one tree.

    EdgeslimError
    ├── RecipeError          a recipe or an option that cannot be meant
    ├── CheckpointError      a model folder that cannot be read or is not supported
    ├── CalibrationError     calibration text that is missing, unreadable or too short
    ├── PruneError           numbers that cannot be solved
    ├── OutputError          an output folder that exists, is half-written or belongs to other arguments
    ├── ExportError          a model that cannot be exported
    │   └── ParityError      an exported graph that disagrees with the model it came from
    ├── BundleError          a bundle that is incomplete, changed or of another version
    ├── RuntimeUnavailable   an inference engine that is not installed
    ├── EvaluationError      text that cannot be scored
    └── DeviceError          a device that is unknown or does not answer

A message says where, what was found, what was expected and, where there is one, the nearest valid choice.
"""

import difflib
from collections.abc import Iterable


class EdgeslimError(Exception):
    """A fault that the user can mend; the command line prints it as one line."""


class RecipeError(EdgeslimError):
    """A recipe or an option that cannot be meant."""


class CheckpointError(EdgeslimError):
    """A model folder that cannot be read or is not supported."""


class CalibrationError(EdgeslimError):
    """Calibration text that is missing, unreadable or too short."""


class PruneError(EdgeslimError):
    """Numbers that cannot be solved."""


class OutputError(EdgeslimError):
    """An output folder that exists, is half-written or belongs to other arguments."""


class ExportError(EdgeslimError):
    """A model that cannot be exported."""


class ParityError(ExportError):
    """An exported graph that disagrees with the model it came from."""


class BundleError(EdgeslimError):
    """A bundle that is incomplete, changed or of another version."""


class RuntimeUnavailable(EdgeslimError):
    """An inference engine that is not installed."""


class EvaluationError(EdgeslimError):
    """Text that cannot be scored."""


class DeviceError(EdgeslimError):
    """A device that is unknown or does not answer."""


def first_line(fault: BaseException) -> str:
    """Return the first line of what `fault` says, or its name where it says nothing."""
    lines = str(fault).strip().splitlines()
    return lines[0] if lines else type(fault).__name__


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ``; did you mean 'X'?`` for the nearest of `choices`, or the list of choices where none is near."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of: {', '.join(known)}"
