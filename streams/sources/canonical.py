"""``canonical``: JSON (object, array, NDJSON) or Arrow IPC streams, told apart by each message's first bytes. Pure."""

from collections.abc import Sequence

from streams.sources.canonical_arrow import decode_messages
from streams.sources.canonical_json import ARROW_STREAM, JsonRows
from streams.sources.format import Decoded, FlowRows


class Canonical:
    """The format of flow records of our own, in any of its spellings."""

    name = "canonical"

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """Decode messages; see `SourceFormat`."""
        runs: list[FlowRows] = []
        decoded = Decoded(runs, [])
        at = 0
        while at < len(values):
            if values[at].startswith(ARROW_STREAM):
                stop = next((i for i in range(at, len(values)) if not values[i].startswith(ARROW_STREAM)), len(values))
                arrow = decode_messages([(i, values[i]) for i in range(at, stop)])
                runs.extend(arrow.runs)
                decoded.rejected.extend(arrow.rejected)
            else:
                collector = JsonRows(values)
                stop = collector.collect(at, arrow_follows=True)
                runs.extend(collector.rows(at, stop))
                decoded.rejected.extend(collector.rejected)
            at = stop
        return decoded
