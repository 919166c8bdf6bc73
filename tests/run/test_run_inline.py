"""Inline images: their bytes exist only once, so a crash around the writing of a file must not hide it."""

from __future__ import annotations

from decimal import Decimal

import pytest

from airflow_provider_imagen.exceptions import ChargedButLostError, JournalError

pytestmark = pytest.mark.timeout(30)


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def inline(world, steps):
    """Return a world whose API returns "a" inline; ``try_and_die`` runs an attempt killed before or after the write."""
    world.ports.script("a", steps.pictures(inline=True))

    def try_and_die(when: str, **options) -> None:
        save = world.ports.save

        def save_and_die(*args, **kwargs):
            save(*args, **kwargs)
            raise Killed

        world.ports.save_error = Killed() if when == "before" else None
        world.ports.save = save_and_die if when == "after" else save
        with pytest.raises(Killed):
            world.run("a", **options)
        world.ports.save, world.ports.save_error = save, None

    world.try_and_die = try_and_die
    return world


@pytest.mark.parametrize("on_lost_answer", ["check", "resend", "fail"])
def test_a_written_file_is_reused_even_if_the_attempt_died_before_recording_it(inline, on_lost_answer):
    inline.try_and_die("after")
    assert inline.records_by_type() == {"intent": 1, "response": 1, "write_started": 1}
    result = inline.run("a", on_lost_answer=on_lost_answer)
    assert result.failures == []
    assert (len(result.made), result.reused, result.usd_lost) == (1, 1, 0)
    assert result.records[0].path == "/out/000-0.png"
    assert len(inline.ports.posts) == len(inline.ports.saved) == 1


def test_an_image_that_was_not_written_is_reported_lost_and_not_sent_again(inline):
    inline.try_and_die("before")
    for _ in range(2):
        result = inline.run("a")
        assert isinstance(result.failures[0].error, ChargedButLostError)
        assert result.usd_lost == result.usd_spent == Decimal("0.04")
    assert len(inline.ports.posts) == 1


def test_an_image_that_was_not_written_is_sent_again_with_resend(inline):
    inline.try_and_die("before", on_lost_answer="resend")
    result = inline.run("a", on_lost_answer="resend", max_usd=Decimal("0.08"))
    assert (len(result.made), result.reused) == (1, 0)
    assert result.usd_lost == Decimal("0.04")
    assert result.usd_spent == Decimal("0.08") == inline.ports.billed_usd
    again = inline.run("a", on_lost_answer="resend")
    assert (again.reused, again.usd_spent, len(inline.ports.posts)) == (1, Decimal("0.08"), 2)


def test_the_file_name_is_durable_before_the_file_is_written(inline):
    at_the_write = []
    save = inline.ports.save

    def look(data, received, position, before_write):
        def journal_and_look(expected):
            before_write(expected)
            at_the_write.append((expected.file_name, f'"file_name":"{expected.file_name}"' in inline.store.text))

        return save(data, received, position, journal_and_look)

    inline.ports.save = look
    inline.run("a")
    assert at_the_write == [("000-0.png", True)]
    assert inline.records_by_type() == {"intent": 1, "response": 1, "write_started": 1, "write_committed": 1}


def test_an_image_is_stored_even_if_its_write_cannot_be_journaled_and_nothing_more_is_sent(inline):
    inline.store.fails_after = 2  # the intent and the response
    result = inline.run(["a", "b"], concurrency=1)
    assert result.records[0].prompt == "a"
    assert isinstance(result.abort_reason, JournalError)
    assert inline.ports.files["000-0.png"] == b"inline"


def test_an_image_with_a_url_needs_no_extra_journal_write(world):
    world.run("b")
    assert world.records_by_type() == {"intent": 1, "response": 1, "write_committed": 1}
