"""Databases, servers and paths that runs cannot be tracked in, or hardly.

Each is given to a real ``kedro run`` of the first stage and to ``kedro results``. The right outcome
is one of two: they work, and the run is in the database of the project; or they are refused in
one line that says what to do, with nothing written, soon.
"""

import gzip
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import warm
from kills import left_over, states

SOON = 12.0
"""Seconds, besides what the same command takes if all is well."""

Prepare = Callable[[Path], object]
"""Spoils the database of a fresh project."""


def kedro(folder: Path, *arguments: str, **variables: str) -> tuple[int, str, float]:
    """Exit code, output and seconds of a command in a project."""
    began = time.monotonic()
    output = folder.parent / "output.txt"
    process = warm.start(folder, *arguments, output=output, **variables)
    code, told = warm.finished(process, output)
    output.unlink()
    return code, told, time.monotonic() - began


RESULTS = ("results", "--format", "csv")


def not_refused(folder: Path, usual: dict[tuple[str, ...], float], **variables: str) -> str | None:
    """What was wrong with how run and results were refused, if anything."""
    for command in (warm.INGEST, RESULTS):
        code, output, seconds = kedro(folder, *command, **variables)
        lines = output.strip().splitlines()
        told = [line for line in lines if line.startswith("Error: ")]
        if code != 1 or len(told) != 1 or lines[-1] != told[0] or "Traceback" in output:
            return f"{command[0]}: exit code {code}, {lines[-3:]}"
        if not any(word in told[0] for word in ("move it away", "MLFLOW_TRACKING_URI", "start ag")):
            return f"{command[0]} does not say what to do: {told[0]}"
        if seconds > 2 * usual[command] + SOON:
            return f"{command[0]} was refused after {seconds:.0f} s"
    written = [path.name for path in (folder / "data").rglob("*") if path.is_file()]
    return f"written: {written}" if written else None


def not_working(folder: Path, **variables: str) -> str | None:
    """What was wrong with a run that should have worked, if anything."""
    for command in (warm.INGEST, RESULTS):
        code, output, _ = kedro(folder, *command, **variables)
        if code:
            return f"{command[0]}: exit code {code}, {output.strip().splitlines()[-3:]}"
    if variables:
        return None
    if states(folder)[-1:] != ["FINISHED"]:
        return f"the database has {states(folder)}"
    files = left_over(folder)
    return f"left over: {files}" if files else None


# Databases


def cut(length: int) -> Prepare:
    """Only the first bytes are left; counted from the end if negative."""

    def prepare(file: Path) -> None:
        file.write_bytes(file.read_bytes()[:length])

    return prepare


def overwritten(start: int, with_: bytes) -> Prepare:
    """Other bytes at a place."""

    def prepare(file: Path) -> None:
        with file.open("r+b") as opened:
            opened.seek(start)
            opened.write(with_)

    return prepare


def instead(content: bytes) -> Prepare:
    """A file of another kind."""
    return lambda file: file.write_bytes(content)


def executed(*statements: str, anew: bool = False) -> Prepare:
    """SQL on the database, or on a new one."""

    def prepare(file: Path) -> None:
        if anew:
            file.unlink()
        with closing(sqlite3.connect(file)) as database:
            for statement in statements:
                database.execute(statement)
            database.commit()

    return prepare


def nothing(_: Path) -> None:
    """As it is."""


def gone(then: Prepare = nothing) -> Prepare:
    """No database, but something else."""

    def prepare(file: Path) -> None:
        file.unlink()
        then(file)

    return prepare


def emptied_with_journal(file: Path) -> None:
    """An empty file, and the journal of the database that it was."""
    file.write_bytes(b"")
    Path(f"{file}-journal").write_bytes(os.urandom(4096))


def strays(file: Path) -> None:
    """What killed makers leave, of this version and of none."""
    file.with_name(f".{file.name}.making-1").write_bytes(os.urandom(4096))
    file.with_name(f".{file.name}.making-1-journal").write_bytes(os.urandom(512))
    Path(f"{file}.lock").touch()


def linked_to_nothing(file: Path) -> None:
    """A link to a file in another folder that is not there yet."""
    elsewhere = file.parent / "elsewhere"
    elsewhere.mkdir()
    file.symlink_to(elsewhere / "runs.db")


GOOD: dict[str, Prepare] = {
    "whole": nothing,
    "absent": gone(),
    "empty file": instead(b""),
    "empty file with a journal": emptied_with_journal,
    "absent, with a journal": gone(lambda file: Path(f"{file}-journal").write_bytes(b"\xd9" * 600)),
    "absent, with the rest of a killed maker": gone(strays),
    "a link to a place that is empty": gone(linked_to_nothing),
}
BAD: dict[str, Prepare] = {
    "cut after the header": cut(100),
    "cut after a page": cut(4096),
    "cut after half": cut(450_000),
    "cut by a page": cut(-4096),
    "cut by a byte": cut(-1),
    "one byte": cut(1),
    "header overwritten": overwritten(0, b"\0" * 100),
    "schema overwritten": overwritten(100, os.urandom(3000)),
    "pages overwritten": overwritten(8192, b"\xff" * 65536),
    "text": instead(b"runs\n"),
    "gzip": instead(gzip.compress(b"runs" * 1000)),
    "a folder": gone(Path.mkdir),
    "a pipe": gone(os.mkfifo),
    "a link to a folder": gone(lambda file: file.symlink_to(file.parent / "conf")),
    "a link to itself": gone(lambda file: file.symlink_to(file.name)),
    "no tables": executed("CREATE TABLE x (y)", "DROP TABLE x", anew=True),
    "of another program": executed("CREATE TABLE songs (title TEXT)", anew=True),
    "of another program with alembic": executed(
        "CREATE TABLE alembic_version (version_num TEXT)",
        "INSERT INTO alembic_version VALUES ('abc')",
        anew=True,
    ),
    "of a newer MLflow": executed("UPDATE alembic_version SET version_num = 'f00f00f00f00'"),
    "of an older MLflow": executed("UPDATE alembic_version SET version_num = '451aebb31d03'"),
    "made half": executed("DELETE FROM alembic_version"),
    "without the table of runs": executed("PRAGMA foreign_keys = OFF", "DROP TABLE runs"),
}


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another process writes to the database and does not end."""
    code = (
        "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "c.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); time.sleep(3600)"
    )
    command = [sys.executable, "-c", code, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            yield
        finally:
            holder.kill()


# Servers


@contextmanager
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def answering(status: int, body: bytes, **headers: str) -> Iterator[str]:
    """A server that answers everything the same."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


SERVERS: dict[str, Callable[[], object]] = {
    "silent": silent,
    "500": lambda: answering(500, b"oops"),
    "503 for an hour": lambda: answering(503, b"later", Retry_After="3600"),
    "401": lambda: answering(401, b"who are you?"),
    "404 in HTML": lambda: answering(404, b"<html>\n<body>\nnothing here</body></html>"),
    "another program's page": lambda: answering(200, b"<html>\n<h1>hello</h1></html>"),
    "another program's JSON": lambda: answering(200, b"[1, 2]"),
    "sent round in circles": lambda: answering(302, b"", Location="/"),
}
ADDRESSES = (
    "http://127.0.0.1:9",
    "https://127.0.0.1:9",
    "http://user:secret@127.0.0.1:9",
    "http://",
    "http://127.0.0.1:port",
    "http://[::1",
    "htp://127.0.0.1:5000",
    "127.0.0.1:5000",
    "sqlite://runs.db",
    "sqlite:////proc/nowhere/runs.db",
    "postgresql://user:secret@127.0.0.1:9/runs",
    "mysql://127.0.0.1:9/runs",
    "file:///proc/nowhere",
    "?",
)
PATHS = ("p?q", "p#q", "p%q", "p%3Fq", "p q", "pæ中", "p'q", 'p"q', "p&uri=true", "p;q", "p:q@r")


def attempts(work: Path, least: int) -> Iterator[tuple[str, str | None]]:
    """All of the above, and databases cut at random until ``least`` were tried."""
    first = warm.project_of_few_images(work / "first")
    if wrong := not_working(first):
        raise SystemExit(f"a usual run does not work: {wrong}")
    base = work / "base.db"
    shutil.copy(first / "mlflow.db", base)
    usual = {command: kedro(first, *command)[2] for command in (warm.INGEST, RESULTS)}
    tried = 0

    def fresh(database: bool = True, name: str = "project") -> Path:
        nonlocal tried
        tried += 1
        folder = work / str(tried) / name
        folder.mkdir(parents=True)
        folder.rmdir()
        warm.project_of_few_images(folder)
        if database:
            shutil.copy(base, folder / "mlflow.db")
        return folder

    for name, prepare in GOOD.items():
        folder = fresh()
        prepare(folder / "mlflow.db")
        yield f"database: {name}", not_working(folder)
    for name, prepare in BAD.items():
        folder = fresh()
        prepare(folder / "mlflow.db")
        yield f"database: {name}", not_refused(folder, usual)
    folder = fresh()
    with locked(folder / "mlflow.db"):
        yield "database: locked", not_refused(folder, usual)
    for name, server in SERVERS.items():
        folder = fresh(database=False)
        with server() as address:
            yield f"server: {name}", not_refused(folder, usual, MLFLOW_TRACKING_URI=address)
    for address in ADDRESSES:
        wrong = not_refused(fresh(database=False), usual, MLFLOW_TRACKING_URI=address)
        yield f"address: {address}", wrong
    for name in PATHS:
        folder = fresh(database=False, name=name)
        wrong = not_working(folder)
        beside = sorted(path.name for path in folder.parent.iterdir())
        yield f"path: {name}", wrong or (f"beside it: {beside}" if beside != [name] else None)
    for name in PATHS[:3]:
        folder = fresh(database=False)
        elsewhere = folder.parent / name.replace("?", "%3F")
        uri = f"sqlite:///{elsewhere / 'theirs.db'}"
        yield f"address: {uri}", not_working(folder, MLFLOW_TRACKING_URI=uri)
    draw = random.Random(0)
    while tried < least:
        folder = fresh()
        length = draw.randrange(1, base.stat().st_size)
        cut(length)(folder / "mlflow.db")
        yield f"database: cut after {length} bytes", not_refused(folder, usual)
