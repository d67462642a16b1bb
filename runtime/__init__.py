"""Device side: run, measure and describe a bundle with numpy and ONNX Runtime, never with torch.

The names below are imported on first use, so that importing this package loads no inference engine.
The function `generate` shares its module's name: `from edgeslim.runtime.generate import generate`.
"""

from edgeslim.lazy import lazy_names

_HOME = {
    "GREEDY": "generate",
    "GenaiSession": "session",
    "OrtSession": "session",
    "Profile": "profiler",
    "RunConfig": "config",
    "Sampling": "generate",
    "Session": "session",
    "TextCodec": "text",
    "open_session": "session",
    "profile_bundle": "profiler",
    "read_config": "config",
}

__all__ = sorted(_HOME)
__getattr__, __dir__ = lazy_names(__name__, _HOME)
