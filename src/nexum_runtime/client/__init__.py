from nexum_runtime.client.client import Client
from nexum_runtime.client.outcome import Outcome, Waiting

__all__ = ["Client", "Outcome", "Waiting"]
