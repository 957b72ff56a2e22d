from nexum_runtime.client.client import Client, Outcome, Waiting

__all__ = ["Client", "Outcome", "Waiting"]
