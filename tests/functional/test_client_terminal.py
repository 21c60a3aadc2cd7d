"""testenv-client at a terminal: a person's shell around it, a person's shell inside it."""

from broker.client import Outcome
from tests.functional.brokers import RunningBroker
from tests.functional.client_rig import CLIENT, eventually, on_one_broker, stub_agent
from tests.functional.screen import CTRL_C, CTRL_Z, is_stopped, parent_of, screen

pytestmark = on_one_broker

SHELL = ("bash", "--norc", "--noprofile", "-i")


async def test_ctrl_c_while_waiting_exits_at_once(broker: RunningBroker) -> None:
    async with screen(CLIENT, "-b", str(broker.endpoint), "--", "true") as tty:
        await tty.shows("waiting for lockenv at")
        tty.type(CTRL_C)
        await tty.shows("interrupted by SIGINT while waiting")
        assert await tty.exits() == 130


async def test_news_replace_each_other_on_one_line(broker: RunningBroker) -> None:
    async with screen(CLIENT, "-b", str(broker.endpoint), "--", "true") as tty:
        await tty.shows("waiting for 2 s: no environment is registered for lockenv")
        await tty.shows("\r\x1b\\[Ktestenv-client: waiting for 4 s: ")


async def test_interactive_shell_inside_a_lease_has_job_control(
    broker: RunningBroker,
) -> None:
    async with (
        stub_agent(broker.endpoint) as agent,
        screen(CLIENT, "-b", str(broker.endpoint), "--", *SHELL) as tty,
    ):
        grant = await agent.grant()
        await tty.shows("prompt> ")
        tty.type("echo $((6 * 7)) $TE_DATAFILE\n")
        await tty.shows(r"42 /\S+/te-lease-1\.json")
        job = "sh -c 'echo start $$; exec sleep 300'\n"
        tty.type(job)
        pid = int((await tty.shows(r"\r\nstart (\d+)"))[1])
        await tty.runs_in_foreground(pid, "sleep")
        tty.type(CTRL_C)
        await tty.shows("prompt> ")
        tty.type(job)
        pid = int((await tty.shows(r"\r\nstart (\d+)"))[1])
        await tty.runs_in_foreground(pid, "sleep")
        tty.type(CTRL_Z)
        await tty.shows("Stopped")
        tty.type("fg\n")
        await tty.runs_in_foreground(pid, "sleep")
        tty.type(CTRL_C)
        await tty.shows("prompt> ")
        tty.resize(17, 71)
        tty.type("stty size\n")
        await tty.shows("17 71")
        tty.type("exit 5\n")
        assert (await grant.returned()).outcome is Outcome.COMPLETE
        assert await tty.exits() == 5


async def test_ctrl_c_reaches_the_command_and_the_shell_around_goes_on(
    broker: RunningBroker,
) -> None:
    async with stub_agent(broker.endpoint) as agent, screen(*SHELL) as tty:
        await tty.shows("prompt> ")
        script = "echo up $$; exec sleep 300"
        tty.type(f"{CLIENT} -b {broker.endpoint} -- sh -c '{script}'; echo rc $?\n")
        grant = await agent.grant()
        await tty.runs_in_foreground(int((await tty.shows(r"\r\nup (\d+)"))[1]), "sleep")
        tty.type(CTRL_C)
        await grant.returned()
        await tty.shows("rc 130")
        tty.type("read line && echo read $line\n")
        tty.type("hello\n")
        await tty.shows("\r\nread hello")


async def test_ctrl_z_stops_the_whole_job_and_fg_resumes_it(broker: RunningBroker) -> None:
    async with stub_agent(broker.endpoint) as agent, screen(*SHELL) as tty:
        await tty.shows("prompt> ")
        tty.type(f"{CLIENT} -b {broker.endpoint} -- sh -c 'echo up $$; read x; echo got $x'\n")
        grant = await agent.grant()
        pid = int((await tty.shows(r"\r\nup (\d+)"))[1])
        for _ in range(2):
            await tty.runs_in_foreground(pid)
            tty.type(CTRL_Z)
            await tty.shows("Stopped")
            await tty.shows("prompt> ")
            tty.type("echo between\n")
            await tty.shows("\r\nbetween")
            tty.type("fg\n")
        await tty.runs_in_foreground(pid)
        tty.type("it\n")
        await tty.shows("\r\ngot it")
        await grant.returned()
        tty.type("exit\n")
        assert await tty.exits() == 0


async def test_ctrl_z_without_a_shell_around_does_not_stop_anything(
    broker: RunningBroker,
) -> None:
    script = "echo up $$; read x; echo got $x"
    async with (
        stub_agent(broker.endpoint) as agent,
        screen(CLIENT, "-b", str(broker.endpoint), "--", "sh", "-c", script) as tty,
    ):
        grant = await agent.grant()
        await tty.shows("\r\nup")
        tty.type(CTRL_Z)
        tty.type("it\n")
        await tty.shows("\r\ngot it")
        await grant.returned()
        assert await tty.exits() == 0


async def test_background_job_that_reads_stops_until_it_has_the_terminal(
    broker: RunningBroker,
) -> None:
    async with stub_agent(broker.endpoint) as agent, screen(*SHELL) as tty:
        await tty.shows("prompt> ")
        tty.type(f"{CLIENT} -b {broker.endpoint} -- sh -c 'echo up $$; read x; echo got $x' &\n")
        grant = await agent.grant()
        pid = int((await tty.shows(r"\r\nup (\d+)"))[1])
        client = parent_of(parent_of(pid))
        await eventually(lambda: is_stopped(pid) and is_stopped(client))
        tty.type("echo mine\n")
        await tty.shows("\r\nmine")
        tty.type("fg\n")
        await tty.runs_in_foreground(pid)
        tty.type("it\n")
        await tty.shows("\r\ngot it")
        await grant.returned()


async def test_ctrl_c_reaches_a_job_that_was_in_the_background_for_a_while(
    broker: RunningBroker,
) -> None:
    script = "echo up $$; exec sleep 300"
    async with stub_agent(broker.endpoint) as agent, screen(*SHELL) as tty:
        await tty.shows("prompt> ")
        tty.type(f"{CLIENT} -b {broker.endpoint} -- sh -c '{script}'\n")
        grant = await agent.grant()
        pid = int((await tty.shows(r"\r\nup (\d+)"))[1])
        await tty.runs_in_foreground(pid, "sleep")
        tty.type(CTRL_Z)
        await tty.shows("Stopped")
        tty.type("bg\n")
        await eventually(lambda: not is_stopped(pid))
        tty.type("echo mine\n")
        await tty.shows("\r\nmine")
        tty.type("fg\n")
        await tty.runs_in_foreground(parent_of(parent_of(pid)), "testenv-client")
        tty.type(CTRL_C)
        await grant.returned()
        tty.type("echo rc $?\n")
        await tty.shows("rc 130")


async def test_command_with_redirected_input_may_ask_at_the_terminal(
    broker: RunningBroker,
) -> None:
    script = "echo up; read x < /dev/tty; echo got $x"
    async with stub_agent(broker.endpoint) as agent, screen(*SHELL) as tty:
        await tty.shows("prompt> ")
        tty.type(f"{CLIENT} -b {broker.endpoint} -- sh -c '{script}' < /dev/null\n")
        grant = await agent.grant()
        await tty.shows("\r\nup")
        tty.type("it\n")
        await tty.shows("\r\ngot it")
        await grant.returned()
        await tty.shows("prompt> ")


async def test_terminal_modes_come_back_after_a_command_that_was_stopped(
    broker: RunningBroker,
) -> None:
    script = "stty raw -echo; echo up; exec sleep 300"
    async with stub_agent(broker.endpoint) as agent, screen(*SHELL, "+m") as tty:
        await tty.shows("prompt> ")
        tty.type(f"{CLIENT} -t 1 -b {broker.endpoint} -- sh -c '{script}'; echo rc $?; cat\n")
        grant = await agent.grant()
        await tty.shows("\nup")
        assert not tty.is_cooked
        await grant.returned()
        await tty.shows("rc 124")
        assert tty.is_cooked
