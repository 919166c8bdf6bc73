"""What earlier tries of the task mean for this one: adopt, tell a loss again, or buy."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_provider_imagen.generation.plan import Slot, Unit
    from airflow_provider_imagen.journal.records import Entry, Stored


class EarlierTries:
    """
    The journal as earlier tries left it, asked about the requests of this one.

    :param entries: what the journal held when it was opened, by the key of the request
    :param may_buy_again: the author wants lost answers bought again (``on_lost_answer="resend"``)
    :param is_stored: whether a stored picture is there and whole
    """

    def __init__(
        self, entries: Mapping[str, Entry], *, may_buy_again: bool, is_stored: Callable[[Stored], bool]
    ) -> None:
        self.entries = entries
        self._may_buy_again = may_buy_again
        self._is_stored = is_stored

    @property
    def usd_spent(self) -> Decimal:
        """Charged by earlier tries, in USD."""
        return sum((entry.usd_spent for entry in self.entries.values()), Decimal(0))

    @property
    def usd_lost(self) -> Decimal:
        """The part of it no picture came of, in USD."""
        return sum((entry.usd_lost for entry in self.entries.values()), Decimal(0))

    @property
    def usd_is_estimate(self) -> bool:
        """Whether some of it is a known price that no answer stated."""
        return any(entry.paid.usd_is_estimate for entry in self.entries.values() if entry.paid)

    def is_paid(self, unit: Unit) -> bool:
        """Say whether there is an answer to adopt; one whose pictures are gone is no answer if it may be resent."""
        entry = self.entries.get(unit.key)
        if entry is None or entry.paid is None:
            return False
        return not (self._may_buy_again and self._has_unreachable_pictures(entry))

    def is_lost(self, unit: Unit) -> bool:
        """Say whether an earlier try was charged for a lost answer, and it is not to be bought again."""
        entry = self.entries.get(unit.key)
        return entry is not None and bool(entry.lost) and not self._may_buy_again

    def units_to_buy(self, slot: Slot) -> list[Unit]:
        """List what this try would have to pay for, unless its model is withdrawn."""
        return [unit for unit in self.in_order_of_use(slot)[0] if not self.is_paid(unit) and not self.is_lost(unit)]

    def in_order_of_use(self, slot: Slot) -> list[tuple[Unit, ...]]:
        """Put the model first that an earlier try paid for this slot, then one that it at least sent the slot to."""

        def rank(units: tuple[Unit, ...]) -> int:
            entries = [entry for unit in units if (entry := self.entries.get(unit.key)) is not None]
            if any(entry.paid for entry in entries):
                return 0
            return 1 if any(entry.open_intents or entry.lost for entry in entries) else 2

        return sorted(slot.choices, key=rank)

    def _has_unreachable_pictures(self, entry: Entry) -> bool:
        """Look whether a picture that was about to be written when its try ended is there after all."""
        return entry.has_unreachable_pictures or any(
            not self._is_stored(entry.stored[number]) for number in entry.announced
        )
