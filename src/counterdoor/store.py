"""Where runs are tracked: the project's ``mlflow.db``, or the store of the user's choice.

A database is made under a lock, at a temporary name, and renamed when it is whole: neither first
runs at once nor a kill at any moment lose anything. What cannot be used is told in one line within
seconds, where MLflow would try for minutes.

MLflow is imported when the store is needed, not before.
"""

import glob
import logging
import os
import shlex
import socket
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock, Timeout

EXPERIMENT = "counterdoor"
VARIABLE = "MLFLOW_TRACKING_URI"
MAKING_SECONDS = 60.0
"""So long a process waits for another that makes the database; it takes seconds."""
LOCKED_SECONDS = 5.0
"""So long a run waits for a database that others write to; a write takes milliseconds."""
CHECK_SECONDS = 2.0
"""So long the pages of a large database are checked before a run; those of small ones all are."""
CHECK_STEPS = 1000
"""Of SQLite's, between two looks at the clock."""
ANSWER_SECONDS = 4
"""So long a server may take for its first answer, at each of two tries."""
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
HEADER = b"SQLite format 3\x00"
JOURNALS = ("-journal", "-wal", "-shm")
"""What SQLite puts beside a database while it is written to."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


class StoreError(ValueError):
    """The store of runs cannot be used; the text says what is wrong and what to do."""


def configured() -> str:
    """The store that the user has chosen by ``MLFLOW_TRACKING_URI``; empty for the project's."""
    return os.environ.get(VARIABLE, "").strip()


def connect(project_path: Path, *, writes: bool = True) -> Any:
    """Point MLflow to this project's store and give the module back.

    That is ``MLFLOW_TRACKING_URI`` if set, or ``mlflow.db`` and ``mlartifacts/`` in
    the project's folder, whatever the working directory is. The experiment is
    ``MLFLOW_EXPERIMENT_NAME`` if set, or ``counterdoor``. What is not there yet is made.

    Args:
        project_path: the project's root.
        writes: whether a run is about to be written, or runs are only read.

    Raises:
        StoreError: if the store cannot be used.
    """
    _set_defaults()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    if uri := configured():
        with _told(uri):
            _check_uri(uri)
            file = database_file(uri)
        if file is not None:
            use_database(file, writes=writes)
        with _told(uri):
            if urlsplit(uri).scheme in ("http", "https"):
                return _patiently(lambda: _point(uri, name))
            return _point(uri, name)
    file = project_path / "mlflow.db"
    artifacts = (project_path / "mlartifacts").as_uri()
    use_database(file, writes=writes, experiment=name, artifacts=artifacts)
    uri = database_uri(file)
    with _told(uri):
        mlflow = _point(uri, name, artifacts)
    # MLflow notes it there too, where it would look like the user's wish.
    os.environ.pop(VARIABLE, None)
    return mlflow


def _set_defaults() -> None:
    # Looking for a Databricks job, MLflow would import IPython.
    # MLflow tries what it logs, on a GPU if there is one; the exported nets are bound to the CPU.
    os.environ.setdefault("MLFLOW_DEFAULT_PREDICTION_DEVICE", "cpu")
    os.environ.setdefault("MLFLOW_ENABLE_SGC_RUN_RESUMPTION_FOR_DATABRICKS_JOBS", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)


def _point(uri: str, name: str, artifacts: str | None = None) -> Any:
    import mlflow

    mlflow.set_tracking_uri(uri)
    if artifacts is not None and mlflow.get_experiment_by_name(name) is None:
        try:
            mlflow.create_experiment(name, artifact_location=artifacts)
        except mlflow.MlflowException:
            if mlflow.get_experiment_by_name(name) is None:
                raise
            logger.debug("another process has just created the experiment %s", name)
    mlflow.set_experiment(name)
    return mlflow


# Addresses


def database_uri(file: Path) -> str:
    """The address of an SQLite file for MLflow, whatever characters its path has."""
    if quote(str(file)) == str(file):
        return f"sqlite:///{file}"
    from sqlalchemy.engine import URL

    # With the driver's name, MLflow does not make folders of the address as it stands.
    address = URL.create(
        "sqlite+pysqlite", database=f"file:{quote(str(file))}", query={"uri": "true"}
    )
    return address.render_as_string(hide_password=False)


def database_file(uri: str) -> Path | None:
    """The file of an SQLite address; None for other stores, and for a database in memory."""
    if urlsplit(uri).scheme.partition("+")[0] != "sqlite":
        return None
    from sqlalchemy.engine import make_url

    address = make_url(uri)
    if address.host:
        raise ValueError("a path needs three slashes, sqlite:///FILE, and four from the root")
    database = address.database or ":memory:"
    if address.query.get("uri") == "true" and database.startswith("file:"):
        database = unquote(urlsplit(database).path)
    if database == ":memory:" or address.query.get("mode") == "memory":
        return None
    return Path(database)


def _check_uri(uri: str) -> None:
    parts = urlsplit(uri)
    kind = parts.scheme.partition("+")[0]
    _ = parts.port  # raises ValueError if it is no number
    if kind in ("http", "https") and not parts.hostname:
        raise ValueError("it names no host")
    if kind in PORTS and parts.hostname:
        from sqlalchemy import create_engine

        address = (parts.hostname, parts.port or PORTS[kind])
        with socket.create_connection(address, timeout=ANSWER_SECONDS):
            pass
        # MLflow would try ten times to connect with a wrong password.
        engine = create_engine(uri)
        engine.connect().close()
        engine.dispose()


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """Tell whatever MLflow and its libraries raise in one line that says what to do."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        shown = _without_password(uri)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = reason.replace(uri, shown)[:300].rstrip(". ")
        todo = (
            f"give {VARIABLE} the address of a server that runs (http://HOST:PORT) or a file "
            "(sqlite:////PATH/runs.db), or unset it to track in mlflow.db of the project"
            if configured()
            else "mend that, or move mlflow.db away, then a new one is made"
        )
        raise StoreError(f"runs cannot be tracked in {shown!r} ({reason}): {todo}") from error


def _without_password(uri: str) -> str:
    scheme, mark, rest = uri.partition("://")
    authority, slash, path = rest.partition("/")
    login, at, host = authority.rpartition("@")
    return f"{scheme}{mark}{'***' if login else ''}{at}{host}{slash}{path}"


def _patiently(ask: Callable[[], T]) -> T:
    """Ask a server twice, and wait for seconds each; what the user has set holds.

    In the middle of a run MLflow tries for minutes, so that a server may be started anew.
    """
    limits = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(ANSWER_SECONDS),
    }
    ours = {key: value for key, value in limits.items() if key not in os.environ}
    os.environ.update(ours)
    try:
        try:
            return ask()
        except Exception as error:
            logger.debug("the store of runs is asked again: %s", error)
            time.sleep(1)
            return ask()
    finally:
        for key in ours:
            os.environ.pop(key, None)


# Database files


def use_database(
    file: Path, *, writes: bool = True, experiment: str | None = None, artifacts: str | None = None
) -> None:
    """See to it that an SQLite file is a whole database of the installed MLflow's.

    Args:
        file: which; made if it is not there or empty.
        writes: whether it is about to be written to.
        experiment: one that a new database has from the start.
        artifacts: the folder of the artifacts of a new database, as URI; MLflow's own if None.

    Raises:
        StoreError: saying why it cannot be used, and what to do.
    """
    target = Path(os.path.realpath(file))  # a link to a larger disk stays a link
    try:
        if not _is_there(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{target}.lock", timeout=MAKING_SECONDS, thread_local=False) as lock:
                if not _is_there(target):
                    _make(target, experiment, artifacts)
                Path(lock.lock_file).unlink(missing_ok=True)  # who waits for it finds the database
        _check(target, writes)
    except Timeout:
        raise StoreError(
            f"another process has been making {file} for {MAKING_SECONDS:.0f} s: wait until it has "
            "ended, or end it, and start again"
        ) from None
    except OSError as error:
        raise StoreError(
            f"the database of runs {file} cannot be used ({error.strerror or error}): see to it "
            f"that you may read and write it and its folder, or set {VARIABLE}"
        ) from error


def _is_there(file: Path) -> bool:
    """Whether there is anything that is not an empty file, which a killed process may leave."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(status.st_mode) or status.st_size > 0


def _make(file: Path, experiment: str | None, artifacts: str | None) -> None:
    """Make it at a temporary name, then rename it. The caller holds the lock."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    prefix = f".{file.name}.making-"
    for stray in file.parent.glob(f"{glob.escape(prefix)}*"):  # its maker was killed
        stray.unlink(missing_ok=True)
    whole = file.with_name(f"{prefix}{os.getpid()}")
    try:
        store: Any = SqlAlchemyStore(  # type: ignore[no-untyped-call]
            database_uri(whole), artifacts or DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
        )
        if experiment is not None:
            store.create_experiment(experiment, artifact_location=artifacts)
        store.engine.dispose()
        SqlAlchemyStore._engine_map.pop(database_uri(whole), None)
        if file.exists():
            _ensure_unused(file)
        for journal in JOURNALS:  # of a database that is gone: SQLite would undo ours with it
            Path(f"{file}{journal}").unlink(missing_ok=True)
        whole.replace(file)
    except (OSError, StoreError):
        raise
    except Exception as error:  # SQLAlchemy's, for a full disk or a file system without locks
        raise OSError(None, str(error).partition("\n")[0]) from error
    finally:
        for rest in ("", *JOURNALS):
            Path(f"{whole}{rest}").unlink(missing_ok=True)


def _ensure_unused(file: Path) -> None:
    """Raise ``StoreError`` if another program has just begun to fill an empty database."""
    with closing(_opened(file)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            raise _locked(file) from error
        if _is_there(file):
            raise StoreError(f"another program has just made {file}: start again")


def _opened(file: Path) -> sqlite3.Connection:
    mode = "rw" if os.access(file, os.W_OK) else "ro"
    address = f"file:{quote(str(file))}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=LOCKED_SECONDS, isolation_level=None)


def _locked(file: Path) -> StoreError:
    return StoreError(
        f"another process has locked the database of runs {file} for more than "
        f"{LOCKED_SECONDS:.0f} s: wait until it has ended, or end it, and start again"
    )


def _aside(file: Path) -> str:
    moved = shlex.join(["mv", str(file), f"{file}.aside"])
    return f"move it away ({moved}) and start again, then a new one is made; or set {VARIABLE}"


def _check(file: Path, writes: bool) -> None:
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "not a file"
        raise StoreError(f"{file} is {kind}, where runs are tracked in a database: {_aside(file)}")
    with file.open("rb") as opened:
        head = opened.read(len(HEADER))
    if head != HEADER:
        raise StoreError(f"{file} is not an SQLite database, or damaged: {_aside(file)}")
    if writes and not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)):
        raise PermissionError(None, "no permission to write")
    with closing(_opened(file)) as connection:
        try:
            connection.execute("BEGIN")  # nobody writes while we read
            tables, revisions = _schema(connection)
            if problem := _cut(connection, file) or _damage(connection):
                raise StoreError(f"{file} is damaged ({problem}): {_aside(file)}")
            connection.execute("COMMIT")
            if writes:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise _locked(file) from error
            raise OSError(None, str(error)) from error
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{file} is damaged ({error}): {_aside(file)}") from error
    _check_schema(file, tables, revisions)


def _schema(connection: sqlite3.Connection) -> tuple[set[str], list[str]]:
    """The names of the tables, and the version of MLflow's schema."""
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    tables = {str(name) for (name,) in rows}
    if "alembic_version" not in tables:
        return tables, []
    rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    return tables, [str(version) for (version,) in rows]


def _cut(connection: sqlite3.Connection, file: Path) -> str:
    """SQLite takes what is missing of the last page for zeros."""
    (page,) = connection.execute("PRAGMA page_size").fetchone()
    return "its last page is cut" if file.stat().st_size % page else ""


def _damage(connection: sqlite3.Connection) -> str:
    """What SQLite finds wrong with the pages, as far as it comes; empty if nothing."""
    ends = time.monotonic() + CHECK_SECONDS
    connection.set_progress_handler(lambda: time.monotonic() > ends, CHECK_STEPS)
    try:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return ""
    finally:
        connection.set_progress_handler(None, 0)
    return "" if found == "ok" else str(found).splitlines()[-1]


def _check_schema(file: Path, tables: set[str], revisions: list[str]) -> None:
    if not {"experiments", "runs"} <= tables:
        whose = "is a database of another program" if tables else "is a database without tables"
        raise StoreError(f"{file} {whose}, not one of MLflow's runs: {_aside(file)}")
    import mlflow
    from alembic.script import ScriptDirectory

    migrations = Path(mlflow.__file__).parent / "store" / "db_migrations"
    scripts = ScriptDirectory(str(migrations))
    if revisions == scripts.get_heads():
        return
    if not revisions:
        raise StoreError(f"{file} was not made to its end: {_aside(file)}")
    known = {script.revision for script in scripts.walk_revisions()}
    if not known.issuperset(revisions):
        raise StoreError(
            f"{file} was made by a newer MLflow than {mlflow.__version__} (schema "
            f"{', '.join(revisions)}): pip install --upgrade mlflow, or {_aside(file)}"
        )
    upgrade = shlex.join(["mlflow", "db", "upgrade", database_uri(file)])
    raise StoreError(
        f"{file} was made by an older MLflow than {mlflow.__version__} (schema "
        f"{', '.join(revisions)}): copy it, then run {upgrade}; or {_aside(file)}"
    )
