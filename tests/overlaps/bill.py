"""Compare what the API billed for a task with what the task reported."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_imagen.sandbox import Charge


@dataclass(frozen=True)
class Bill:
    """
    The charges of one task over all its attempts, and what its last attempt published.

    Requests are identified by their ``client_request_id``; every request is for one image.

    :param charges: the API's records
    :param images: lines of the manifest
    :param losses: failed items that were charged
    :param summary: XCom ``summary``
    """

    charges: tuple[Charge, ...]
    images: tuple[dict[str, Any], ...]
    losses: tuple[dict[str, Any], ...]
    summary: dict[str, Any]

    @classmethod
    def read(cls, charges: Iterable[Charge], *, folder: Path, summary: dict[str, Any]) -> Bill:
        """Read the manifest and the failures from an output folder used only by this task."""
        failures = [line for path in folder.glob(".imagen/failures/*.jsonl") for line in _lines(path)]
        return cls(
            charges=tuple(charges),
            images=tuple(_lines(folder / "metadata.jsonl")),
            losses=tuple(line for line in failures if line["error"] == "ChargedButLostError"),
            summary=summary,
        )

    @property
    def unreported(self) -> Counter[str]:
        """Charges not reported as an image, a loss or in doubt."""
        return self._billed - self._reported

    @property
    def misreported(self) -> Counter[str]:
        """Images, losses and requests in doubt without a charge, or with the same charge as another."""
        # A request in doubt may turn out not to have been billed.
        never_billed = Counter(set(self._in_doubt) - set(self._billed))
        return self._reported - self._billed - never_billed

    @property
    def duplicates(self) -> int:
        """Charges for prompts that had already been charged."""
        return len(self.charges) - len({charge.prompt for charge in self.charges})

    @property
    def usd(self) -> Decimal:
        """Everything that was charged, in USD."""
        return sum((charge.usd for charge in self.charges), Decimal(0))

    @property
    def usd_reported(self) -> Decimal:
        """What the task reports it spent or may have spent, in USD."""
        return Decimal(str(self.summary["usd_spent"])) + Decimal(str(self.summary.get("usd_in_doubt", 0)))

    @property
    def files(self) -> list[Path]:
        """Paths of the listed images."""
        return [Path(image["path"]) for image in self.images]

    @property
    def _billed(self) -> Counter[str]:
        return Counter(str(charge.client_request_id) for charge in self.charges)

    @property
    def _in_doubt(self) -> list[str]:
        return list(self.summary.get("in_doubt", ()))

    @property
    def _reported(self) -> Counter[str]:
        accounted_for = [line["client_request_id"] for line in (*self.images, *self.losses)]
        return Counter(accounted_for + self._in_doubt)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
