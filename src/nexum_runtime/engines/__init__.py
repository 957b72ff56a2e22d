"""Which engine a process uses, and the one in the process itself."""

from nexum_runtime.engines.nearest import Use, near

__all__ = ["Use", "near"]
