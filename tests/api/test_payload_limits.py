"""Inputs and outputs at the largest size that may be, and one byte beyond."""

from __future__ import annotations

from pathlib import Path

import pytest

from lilota_async import InvalidInput, TaskFailed
from lilota_async.codec import DEFAULT_LIMIT
from lilota_async.errors import StoreError
from tests.api.support import DEADLINE, MakeLilota, row
from tests.api.tasks import echo, quotes_of, text_of
from tests.databases import Servers

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]
QUOTES = 2  # around a text as JSON


@pytest.fixture
def mariadb_url(servers: Servers, tmp_path: Path) -> str:
    """The URL of an empty database on MariaDB."""
    return servers.empty_database("mariadb", tmp_path)


async def test_the_default_limit_to_the_byte(make_lilota: MakeLilota, database_url: str) -> None:
    """10 MiB go there and back on every database; a byte more is refused, and nothing written."""
    lilota = make_lilota(echo, db_url=database_url)
    largest = "x" * (DEFAULT_LIMIT - QUOTES)
    async with lilota:
        task_id = await lilota.schedule(echo, largest)
        assert await lilota.result(task_id, DEADLINE) == largest
        with pytest.raises(InvalidInput, match=r"10,485,761 bytes.* the limit is 10,485,760"):
            await lilota.schedule(echo, largest + "x")
        assert len(await lilota.get_all_tasks()) == 1
        assert await lilota.delete_task_by_id(task_id)


@pytest.mark.parametrize("letter", ['"', "\\", "'", "ä", "\u2028", "😀"])
async def test_a_limit_of_bytes_not_letters(
    make_lilota: MakeLilota, database_url: str, letter: str
) -> None:
    """What counts are the bytes of the JSON, with the signs that it escapes."""
    limit = 1_000_000
    lilota = make_lilota(echo, db_url=database_url, max_payload_bytes=limit)
    size = {'"': 2, "\\": 2}.get(letter, len(letter.encode()))
    largest = letter * ((limit - QUOTES) // size)
    async with lilota:
        assert await lilota.result(await lilota.schedule(echo, largest), DEADLINE) == largest
        with pytest.raises(InvalidInput, match="the limit is"):
            await lilota.schedule(echo, largest + letter)


async def test_more_than_the_server_takes(make_lilota: MakeLilota, mariadb_url: str) -> None:
    """MariaDB has a limit of its own: the error names it, in both directions, and nobody hangs."""
    lilota = make_lilota(echo, quotes_of, db_url=mariadb_url)
    number = DEFAULT_LIMIT - QUOTES
    async with lilota:
        with pytest.raises(StoreError, match=r"max_allowed_packet.*lower max_payload_bytes"):
            await lilota.schedule(echo, "'" * number)
        assert await lilota.get_all_tasks() == []
        task = await lilota.wait(await lilota.schedule(quotes_of, number), DEADLINE)
        assert task.status == "failed"
        assert task.exception is not None
        assert "max_allowed_packet" in task.exception["message"]
        assert await lilota.result(await lilota.schedule(echo, 1), DEADLINE) == 1


async def test_an_output_to_the_byte(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """The limit is the same on the way back: the task fails, and says what the limit is."""
    lilota = make_lilota(text_of, db_url=fast_database_url, max_payload_bytes=5000)
    async with lilota:
        fits = await lilota.schedule(text_of, 5000 - QUOTES)
        assert len(await lilota.result(fits, DEADLINE)) == 5000 - QUOTES
        beyond = await lilota.schedule(text_of, 5001 - QUOTES)
        with pytest.raises(TaskFailed, match="invalid_output"):
            await lilota.result(beyond, DEADLINE)
        task = await row(lilota, beyond)
        assert task.exception is not None
        assert "5,001 bytes of JSON, and the limit is 5,000 bytes" in task.exception["message"]
        assert task.output is None
        again = await lilota.schedule(text_of, 1)  # its process is none the worse
        assert await lilota.result(again, DEADLINE) == "x"
