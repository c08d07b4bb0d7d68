"""One line of the table of `diffdistill verify`."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Relation = Literal["equal", "differs", "increasing"]


@dataclass(frozen=True)
class Check:
    """`got` against `expected`, by the largest difference of their components.

    equal: the difference is at most `tolerance`. differs: it is at least `tolerance` (a control that must fail).
    increasing: the components of `got` increase, each step by at least `tolerance`; nothing is expected.
    """

    test: str
    quantity: str
    got: tuple[float, ...]
    expected: tuple[float, ...] = ()
    tolerance: float = 1e-6
    relation: Relation = "equal"
    source: str = ""

    @property
    def error(self) -> float:
        if self.relation == "increasing":
            return min(b - a for a, b in zip(self.got[:-1], self.got[1:], strict=True))
        return max(abs(a - b) for a, b in zip(self.got, self.expected, strict=True))

    @property
    def ok(self) -> bool:
        # Written so that NaN is never ok.
        return self.error <= self.tolerance if self.relation == "equal" else self.error >= self.tolerance

    def row(self) -> dict[str, Any]:
        return asdict(self) | {"error": self.error, "ok": self.ok}


WIDTH = 54


def numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.5g}" if value == 0 or abs(value) > 1e-5 else f"{value:.0e}" for value in values)


def table_line(check: Check) -> str:
    sign = "<=" if check.relation == "equal" else ">="
    return (
        f"{check.quantity:<{WIDTH}} {numbers(check.got):>22} {numbers(check.expected):>22} "
        f"{check.error:8.1e} {sign} {check.tolerance:<6.0e} {'ok' if check.ok else 'FAILED'}"
    )


HEADER = f"{'quantity (gradients: d/dm, d/ds)':<{WIDTH}} {'got':>22} {'expected':>22} {'error':>8}    allowed"
