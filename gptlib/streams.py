"""Named random streams: every use of randomness has its own seed, so a change in one place shifts no other."""

import hashlib


def stream_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream `names` of run `seed`, e.g. stream_seed(42, "init", "blocks.0.mlp.up.weight").

    The same on every platform and Python version; streams with different names are independent.
    """
    digest = hashlib.sha256("\0".join([str(seed), *map(str, names)]).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
