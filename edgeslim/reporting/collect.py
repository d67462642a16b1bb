"""Several bundles on several devices, measured one after the other."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeslim import api
from edgeslim.errors import EdgeslimError
from edgeslim.progress import Progress

Object = dict[str, Any]


def profile_all(
    bundles: Sequence[Path],
    devices: Sequence[str],
    options: Mapping[str, Any],
    *,
    text: str | None,
    seqlen: int | None,
    progress: Progress,
    on_failure: Callable[[str], None],
) -> list[Object]:
    """Return the profile of each of `bundles` on each of `devices` (none: here), with `bundle` and `perplexity` added.

    `text` is scored on this machine, once a bundle; None scores nothing. Where there are several pairs, one that
    fails is given to `on_failure` in one line and left out; a failure of all is raised.

    Raises: RecipeError, BundleError, RuntimeUnavailable, DeviceError, EvaluationError.
    """
    pairs = [(bundle, device) for bundle in bundles for device in devices or ("",)]
    scores: dict[Path, Object] = {}
    profiles: list[Object] = []
    last: EdgeslimError | None = None
    for number, (bundle, device) in enumerate(pairs, start=1):
        on_device = {"device": device} if device else {}
        place = f"{number} of {len(pairs)}: " if len(pairs) > 1 else ""
        try:
            if text is not None and bundle not in scores:
                scores[bundle] = {"perplexity": _perplexity(bundle, text, seqlen, progress)}
            measured = api.profile(bundle, progress=_prefixed(progress, place), **on_device, **options)
        except EdgeslimError as fault:
            if len(pairs) == 1:
                raise
            on_failure(f"{bundle} on {device or 'this machine'}: {fault}")
            last = fault
        else:
            profiles.append({**measured.to_json(), "bundle": str(bundle), **scores.get(bundle, {})})
    if last is not None and not profiles:
        raise last
    return profiles


def _perplexity(bundle: Path, text: str, seqlen: int | None, progress: Progress) -> float:
    options: dict[str, Any] = {} if seqlen is None else {"seqlen": seqlen}
    result: Any = api.eval(bundle, text=text, progress=progress, **options)
    return float(result.perplexity)


def _prefixed(progress: Progress, place: str) -> Progress:
    return lambda done, total, label: progress(done, total, place + label)
