"""Where a bundle's time goes, operator by operator, and which provider ran each: from onnxruntime's own profile.

onnxruntime writes a JSON array of events. One of category ``Session`` named ``model_run`` spans each call; those of
category ``Node`` whose names end in ``_kernel_time`` are the operators within, with their kind (``op_name``) and their
``provider``. An engine that fuses a graph (TensorRT) shows one node for all that it took.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeslim.errors import BundleError
from edgeslim.runtime.config import read_config
from edgeslim.runtime.profiler import Profile
from edgeslim.runtime.session import OrtSession, Tokens

PREFILL, DECODE = "prefill", "decode"
_PROMPTS, _WARM_UP = 3, 2
_END = "_kernel_time"


@dataclass(frozen=True, kw_only=True)
class NodeEvent:
    """One operator in one call: `call` counts calls from 0; `weight_bytes` is what its constants take."""

    name: str
    op: str
    provider: str
    microseconds: float
    weight_bytes: int
    call: int


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """All nodes of one kind on one provider, in a prompt (prefill) or a decoded token (decode): how many `calls` and
    `ms` one takes, and the bytes of constants that they read."""

    op: str
    phase: str
    calls: int
    ms: float
    weight_bytes: int
    provider: str


@dataclass(frozen=True, kw_only=True)
class OperatorProfile:
    """A profile with the time of each kind of operator, measured apart from it, on plain onnxruntime."""

    profile: Profile
    operators: tuple[OperatorTime, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the profile as a JSON object with the member `operators`, the dearest first in each phase."""
        return {**self.profile.to_json(), "operators": [asdict(each) for each in self.operators]}


def operator_times(
    bundle: Path,
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[OperatorTime, ...]:
    """Return the time of each kind of operator in `bundle` on plain onnxruntime, with random tokens.

    Raises: BundleError where it does not load; RuntimeUnavailable without onnxruntime.
    """
    with tempfile.TemporaryDirectory(prefix="edgeslim-operators-") as folder:
        session = ProfiledSession(bundle, threads=threads, prefix=Path(folder) / "profile")
        vocab_size = read_config(bundle).vocab_size
        if vocab_size is None:
            raise BundleError(f"{bundle}: neither genai_config.json nor config.json says vocab_size")
        prompt = np.random.default_rng(0).integers(0, vocab_size, (1, prompt_tokens), dtype=np.int64)
        phases = _run(session, prompt, new_tokens, on_progress)
        events = parse_profile(session.end_profiling().read_text(encoding="utf-8"))
    return summarise(events, phases)


def nodes_by_provider(bundle: Path, *, threads: int | None = None) -> dict[str, int]:
    """Return how many nodes each provider runs for a short prompt, from onnxruntime's own profile of it.

    Raises: BundleError, RuntimeUnavailable.
    """
    with tempfile.TemporaryDirectory(prefix="edgeslim-operators-") as folder:
        session = ProfiledSession(bundle, threads=threads, prefix=Path(folder) / "profile")
        session.feed(np.zeros((1, 4), np.int64))
        return placement(parse_profile(session.end_profiling().read_text(encoding="utf-8")))


def _run(
    session: OrtSession, prompt: Tokens, new_tokens: int, on_progress: Callable[[int, int], None]
) -> list[str | None]:
    """Run prompts, then tokens; return the phase of each call, None for those that do not count."""
    phases: list[str | None] = []
    total = _PROMPTS + 1 + new_tokens + _WARM_UP
    token = 0
    for number in range(_PROMPTS + 1):
        session.reset()
        token = int(session.feed(prompt).argmax())
        phases.append(PREFILL if number else None)
        on_progress(len(phases), total)
    for number in range(_WARM_UP + new_tokens):
        token = int(session.feed(np.array([[token]], np.int64)).argmax())
        phases.append(DECODE if number >= _WARM_UP else None)
        on_progress(len(phases), total)
    return phases


class ProfiledSession(OrtSession):
    """A session whose engine records the time of each node."""

    def __init__(self, bundle: Path, *, threads: int | None = None, prefix: Path) -> None:
        self._prefix = prefix
        super().__init__(bundle, threads=threads)

    def _options(self, bundle: Path, threads: int | None) -> Any:
        options = super()._options(bundle, threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(self._prefix)
        return options

    def end_profiling(self) -> Path:
        """Stop recording and return the file of events."""
        return Path(self._session.end_profiling())


def parse_profile(text: str) -> list[NodeEvent]:
    """Return the nodes' events of a profile that onnxruntime wrote, with the call that each belongs to.

    Events before the first call (the engine's start) have no call and are left out.
    Raises: BundleError where the text is no such profile.
    """
    try:
        events = [event for event in json.loads(text) if isinstance(event, dict)]
    except ValueError as fault:
        raise BundleError(f"onnxruntime's profile is not JSON: {fault}") from None
    calls = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "model_run")
    starts = [begin for begin, _ in calls]
    found = []
    for event in events:
        name, args = str(event.get("name", "")), event.get("args", {})
        if event.get("cat") != "Node" or not name.endswith(_END) or "op_name" not in args:
            continue
        call = int(np.searchsorted(starts, event["ts"], side="right")) - 1
        if call < 0:
            continue
        found.append(
            NodeEvent(
                name=name.removesuffix(_END),
                op=str(args["op_name"]),
                provider=str(args.get("provider", "")),
                microseconds=float(event["dur"]),
                weight_bytes=int(args.get("parameter_size") or 0),
                call=call,
            )
        )
    return found


def summarise(events: Sequence[NodeEvent], phases: Sequence[str | None]) -> tuple[OperatorTime, ...]:
    """Return the mean times of `events` by phase, kind and provider, the dearest first; `phases` names each call's."""
    counts = {phase: phases.count(phase) for phase in (PREFILL, DECODE)}
    spent: dict[tuple[str, str, str], list[NodeEvent]] = {}
    for event in events:
        phase = phases[event.call] if event.call < len(phases) else None
        if phase is not None:
            spent.setdefault((phase, event.op, event.provider), []).append(event)
    found = [
        OperatorTime(
            op=op,
            phase=phase,
            calls=round(len(group) / counts[phase]),
            ms=round(sum(e.microseconds for e in group) / counts[phase] / 1e3, 5),
            weight_bytes=sum({e.name: e.weight_bytes for e in group}.values()),
            provider=provider,
        )
        for (phase, op, provider), group in spent.items()
    ]
    return tuple(sorted(found, key=lambda each: (each.phase != PREFILL, -each.ms)))


def placement(events: Sequence[NodeEvent]) -> dict[str, int]:
    """Return how many nodes each provider ran in the last call."""
    last = max((event.call for event in events), default=0)
    nodes: dict[str, set[str]] = {}
    for event in events:
        if event.call == last:
            nodes.setdefault(event.provider, set()).add(event.name)
    return {provider: len(names) for provider, names in sorted(nodes.items())}
