"""Where the images of a set are once they are decoded: in memory, in a cache on disk, or nowhere, and decoded when
they are drawn. What is drawn is the same, to the last bit.
"""

import numpy as np

from diffdistill.data.cached import no_room, not_writable
from diffdistill.data.looking import say
from diffdistill.data.source import Entries
from diffdistill.data.stored import open_stored
from diffdistill.data.wanted import Wanted
from diffdistill.machine import neighbours, total_memory

PLACES = ("auto", "memory", "disk", "source")
SMALL = 1 << 29  # bytes of decoded images that are decoded anew at every start: seconds
SHARE = 8  # a set in memory takes no more than one part in so many of it
MOST_SHARE = 2  # and of so many, where there is no room on disk


def choose(wanted: Wanted, disk_gb: float | None) -> str:
    """What `auto` is for these images on this machine: `memory`, `disk` or `source`.

    `disk` where a cache is there. `memory` for 0.5 GB decoded, or any array, of at most an eighth of the memory that
    this process may have (of its control group; shared with the processes of its run on this machine). Else `disk`
    where there is room, else `memory` up to half of it, else `source`.
    """
    if wanted.folder is not None and open_stored(wanted.folder) is not None:
        return "disk"
    need, memory = wanted.bytes, total_memory() // neighbours()
    images = wanted.images
    small = memory // SHARE if isinstance(images, np.ndarray) else min(SMALL, memory // SHARE)
    if need <= small:
        return "memory"
    reason = _no_cache(wanted, need, disk_gb)
    if reason is None:
        return "disk"
    can_stream = isinstance(images, Entries | np.ndarray)
    where = "source" if can_stream and need > memory // MOST_SHARE else "memory"
    then = "decoded anew whenever they are drawn" if where == "source" else "decoded at every start"
    say(f"the images of {wanted.data} are {then}, for {reason}")
    return where


def _no_cache(wanted: Wanted, need: int, disk_gb: float | None) -> str | None:
    """Why these images are not kept on disk."""
    if wanted.folder is None:
        return "changes of a set of that kind cannot be seen, so no cache of it is kept"
    place = wanted.folder.parent
    return not_writable(place) or no_room(place, need, disk_gb)
