"""An operator's own program: its words, its end, and its being ended."""

import asyncio
import time
from pathlib import Path

import pytest

from schemas.errors import HostError
from testenv import tool
from testenv.tool import run_tool
from tests.functional.client_rig import BOUND_S, eventually, is_alive


class Heard(list[str]):
    async def of(self, script: str) -> int:
        async with asyncio.timeout(BOUND_S):
            return await run_tool(("sh", "-c", script), self.append)


async def test_what_it_says_is_heard_line_by_line_and_can_steer_no_terminal() -> None:
    heard = Heard()
    assert await heard.of(r"printf 'one\n10%%\r100%%\r\n\033[2J\303\n' >&2; printf last") == 0
    assert heard == ["one", "100%", "?[2J\ufffd", "last"]


async def test_a_line_without_an_end_is_heard_in_pieces() -> None:
    heard = Heard()
    assert await heard.of("head -c 10000 /dev/zero | tr '\\0' x") == 0
    assert "".join(heard) == 10_000 * "x"
    assert max(map(len, heard)) <= 4096


async def test_it_has_no_input_and_no_terminal() -> None:
    heard = Heard()
    await heard.of("cat; (exec < /dev/tty) 2> /dev/null || echo none")
    assert heard == ["none"]


async def test_how_it_ends_is_told() -> None:
    assert await Heard().of("exit 3") == 3
    assert await Heard().of("kill -9 $$") == -9


async def test_what_it_leaves_behind_is_not_waited_for() -> None:
    heard = Heard()
    begun = time.monotonic()
    assert await heard.of("sleep 60 & echo $!") == 0
    assert time.monotonic() - begun < BOUND_S / 2
    assert is_alive(int(heard[0])), "it may be a daemon of its own"
    await heard.of(f"kill {heard[0]}")


@pytest.mark.parametrize("trap", ["", "trap '' TERM;"])
async def test_cancelled_it_is_ended_with_all_that_it_has_begun(
    trap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "GRACE_S", 0.3)
    heard = Heard()
    running = asyncio.create_task(heard.of(f"{trap} sleep 60 & echo $! $$; wait; wait"))
    await eventually(lambda: heard)
    pids = [int(pid) for pid in heard[0].split()]
    running.cancel()
    await asyncio.wait([running], timeout=BOUND_S)
    assert running.cancelled()
    await eventually(lambda: not any(map(is_alive, pids)))


async def test_one_that_can_t_be_started_is_named(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("")
    with pytest.raises(HostError, match=r"program can't be started: Permission denied"):
        await run_tool((str(program),), Heard().append)
