"""Where Optuna's record of a study is: a SQLite file, PostgreSQL, or a journal file, by URL.

    (nothing)                        optuna.db in the storage folder
    sqlite:////data/optuna.db        another SQLite file
    postgresql://user@host/name      a PostgreSQL database
    journal:////data/optuna.journal  a file that is only appended to, as network file systems like

A password in the URL is used and never written: `resume` finds it in `~/.pgpass`, `$PGPASSWORD` or
`$MEMARCH_DATABASE`.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from memarch.components.errors import SpecError, did_you_mean
from memarch.studies.records.store import Json, create_database

if TYPE_CHECKING:
    import optuna
    import sqlalchemy

VARIABLE = "MEMARCH_DATABASE"
KINDS = ("sqlite", "postgresql", "journal")
CONNECT_SECONDS = 10
TABLES_LOCK = 7_203_001
"""Of PostgreSQL's advisory locks, the one held while Optuna makes its tables."""


def chosen_database(given: str | None, remembered: str | None, *, began: bool) -> str | None:
    """The URL to use: what the command says, what the study began with, or `$MEMARCH_DATABASE`.

    A study stays where it began; the environment may add the password that was not written down.
    """
    environment = os.environ.get(VARIABLE) or None
    if given or not began:
        return given or environment
    if environment is not None and without_password(environment) == remembered:
        return environment
    return remembered


def without_password(url: str) -> str:
    """The URL as it may be written down and shown."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user, _, place = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}@{place}"))


def check_database(url: str | None) -> None:
    """Refuse a URL that cannot be used, and a database that does not answer."""
    if url is None:
        return
    kind = urlsplit(url).scheme
    if kind == "postgres":
        kind = "postgresql"
    if kind not in KINDS:
        raise SpecError(
            f"{without_password(url)!r} is no database that a study can be kept in: give "
            "postgresql://user@host/name, journal:///path or sqlite:///path; "
            f"{did_you_mean(kind, KINDS)}",
            path="--database",
        )
    if kind != "postgresql":
        _check_path(_path(url), url)
        return
    if importlib.util.find_spec("psycopg") is None:
        raise SpecError(
            "PostgreSQL needs psycopg: pip install 'memarch[postgres]'", path="--database"
        )
    import sqlalchemy

    engine = _postgres_engine(url)
    try:
        engine.connect().close()
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise SpecError(
            f"no connection to {without_password(url)}: {first_line(error)}", path="--database"
        ) from None
    finally:
        engine.dispose()


def open_database(url: str | None, storage: Path) -> optuna.storages.BaseStorage:
    """Optuna's storage at this URL, made when it is not there yet."""
    import optuna

    if url is None:
        return _sqlite(storage / "optuna.db")
    kind = urlsplit(url).scheme
    if kind == "sqlite":
        return _sqlite(_path(url))
    if kind == "journal":
        from optuna.storages.journal import JournalFileBackend

        _path(url).parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.JournalStorage(JournalFileBackend(str(_path(url))))
    return _postgres(url)


def trouble_with_connection(error: Exception) -> bool:
    """Whether this is of a database that is away or busy, so that trying again may help."""
    import optuna
    import sqlalchemy

    broken = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, OSError)
    if isinstance(error, (optuna.exceptions.StorageInternalError, *broken)):
        return True
    return isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated


def _path(url: str) -> Path:
    return Path(url.partition("://")[2].removeprefix("/")).expanduser().absolute()


def _check_path(path: Path, url: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
    except OSError as error:
        raise SpecError(f"{url}: cannot be written: {error}", path="--database") from None
    if not path.stat().st_size:
        path.unlink()


def first_line(error: BaseException) -> str:
    """What the database itself said, in one line."""
    inner = error.__cause__ or error
    cause = getattr(inner, "orig", None) or inner
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]


def _sqlite(path: Path) -> optuna.storages.RDBStorage:
    """Write-ahead log, synced at checkpoints of the log.

    A crash of the machine may then lose the last moments, a crash of the driver nothing.
    """
    import optuna
    import sqlalchemy

    create_database(
        path, lambda new: optuna.storages.RDBStorage(f"sqlite:///{new}").engine.dispose()
    )
    patient = {"connect_args": {"timeout": 60}}
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs=patient)

    def relax(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")

    sqlalchemy.event.listen(storage.engine, "connect", relax)
    storage.engine.dispose()  # connections made from here on are relaxed
    return storage


def _postgres_settings() -> Json:
    return {"pool_pre_ping": True, "connect_args": {"connect_timeout": CONNECT_SECONDS}}


def _driver_url(url: str) -> str:
    return f"postgresql+psycopg://{url.partition('://')[2]}"


def _postgres_engine(url: str) -> sqlalchemy.Engine:
    import sqlalchemy

    return sqlalchemy.create_engine(_driver_url(url), **_postgres_settings())


def _postgres(url: str) -> optuna.storages.RDBStorage:
    """Drivers that start together make the tables one after the other."""
    import optuna
    import sqlalchemy

    engine = _postgres_engine(url)
    try:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({TABLES_LOCK})"))
            storage = optuna.storages.RDBStorage(
                _driver_url(url), engine_kwargs=_postgres_settings()
            )
            with suppress(sqlalchemy.exc.SQLAlchemyError):  # goes with the connection anyway
                connection.execute(sqlalchemy.text(f"SELECT pg_advisory_unlock({TABLES_LOCK})"))
            return storage
    finally:
        engine.dispose()
