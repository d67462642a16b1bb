"""What a model is worth after compression. The names below are imported on first use."""

from edgeslim.lazy import lazy_names

_HOME = {
    "PerplexityResult": "perplexity",
    "bundle_perplexity": "bundle",
    "model_perplexity": "checkpoint",
}

__all__ = sorted(_HOME)
__getattr__, __dir__ = lazy_names(__name__, _HOME)
