"""Who executes its own tasks, as a database knows it that several servers have: with the server at which it is."""

from nexum_runtime import wire

AT = "@server-"


def at(server: str, worker_id: str) -> str:
    """A process that executes its own tasks, at this server. Other workers are only themselves, at "" everybody is."""
    return f"{worker_id}{AT}{server}" if server and worker_id.startswith(wire.LOCAL_WORKER) else worker_id


def owner_of(worker_id: str) -> str:
    """As it calls itself."""
    return worker_id.partition(AT)[0]


def server_of(worker_id: str) -> str:
    """Where it is, or ""."""
    return worker_id.partition(AT)[2]
