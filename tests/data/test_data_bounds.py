"""What a file announces is weighed before it is believed: by its own size, and by the machine's memory."""

import pytest

from diffdistill.data import bounds
from diffdistill.data.bounds import check_size
from diffdistill.errors import DataError


@pytest.mark.parametrize(
    ("unpacked", "packed", "fits"),
    [
        (130_000_000, 1_000, True),  # one colour packs well, and 130 MB do no harm
        (900_000_000, 300_000_000, True),
        (10_000_000_000, 80_000_000, True),  # 125 times: a set of drawings
        (10_000_000_000, 40_000_000, False),  # 250 times
        (10_000_000_000, 10_000_000, False),  # a bomb packs a thousandfold
        (140_000_000, 1_000, False),
    ],
)
def test_pictures_do_not_pack_a_hundredfold_and_more(monkeypatch, unpacked, packed, fits):
    monkeypatch.setattr(bounds, "total_memory", lambda: 10**12)
    if fits:
        check_size(unpacked, packed, "a")
        return
    with pytest.raises(DataError, match=r"a announces .* no pictures pack so well"):
        check_size(unpacked, packed, "a")


def test_a_set_larger_than_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(bounds, "total_memory", lambda: 4 * 10**9)
    check_size(4 * 10**9, 10**9, "a")
    with pytest.raises(DataError, match=r"takes 4\.1 GB of memory, this machine has 4\.0 GB: give a smaller set"):
        check_size(4_100_000_000, 10**9, "a")
