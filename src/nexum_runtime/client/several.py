"""The way to one of several servers: to the next one when it has gone."""

from collections.abc import Sequence
from pathlib import Path

from nexum_runtime import wire
from nexum_runtime.client.changing import Changing, listens
from nexum_runtime.client.remote import Remote
from nexum_runtime.client.way import Way
from nexum_runtime.errors import DatabaseUnavailable, ServerUnavailable


class Several(Changing):
    """Servers on one database, at these addresses. `token` and `tls_ca` are as `Connection` has them."""

    def __init__(self, addresses: Sequence[str], token: str | None = None, tls_ca: Path | None = None) -> None:
        super().__init__()
        self._addresses = list(addresses)
        self._places = [wire.split_address(address) for address in addresses]
        self._token, self._tls_ca = token, tls_ca
        self._next = 0  # of the addresses, to be tried first

    @property
    def where(self) -> str:
        return self._way.where if self._way else ",".join(self._addresses)

    def _may_help(self, error: ServerUnavailable) -> bool:
        return not isinstance(error, DatabaseUnavailable)  # which they share

    async def _find(self) -> Way:
        count = len(self._addresses)
        for at in [(self._next + i) % count for i in range(count)]:
            if await listens(*self._places[at]):
                self._next = (at + 1) % count  # when this one has gone
                return Remote(self._addresses[at], self._token, self._tls_ca)
        raise ServerUnavailable(
            f"No Nexum server answers at {' or '.join(self._addresses)}. Start one with `nexum dev`, or set "
            "NEXUM_ADDRESS to where one runs."
        )
