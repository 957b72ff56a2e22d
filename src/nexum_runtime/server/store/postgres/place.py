"""Where a database is: its URL, as psycopg takes it and as people may see it."""

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from nexum_runtime.errors import InvalidRequest

SCHEMES = ("postgresql", "postgres")
SCHEMA_DEFAULT = "nexum"
NAME_BYTES = 63  # of a schema; PostgreSQL cuts longer ones


@dataclass(frozen=True)
class Place:
    conninfo: str = field(repr=False)  # may hold a password
    shown: str  # holds none
    schema: str

    def __str__(self) -> str:
        return self.shown


def place_of(url: str) -> Place:
    """`postgresql://[user[:password]@]host[:port]/database`, with libpq's parameters and `schema`.

    Raises InvalidRequest, which shows no password.
    """
    try:
        parts = urlsplit(url)
        query = parts.query.replace("+", "%2B")  # to libpq a "+" is no space
        parameters = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        host = parts.netloc.rpartition("@")[2]
        user = parts.username or ""
    except ValueError as error:
        raise InvalidRequest(f"The database's URL cannot be read: {error}.") from None
    if parts.scheme not in SCHEMES:
        raise InvalidRequest("The database's URL must begin with postgresql://.")
    schema = next((value for name, value in parameters if name == "schema"), SCHEMA_DEFAULT)
    if not schema or len(schema.encode()) > NAME_BYTES or not schema.isprintable():
        raise InvalidRequest(f"The schema {schema[:80]!r} in the database's URL must have 1 to {NAME_BYTES} bytes.")
    others = [(name, value) for name, value in parameters if name != "schema"]
    shown = [(name, value) for name, value in parameters if "password" not in name.lower()]
    place = f"{user}@{host}" if user else host
    return Place(
        conninfo=_url(parts.netloc, parts.path, others),
        shown=_url(place, parts.path, shown),
        schema=schema,
    )


def _url(place: str, path: str, parameters: list[tuple[str, str]]) -> str:
    return f"postgresql://{place}{path}{'?' if parameters else ''}{urlencode(parameters, safe='/', quote_via=quote)}"
