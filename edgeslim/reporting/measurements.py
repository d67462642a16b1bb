"""Profiles read back from JSON: those that `profile --json`, `compress`, `frontier`'s profiles and reports write."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslim.errors import RecipeError

Object = Mapping[str, Any]

_NEEDED = ("device", "prompt_tokens", "new_tokens")
_KNOWN_BY = "decode_tok_s_p50"  # what every profile has, measured or estimated, and nothing else of ours


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One bundle on one device: its name, and the profile's JSON object with `perplexity` where that is known."""

    name: str
    values: Object

    @property
    def measured(self) -> bool:
        """Whether the figures were measured; they are estimated otherwise."""
        return bool(self.values.get("measured", True))

    @property
    def device(self) -> str:
        """The device's name as given, else what the device says of itself."""
        return str(self.values.get("device_name") or self.values["device"])

    @property
    def conditions(self) -> str:
        """The tokens given and decoded, without which speeds do not compare."""
        return f"{self.values['prompt_tokens']} + {self.values['new_tokens']} tokens"

    def number(self, key: str) -> float | None:
        """Return the finite number under `key`; None where there is none."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value)


def as_measurements(objects: Iterable[tuple[str, Object]]) -> list[Measurement]:
    """Return the measurements of `objects`, each after the name of where it stands; perplexities join their bundles.

    Raises: RecipeError where an object is no profile and no perplexity, or where there is no profile at all.
    """
    profiles: list[Object] = []
    perplexities: dict[str, Any] = {}
    for where, value in objects:
        if _KNOWN_BY in value:
            profiles.append(_checked(where, {"bundle": Path(where).stem, **value}))
        elif "perplexity" in value and "model" in value:
            perplexities[_place(value["model"])] = value["perplexity"]
        else:
            raise RecipeError(f"{where}: neither a profile nor a perplexity; expected what `profile --json` prints")
    if not profiles:
        raise RecipeError("there is no profile to report; give at least one file that `profile --json` wrote")
    names = _short_names([str(profile["bundle"]) for profile in profiles])
    return [
        Measurement(name=names[str(profile["bundle"])], values={**_joined(profile, perplexities), **profile})
        for profile in profiles
    ]


def read_objects(file: Path) -> list[Object]:
    """Return the profiles and perplexities in the JSON `file`: one, an array, a report, or what `compress` wrote.

    Raises: RecipeError where it is missing or not JSON, or holds no objects.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{file}: no such file; expected what `profile --json` prints") from None
    except (OSError, ValueError) as fault:
        raise RecipeError(f"{file}: cannot be read as JSON: {fault}") from None
    if isinstance(content, dict) and isinstance(content.get("profiles"), list):
        content = content["profiles"]
    elif isinstance(content, dict) and isinstance(content.get("models"), dict):
        content = [
            {"bundle": name, **(model.get("eval") or {}), **model["profile"]}
            for name, model in content["models"].items()
            if isinstance(model, dict) and isinstance(model.get("profile"), dict)
        ]
    values = content if isinstance(content, list) else [content]
    if not values or not all(isinstance(value, dict) for value in values):
        raise RecipeError(f"{file}: holds no profile; expected what `profile --json` prints")
    return values


def _joined(profile: Object, perplexities: Mapping[str, Any]) -> dict[str, Any]:
    place = _place(profile["bundle"])
    return {"perplexity": perplexities[place]} if place in perplexities else {}


def _checked(where: str, profile: Object) -> Object:
    missing = [key for key in _NEEDED if key not in profile]
    if missing:
        raise RecipeError(f"{where}: the profile has no {', '.join(missing)}; measure it again")
    return profile


def _place(bundle: Any) -> str:
    return str(Path(str(bundle)).resolve())


def _short_names(bundles: Sequence[str]) -> dict[str, str]:
    """Return for each path of a bundle the fewest of its last parts that tell it from the others."""
    paths = {bundle: Path(bundle).parts or (bundle,) for bundle in bundles}
    longest = max(len(parts) for parts in paths.values())
    for count in range(1, longest + 1):
        names = {bundle: "/".join(parts[-count:]).replace("//", "/") for bundle, parts in paths.items()}
        if len(set(names.values())) == len(paths):
            return names
    return {bundle: bundle for bundle in paths}
