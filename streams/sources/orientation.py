"""Who is the client: what a record says, else what its ports tell. Pure."""

import numpy as np
import numpy.typing as npt

from schemas.flow import PROTOCOL_NUMBERS
from schemas.tenant_log import IntColumn

Mask = npt.NDArray[np.bool_]

EPHEMERAL_FROM = 32_768
"""Linux's first ephemeral port. IANA's range starts at 49,152; Kubernetes' node ports end at 32,767."""
_RESERVED_BELOW = 1_024
_NO_PORT = -1

_SERVICE_PORTS = (
    # registered ports that servers really use: a lower number does not make the other side the server
    *(1433, 1521, 1883, 2049, 2181, 2375, 2376, 2379, 2380, 3000, 3128, 3260, 3306, 3389, 4222, 4317, 4318, 5000, 5044),
    *(5222, 5353, 5432, 5601, 5671, 5672, 5984, 5985, 5986, 6379, 6443, 7000, 7001, 7077, 7474, 7687, 8000, 8080, 8081),
    *(8086, 8088, 8125, 8200, 8300, 8301, 8443, 8500, 8529, 8883, 8888, 9000, 9042, 9090, 9091, 9092, 9093, 9100, 9160),
    *(
        9200,
        9300,
        9411,
        9443,
        10250,
        10255,
        10256,
        11211,
        11434,
        15010,
        15012,
        15017,
        26257,
        26379,
        27017,
        27018,
        29092,
    ),
)


def _classes() -> npt.NDArray[np.int8]:
    """Return how much each port looks like a server's, least first; the last entry is "no port"."""
    classes = np.full(65_537, 2, dtype=np.int8)
    classes[:_RESERVED_BELOW] = 0
    classes[list(_SERVICE_PORTS)] = 1
    classes[EPHEMERAL_FROM:] = 3
    classes[0] = classes[_NO_PORT] = 4
    return classes


_CLASS = _classes()

CLIENT_IS_SRC, CLIENT_IS_DST, NOT_SAID = 1, -1, 0
"""What a record says of its own direction."""


def client_is_dst(src_port: IntColumn, dst_port: IntColumn, said: IntColumn | None = None) -> Mask:
    """Say which records run from server to client.

    A record that says so itself is believed (``said``). Else ports decide: reserved ones (below 1024) belong to a
    server rather than well-known registered ones, those rather than other registered ones, those rather than
    ephemeral ones (from 32,768); of two alike the lower one does. Equal ports: as recorded.

    Shapes:
        src_port, dst_port, said, returned: ``(n,)``; ports 0 to 65,535, -1 unknown; ``said`` one of the three above.
    """
    src_class, dst_class = _CLASS[src_port], _CLASS[dst_port]
    swapped: Mask = (src_class < dst_class) | ((src_class == dst_class) & (src_port < dst_port))
    if said is not None:
        swapped = np.where(said == NOT_SAID, swapped, said == CLIENT_IS_DST)
    return swapped


def said_by_sensor(src_port: IntColumn, dst_port: IntColumn, handshake_seen: Mask, has_handshake: Mask) -> IntColumn:
    """Return what a sensor's record says that calls whoever it saw first the initiator.

    That is a fact where a handshake was seen (TCP). Without one the first packet may well be an answer to something
    the sensor missed: then it is believed only if the port it went to does not look like a client's.

    Shapes:
        all ``(n,)``; ``has_handshake``: of protocols that have one.
    """
    believed = np.where(has_handshake, handshake_seen, (dst_port < EPHEMERAL_FROM) | (dst_port == src_port))
    return np.where(believed, CLIENT_IS_SRC, NOT_SAID)


def server_port(src_port: IntColumn, dst_port: IntColumn, swapped: Mask, said: IntColumn | None = None) -> IntColumn:
    """Return the port of the server, -1 where there is none to tell.

    A port is a server's only if the record says so, or if it does not look ephemeral: two ephemeral ports that were
    told apart by their numbers alone give no port, so that no client's port can ever become an edge's.
    """
    port: IntColumn = np.where(swapped, src_port, dst_port)
    doubtful = (port == 0) | (port >= EPHEMERAL_FROM)
    if doubtful.any():
        guessed = doubtful if said is None else doubtful & ((said == NOT_SAID) | (port == 0))
        port = np.where(guessed, _NO_PORT, port)
    return port


_ICMP, _ICMP6 = PROTOCOL_NUMBERS["icmp"], PROTOCOL_NUMBERS["icmp6"]
_REQUEST, _REPLY, _ERROR = 0, 1, 2


def _kinds_of_messages() -> npt.NDArray[np.int8]:
    """Return what each message type is, ``(2, 65537)``: ICMP, ICMPv6; as IANA's registries have them."""
    kinds = np.full((2, 65_537), _REQUEST, dtype=np.int8)  # a source may put anything where ports are
    kinds[0, [0, 14, 16, 18]] = kinds[1, [129, 140]] = _REPLY
    kinds[0, [3, 4, 5, 11, 12]] = kinds[1, [1, 2, 3, 4]] = _ERROR
    return kinds


_KIND = _kinds_of_messages()


def is_icmp(protocol: IntColumn) -> Mask:
    """Say which records are of ICMP: what a source keeps in their port fields is type and code, never a port."""
    mask: Mask = (protocol == _ICMP) | (protocol == _ICMP6)
    return mask


def icmp_answers(protocol: IntColumn, message_type: IntColumn) -> tuple[Mask, Mask]:
    """Say which ICMP messages run from server to client: replies, and errors that speak of another connection.

    Whoever sends an error was called: its receiver is the client.

    Shapes:
        all ``(n,)``; types 0 to 65,535, -1 is unknown.
    """
    kind = np.where(is_icmp(protocol), _KIND[(protocol == _ICMP6).astype(np.int64), message_type], _REQUEST)
    return kind == _REPLY, kind == _ERROR
