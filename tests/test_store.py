"""The store of runs: made whole, checked before it is used, refused in one line."""

import os
import socket
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from shutil import copy

import pytest

from counterdoor import store
from counterdoor.store import StoreError, connect, database_file, database_uri, use_database


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A database with the experiment ``theirs``; it takes seconds to make one."""
    file = tmp_path_factory.mktemp("base") / "mlflow.db"
    use_database(file, experiment="theirs", artifacts="file:///nowhere")
    return file


@pytest.fixture
def file(tmp_path, base):
    return Path(copy(base, tmp_path / "mlflow.db"))


@pytest.fixture
def unset(monkeypatch):
    """No wish of the user's, before and after."""
    import mlflow

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield monkeypatch
    mlflow.set_tracking_uri(None)


def execute(file, *statements):
    with closing(sqlite3.connect(file)) as database:
        found = [database.execute(statement).fetchall() for statement in statements]
        database.commit()
    return found[-1]


def overwrite(file, start, content):
    with file.open("r+b") as opened:
        opened.seek(start)
        opened.write(content)


# making


def test_a_database_is_made_with_its_experiment_and_nothing_beside_it(base):
    names = execute(base, "SELECT name, artifact_location FROM experiments ORDER BY experiment_id")
    assert names[1] == ("theirs", "file:///nowhere")
    assert [path.name for path in base.parent.iterdir()] == ["mlflow.db"]
    use_database(base)


@pytest.fixture
def made(monkeypatch, base):
    """Databases are copied instead of made; the list of what a maker saw in its folder."""
    seen = []

    class Store:
        def __init__(self, uri, artifacts):
            file = database_file(uri)
            seen.append(sorted(path.name for path in file.parent.iterdir()))
            copy(base, file)
            Path(f"{file}-journal").touch()
            self.engine = self
            self._engine_map[uri] = self

        def create_experiment(self, name, artifact_location):
            pass

        def dispose(self):
            pass

    Store._engine_map = {}
    monkeypatch.setattr("mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore", Store)
    return seen


def test_what_killed_makers_and_databases_have_left_is_removed(tmp_path, made):
    left = (".mlflow.db.making-1", ".mlflow.db.making-1-journal", "mlflow.db-journal")
    for name in left:
        (tmp_path / name).write_bytes(b"rest")
    use_database(tmp_path / "mlflow.db")
    assert made == [["mlflow.db-journal", "mlflow.db.lock"]]
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_an_empty_file_is_as_good_as_none(tmp_path, made):
    (tmp_path / "mlflow.db").touch()
    use_database(tmp_path / "mlflow.db")
    use_database(tmp_path / "mlflow.db")
    assert len(made) == 1


def test_a_link_stays_a_link(tmp_path, made):
    (tmp_path / "disk").mkdir()
    (tmp_path / "mlflow.db").symlink_to(tmp_path / "disk" / "runs.db")
    use_database(tmp_path / "mlflow.db")
    assert (tmp_path / "mlflow.db").is_symlink()
    assert (tmp_path / "disk" / "runs.db").stat().st_size


def test_who_has_waited_for_the_lock_finds_the_database(tmp_path, made, monkeypatch):
    file = tmp_path / "mlflow.db"
    first = store.FileLock(f"{file}.lock")
    first.acquire()
    waiting = threading.Thread(target=use_database, args=(file,))
    waiting.start()
    use_nothing = store._is_there(file)
    store._make(file, None, None)
    first.release()
    waiting.join(30)
    assert not use_nothing
    assert len(made) == 1
    assert store._is_there(file)


def test_a_maker_that_does_not_end_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MAKING_SECONDS", 0.1)
    file = tmp_path / "mlflow.db"
    with (
        store.FileLock(f"{file}.lock"),
        pytest.raises(StoreError, match=r"has been making .*start again"),
    ):
        use_database(file)


def test_a_maker_that_fails_leaves_nothing(tmp_path, made, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(StoreError, match="No space left on device"):
        use_database(tmp_path / "mlflow.db")
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


@pytest.mark.slow
def test_two_processes_that_make_it_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from counterdoor.store import use_database\n"
        "use_database(Path(sys.argv[1]), experiment='one', artifacts='file:///a')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "mlflow.db")]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in started:
        output = process.communicate()[1]
        assert process.returncode == 0, output
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    assert execute(tmp_path / "mlflow.db", "SELECT count(*) FROM experiments") == [(2,)]


# checking


def change_to(revision):
    return lambda file: execute(file, f"UPDATE alembic_version SET version_num = '{revision}'")


def replaced(make):
    def spoil(file):
        file.unlink()
        make(file)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda file: os.truncate(file, 4096), "is damaged"),
        (lambda file: os.truncate(file, 400_000), "is damaged"),
        (lambda file: os.truncate(file, file.stat().st_size - 1), "is damaged"),
        (lambda file: os.truncate(file, 50), "is damaged"),
        (lambda file: overwrite(file, 0, b"\0" * 100), "not an SQLite database"),
        (lambda file: overwrite(file, 100, b"\xff" * 2000), "is damaged"),
        (lambda file: overwrite(file, 8192, b"\xff" * 65536), "is damaged"),
        (lambda file: file.write_text("runs"), "not an SQLite database"),
        (replaced(Path.mkdir), "is a folder"),
        (replaced(os.mkfifo), "is not a file"),
        (replaced(lambda file: file.symlink_to("/dev/null")), "is not a file"),
        (replaced(lambda file: execute(file, "CREATE TABLE songs (x)")), "of another program"),
        (
            replaced(lambda file: execute(file, "CREATE TABLE x (y)", "DROP TABLE x")),
            "without tables",
        ),
        (lambda file: execute(file, "DELETE FROM alembic_version"), "not made to its end"),
        (change_to("f00f00f00f00"), r"newer MLflow.*pip install --upgrade mlflow"),
        (change_to("451aebb31d03"), r"older MLflow.*mlflow db upgrade sqlite:///"),
    ],
)
@pytest.mark.parametrize("writes", [True, False])
def test_what_cannot_be_used_is_refused_in_one_line(file, spoil, told, writes):
    spoil(file)
    with pytest.raises(StoreError, match=told) as caught:
        use_database(file, writes=writes)
    assert "\n" not in str(caught.value)
    assert "move it away (mv " in str(caught.value)


def test_a_link_to_itself(tmp_path):
    (tmp_path / "mlflow.db").symlink_to("mlflow.db")
    with pytest.raises(StoreError, match="cannot be used"):
        use_database(tmp_path / "mlflow.db")


@pytest.mark.parametrize(
    ("held", "writes", "refused"),
    [
        ("EXCLUSIVE", True, True),
        ("EXCLUSIVE", False, True),
        ("IMMEDIATE", True, True),
        ("IMMEDIATE", False, False),  # reading goes beside writing
    ],
)
def test_a_locked_database(file, monkeypatch, held, writes, refused):
    monkeypatch.setattr(store, "LOCKED_SECONDS", 0.05)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute(f"BEGIN {held}")
        if refused:
            with pytest.raises(StoreError, match=r"has locked .*start again"):
                use_database(file, writes=writes)
        else:
            use_database(file, writes=writes)
    use_database(file, writes=writes)


def test_an_empty_file_that_another_program_fills(tmp_path, made, monkeypatch):
    monkeypatch.setattr(store, "LOCKED_SECONDS", 0.05)
    file = tmp_path / "mlflow.db"
    file.touch()
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="has locked"):
            use_database(file)
    assert file.stat().st_size == 0


def test_a_long_check_is_cut(file, monkeypatch):
    monkeypatch.setattr(store, "CHECK_SECONDS", -1.0)
    monkeypatch.setattr(store, "CHECK_STEPS", 1)
    execute(file, *(f"CREATE TABLE t{n} AS SELECT * FROM sqlite_master" for n in range(60)))
    overwrite(file, file.stat().st_size - 4096, b"\xff" * 4096)
    use_database(file, writes=False)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="is damaged"):
        use_database(file, writes=False)


# addresses


NAMES = ["plain", "p?q", "p#q", "p%q", "p%3Fq", "p q", "pæ中", "p'q", 'p"q', "p&uri=true", "p:q@r"]


@pytest.mark.parametrize("name", NAMES)
def test_an_address_names_the_file(tmp_path, name):
    import sqlalchemy

    file = tmp_path / name / "mlflow.db"
    file.parent.mkdir()
    uri = database_uri(file)
    assert database_file(uri) == file
    with sqlalchemy.create_engine(uri).begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE x (y)"))
    assert file.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_address_of_a_plain_path_is_what_people_write():
    assert database_uri(Path("/a/mlflow.db")) == "sqlite:////a/mlflow.db"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:///runs.db", Path("runs.db")),
        ("sqlite:////a/runs.db", Path("/a/runs.db")),
        ("sqlite:///:memory:", None),
        ("sqlite://", None),
        ("sqlite:///file:/a?mode=memory&uri=true", None),
        ("http://host:1", None),
        ("postgresql://host/runs", None),
    ],
)
def test_which_addresses_are_files(uri, expected):
    assert database_file(uri) == expected


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("http://", "names no host"),
        ("http://127.0.0.1:port", "[Pp]ort"),
        ("http://[::1", "IPv6"),
        ("htp://127.0.0.1:5000", "."),
        ("runs", "."),
        ("?", "."),
        ("sqlite://runs.db", "three slashes"),
        ("postgresql://me:secret@127.0.0.1:9/runs", "refused"),
    ],
)
def test_an_address_that_is_none(tmp_path, unset, uri, told):
    unset.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StoreError, match=told) as caught:
        connect(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert "secret" not in message
    assert "MLFLOW_TRACKING_URI" in message
    assert list(tmp_path.iterdir()) == []


# servers


@pytest.fixture
def server():
    """Starts servers that answer everything the same."""
    started = []

    def start(status, body=b"", **headers):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        asked = []
        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return f"http://127.0.0.1:{server.server_port}", asked

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(store, "ANSWER_SECONDS", 1)
    monkeypatch.setattr(store.time, "sleep", lambda _: None)


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (500, b"oops", {}),
        (503, b"later", {"Retry_After": "3600"}),
        (401, b"who are you?", {}),
        (404, b"<html>\n<body>nothing here</body></html>", {}),
        (200, b"<html>\n<h1>hello</h1></html>", {}),
        (200, b"[1, 2]", {}),
        (302, b"", {"Location": "/"}),
    ],
)
def test_a_server_that_is_not_mlflows(tmp_path, unset, hasty, server, status, body, headers):
    address, asked = server(status, body, **headers)
    unset.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(StoreError, match="a server that runs") as caught:
        connect(tmp_path)
    assert "\n" not in str(caught.value)
    assert asked
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_a_server_that_is_away_or_silent(tmp_path, unset, hasty):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for address in ("http://me:secret@127.0.0.1:9", f"http://127.0.0.1:{port}"):
            unset.setenv("MLFLOW_TRACKING_URI", address)
            with pytest.raises(StoreError, match="a server that runs") as caught:
                connect(tmp_path)
            assert "secret" not in str(caught.value)


def test_what_the_user_has_set_holds(tmp_path, unset, hasty):
    seen = []
    unset.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    unset.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    unset.setattr(
        store, "_point", lambda *_: seen.append(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
    )
    connect(tmp_path)
    assert seen == ["3"]
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"


# connecting


def test_the_experiment_may_have_just_been_made_by_another_process(file, unset):
    import mlflow

    unset.setattr(mlflow, "get_experiment_by_name", lambda name: next(answers))
    answers = iter([None, "theirs", "theirs"])
    unset.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    assert connect(file.parent) is mlflow
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_a_deleted_experiment_is_told_in_one_line(file, unset):
    unset.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    execute(file, "UPDATE experiments SET lifecycle_stage = 'deleted'")
    with pytest.raises(StoreError, match="deleted experiment") as caught:
        connect(file.parent)
    assert "\n" not in str(caught.value)


def test_a_file_of_the_users_is_used_and_their_address_kept(tmp_path, file, unset):
    uri = f" {database_uri(file)}"
    unset.setenv("MLFLOW_TRACKING_URI", uri)
    (tmp_path / "project").mkdir()
    connect(tmp_path / "project")
    assert os.environ["MLFLOW_TRACKING_URI"].strip() == uri.strip()
    assert list((tmp_path / "project").iterdir()) == []
    names = execute(file, "SELECT name FROM experiments")
    assert ("counterdoor",) in names
