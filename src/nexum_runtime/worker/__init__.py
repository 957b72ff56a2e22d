from nexum_runtime.worker.worker import DRAIN_SECONDS, Worker

__all__ = ["DRAIN_SECONDS", "Worker"]
