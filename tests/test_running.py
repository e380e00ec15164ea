"""Who is alive: locks of processes that live, have ended, and have been killed."""

import subprocess
import sys

import pytest

from counterdoor import running
from counterdoor.running import FOLDER, Running, killed


def other(project, *, store="", ends="wait"):
    """Another process with a run, and the run's token. It waits, or ends without a word."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from counterdoor.running import Running\n"
        "run = Running(Path(sys.argv[1]), sys.argv[2])\n"
        "print(run.token, flush=True)\n"
        "sys.stdin.read() if sys.argv[3] == 'wait' else os._exit(9)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(project), store, ends],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, process.stdout.readline().strip()


@pytest.fixture
def dead(tmp_path):
    """The token of a run whose process has been killed."""
    process, token = other(tmp_path)
    process.kill()
    process.communicate()
    return token


def files(project):
    return [file.name for file in (project / FOLDER).glob("*.lock")]


def test_there_is_nobody_at_first(tmp_path):
    assert list(killed(tmp_path, "")) == []
    assert not (tmp_path / FOLDER).exists()


def test_a_killed_run_is_told_once(tmp_path, dead):
    assert list(killed(tmp_path, "")) == [dead]
    assert list(killed(tmp_path, "")) == []
    assert files(tmp_path) == []


def test_a_killed_run_is_told_again_if_it_could_not_be_closed(tmp_path, dead):
    for token in killed(tmp_path, ""):
        assert token == dead
        break
    assert list(killed(tmp_path, "")) == [dead]


def test_a_run_that_goes_on_is_not_told(tmp_path):
    process, token = other(tmp_path)
    assert list(killed(tmp_path, "")) == []
    process.kill()
    process.communicate()
    assert list(killed(tmp_path, "")) == [token]


def test_a_run_of_this_process_is_not_told_and_leaves_nothing(tmp_path):
    run = Running(tmp_path, "")
    assert list(killed(tmp_path, "")) == []
    assert len(files(tmp_path)) == 1
    run.end()
    assert list(killed(tmp_path, "")) == []
    assert files(tmp_path) == []


def test_runs_have_tokens_of_their_own(tmp_path):
    one, two = Running(tmp_path, ""), Running(tmp_path, "")
    assert one.token != two.token
    one.end()
    two.end()


def test_runs_of_another_store_are_left_alone(tmp_path):
    process, token = other(tmp_path, store="http://host:1", ends="at once")
    process.communicate()
    assert list(killed(tmp_path, "")) == []
    assert list(killed(tmp_path, "http://host:1")) == [token]


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (("name", "another start"), True),  # the machine was started anew
        (("another name", "start"), True),  # another container of the same system
        (("another name", "another start"), False),  # another machine that shares the folder
    ],
)
def test_only_runs_of_this_machine_are_known_to_be_dead(tmp_path, monkeypatch, seen, told):
    monkeypatch.setattr(running, "_machine", lambda: ("name", "start"))
    run = Running(tmp_path, "")
    run._lock.release()  # as the system does when the process dies
    monkeypatch.setattr(running, "_machine", lambda: seen)
    assert list(killed(tmp_path, "")) == ([run.token] if told else [])


def test_a_folder_without_locks_is_no_reason_to_fail(tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise NotImplementedError

    monkeypatch.setattr(running.FileLock, "acquire", fails)
    run = Running(tmp_path, "")
    assert run.token
    run.end()
    assert list(killed(tmp_path, "")) == []
