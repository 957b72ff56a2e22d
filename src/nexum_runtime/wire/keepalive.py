"""How both ends of a connection notice that the way between them carries nothing any more.

A firewall that forgets a flow, a network that changes or a frozen proxy closes nothing: the connection looks open, and
whoever waits on it waits for ever. So each end pings the other when it has heard nothing for a while, and closes the
connection when the ping stays without an answer. gRPC answers pings by itself, so a peer without these settings, such
as a stock client, needs nothing.
"""

QUIET_MS = 10_000  # without a byte from the other end, until a ping is sent
ANSWER_MS = 15_000  # without a byte after a ping, until the connection is closed: a pause of 10 s breaks nothing
PING_INTERVAL_MIN_MS = 100  # between two pings of a client; one that sends them faster is cut off by the server


def both_ends() -> list[tuple[str, int]]:
    """The options of gRPC for a client's channel and for a server."""
    return [
        ("grpc.keepalive_time_ms", QUIET_MS),
        ("grpc.keepalive_timeout_ms", ANSWER_MS),  # for TCP_USER_TIMEOUT, too: what was sent and not acknowledged
        ("grpc.http2.ping_timeout_ms", ANSWER_MS),  # of the pings by which gRPC measures the bandwidth
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),  # 0: as many as it takes
    ]


def server() -> list[tuple[str, int]]:
    """… and for a server, which by default hangs up on a client that pings more often than every five minutes."""
    return [*both_ends(), ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS)]
