"""The command inside a lease: its status, its environment, its data file."""

import asyncio
import json
import os
import stat
from pathlib import Path

import pytest

from broker.client import Outcome
from tests.functional.brokers import RunningBroker
from tests.functional.client_rig import (
    CLIENT,
    DATA,
    OFFER,
    client,
    exists,
    names_in,
    run_client,
    shell,
    stub_agent,
)


async def test_client_exits_as_its_command_did(broker: RunningBroker) -> None:
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell("echo out; echo err >&2; exit 7"), broker=broker.endpoint) as job,
    ):
        result = await (await agent.grant()).returned()
        assert await job.exits() == 7, job.err
    assert result.outcome is Outcome.COMPLETE
    assert result.data == b""
    assert job.out == "out\n"
    assert "err\n" in job.err


async def test_signalled_command_gives_128_plus_the_signal(broker: RunningBroker) -> None:
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell("kill -KILL $$"), broker=broker.endpoint) as job,
    ):
        await (await agent.grant()).returned()
        assert await job.exits() == 128 + 9, job.err


@pytest.mark.parametrize(
    ("command", "status", "why"),
    [("./no-such-command", 127, "not found"), ("/etc/passwd", 126, "Permission denied")],
)
async def test_command_that_cannot_start_gives_the_environment_back(
    broker: RunningBroker, command: str, status: int, why: str
) -> None:
    async with (
        stub_agent(broker.endpoint) as agent,
        client("--", command, broker=broker.endpoint) as job,
    ):
        result = await (await agent.grant()).returned()
        assert await job.exits() == status, job.err
    assert result.outcome is Outcome.COMPLETE
    assert f"testenv-client: {command}: " in job.err
    assert why in job.err


async def test_script_without_interpreter_is_not_executable(
    broker: RunningBroker, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("echo hello\n")
    script.chmod(0o755)
    async with (
        stub_agent(broker.endpoint) as agent,
        client("--", script, broker=broker.endpoint) as job,
    ):
        await (await agent.grant()).returned()
        assert await job.exits() == 126, job.err
    assert "#!" in job.err


async def test_data_file_is_private_and_byte_for_byte_what_the_agent_sent(
    broker: RunningBroker,
) -> None:
    offer = b'{"odd":  [1,\n2], "text": "\xc3\xa9"}\n'
    look = 'stat -c "%a" "$TE_DATADIR" "$TE_DATAFILE"; echo "$TE_DATAFILE"; cat "$TE_DATAFILE"'
    async with (
        stub_agent(broker.endpoint) as agent,
        client("-n", "job/7", *shell(look), broker=broker.endpoint) as job,
    ):
        await (await agent.grant(offer)).returned()
        assert await job.exits() == 0, job.err
    modes, _, rest = job.out.partition("/")
    name, _, text = rest.partition("\n")
    assert modes.split() == ["700", "600"]
    assert name.endswith("/te-job_7.json")
    assert text.encode() == offer
    assert not exists(Path(f"/{name}").parent)


async def test_data_file_is_named_after_the_lease_and_may_be_changed(
    broker: RunningBroker,
) -> None:
    script = 'echo changed > "$TE_DATAFILE" && echo "$TE_DATAFILE $TE_DATADIR"'
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell(script), broker=broker.endpoint) as job,
    ):
        await (await agent.grant()).returned()
        assert await job.exits() == 0, job.err
    datafile, datadir = job.out.split()
    assert datafile == f"{datadir}/te-lease-1.json"


async def test_datafile_option_keeps_the_file_private_even_over_an_open_one(
    broker: RunningBroker, tmp_path: Path
) -> None:
    kept = tmp_path / "environment.json"
    kept.write_text("old")
    kept.chmod(0o644)
    async with (
        stub_agent(broker.endpoint) as agent,
        client("--datafile", kept, *shell('echo "$TE_DATAFILE"'), broker=broker.endpoint) as job,
    ):
        await (await agent.grant()).returned()
        assert await job.exits() == 0, job.err
    assert job.out.strip() == str(kept)
    assert kept.read_bytes() == OFFER
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert names_in(tmp_path) == [kept.name]


async def test_workspace_is_where_tmpdir_says(broker: RunningBroker, tmp_path: Path) -> None:
    async with (
        stub_agent(broker.endpoint) as agent,
        client(
            *shell('echo "$TE_DATADIR"'), broker=broker.endpoint, env={"TMPDIR": str(tmp_path)}
        ) as job,
    ):
        await (await agent.grant()).returned()
        assert await job.exits() == 0, job.err
    assert Path(job.out.strip()).parent == tmp_path
    assert names_in(tmp_path) == []


async def test_command_inherits_open_files_and_ignored_signals(broker: RunningBroker) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    command = f"kill -HUP $$; echo kept > /proc/self/fd/{writing}"
    script = 'trap \'\' HUP; exec "$0" -b "$1" -- sh -c "$2"'
    async with stub_agent(broker.endpoint) as agent:
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", script, CLIENT, str(broker.endpoint), command, pass_fds=(writing,)
        )
        os.close(writing)
        await (await agent.grant()).returned()
        assert await process.wait() == 0
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "kept\n"


async def test_lease_and_environment_are_named_to_the_people_who_wait(
    broker: RunningBroker,
) -> None:
    async with (
        stub_agent(broker.endpoint) as agent,
        client("-n", "7", *shell("true"), broker=broker.endpoint) as job,
    ):
        await (await agent.grant()).returned()
        assert await job.exits() == 0, job.err
    waiting, got = job.err.splitlines()
    assert f"waiting for lockenv at {broker.endpoint} as job 7" in waiting
    assert "got te1/3 after 0." in got


async def test_report_tells_what_became_of_the_request(
    broker: RunningBroker, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    async with (
        stub_agent(broker.endpoint) as agent,
        client("--report", report, *shell("exit 70"), broker=broker.endpoint) as job,
    ):
        await (await agent.grant()).returned()
        assert await job.exits() == 70, job.err
    document = json.loads(report.read_text())
    assert 0 < document.pop("waited_s") < 5
    assert 0 < document.pop("ran_s") < 5
    assert document == {
        "lease": DATA["testenv"]["lease"]["id"],
        "environment": "te1/3",
        "exit_code": 70,
        "reason": "exited",
        "message": None,
    }
    assert names_in(tmp_path) == [report.name]


async def test_report_of_a_v1_environment_has_no_lease(
    broker: RunningBroker, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    async with (
        stub_agent(broker.endpoint) as agent,
        client("--report", report, *shell("kill -TERM $$"), broker=broker.endpoint) as job,
    ):
        await (await agent.grant(b'{"seed-ip": "192.0.2.7"}')).returned()
        assert await job.exits() == 143, job.err
    document = json.loads(report.read_text())
    assert document["lease"] is document["environment"] is None
    assert document["reason"] == "signalled"


async def test_broker_comes_from_the_environment_unless_an_option_says_otherwise(
    broker: RunningBroker,
) -> None:
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell("true"), env={"TESTENV_BROKER": str(broker.endpoint)}) as job,
    ):
        await (await agent.grant()).returned()
        assert await job.exits() == 0, job.err
    async with (
        stub_agent(broker.endpoint) as agent,
        client(*shell("true"), broker=broker.endpoint, env={"TESTENV_BROKER": "[::"}) as job,
    ):
        await (await agent.grant()).returned()
        assert await job.exits() == 0, job.err


async def test_unwritable_report_is_complained_about_before_anything_is_locked(
    tmp_path: Path,
) -> None:
    status, job = await run_client("--report", tmp_path / "no" / "report.json", *shell("true"))
    assert status == 2
    assert "--report: cannot write" in job.err
