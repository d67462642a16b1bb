"""Several bundles on several devices: each pair once, and what becomes of a pair that fails."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeslim.errors import DeviceError
from edgeslim.progress import silent
from edgeslim.reporting.collect import profile_all

BUNDLES = (Path("a"), Path("b"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The pairs that were profiled; the device `broken` fails."""
    made: list[tuple[str, str]] = []

    def profile(bundle: Path, *, progress: object, device: str = "", **options: Any) -> SimpleNamespace:
        if device == "broken":
            raise DeviceError("broken: does not answer")
        made.append((str(bundle), device))
        return SimpleNamespace(to_json=lambda: {"device": device, **options})

    def score(bundle: Path, **options: Any) -> SimpleNamespace:
        made.append((str(bundle), "scored"))
        return SimpleNamespace(perplexity=7.5)

    monkeypatch.setattr("edgeslim.api.profile", profile)
    monkeypatch.setattr("edgeslim.api.eval", score)
    return made


def _profile(devices: tuple[str, ...], text: str | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    failures: list[str] = []
    options = {"threads": 2}
    common: dict[str, Any] = {"seqlen": None, "progress": silent, "on_failure": failures.append}
    return profile_all(BUNDLES, devices, options, text=text, **common), failures


def test_without_a_device_every_bundle_is_profiled_here(calls: list[tuple[str, str]]) -> None:
    profiles, _ = _profile(())
    assert calls == [("a", ""), ("b", "")]
    assert [(p["bundle"], p["threads"]) for p in profiles] == [("a", 2), ("b", 2)]


def test_a_text_is_scored_once_a_bundle_however_many_devices(calls: list[tuple[str, str]]) -> None:
    profiles, _ = _profile(("local", "ssh://pi"), text="text.txt")
    assert calls.count(("a", "scored")) == calls.count(("b", "scored")) == 1
    assert [profile["perplexity"] for profile in profiles] == [7.5] * 4


def test_a_device_that_fails_is_said_and_the_others_are_kept(calls: list[tuple[str, str]]) -> None:
    profiles, failures = _profile(("broken", "local"))
    assert [profile["bundle"] for profile in profiles] == ["a", "b"]
    assert failures == [f"{bundle} on broken: broken: does not answer" for bundle in "ab"]


def test_where_all_fail_the_fault_is_raised(calls: list[tuple[str, str]]) -> None:
    with pytest.raises(DeviceError, match="does not answer"):
        _profile(("broken",))
