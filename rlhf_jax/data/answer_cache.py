"""Answers of a paid service and what they cost, in an SQLite file.

The money that a request can cost is written to the file before the request is sent, and
replaced by what it did cost afterwards. A process that is killed in between leaves its
reservation, which counts as spent: the service may have billed it. So the spending
limit holds over kills, and over processes that share the file.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

LOCK_SECONDS = 30.0  # how long another process may hold the file
TABLES = (
    "CREATE TABLE IF NOT EXISTS answers "
    "(key TEXT PRIMARY KEY, request TEXT, answer TEXT, cost REAL)",
    "CREATE TABLE IF NOT EXISTS reserved (id INTEGER PRIMARY KEY, most REAL)",
)
# What stands in the file may be damaged: only numbers above 0 count.
SUM = "SELECT TOTAL(CASE WHEN typeof({0}) IN ('real', 'integer') THEN MAX({0}, 0) END)"


class CacheError(ValueError):
    """The file of answers cannot be used: no database, locked, read-only, full."""


class SpendingLimitError(ValueError):
    """The next request could cost more than is left."""


class AnswerCache:
    """Answers by key; safe to use from several threads and processes.

    Costs are in any one currency.
    """

    def __init__(self, path: Path):
        """Open or make the file.

        Raises:
            CacheError: it cannot be read and written.
        """
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._error(error) from None
        with self._clear_errors():
            self._connection = sqlite3.connect(
                path,
                timeout=LOCK_SECONDS,
                isolation_level=None,  # transactions begin where they are written
                check_same_thread=False,
            )
        try:
            with self._transaction() as connection:
                for table in TABLES:
                    connection.execute(table)
                connection.execute("SELECT key, request, answer, cost FROM answers")
                connection.execute("SELECT id, most FROM reserved")
        except CacheError:
            self.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def find(self, key: str) -> str | None:
        """The answer, "" where the service gave none; None: not known."""
        with self._lock, self._clear_errors():
            row = self._connection.execute(
                "SELECT answer FROM answers WHERE key = ?", (key,)
            ).fetchone()
        return row[0] if row and isinstance(row[0], str) else None

    def spent(self) -> float:
        """What the answers have cost, and what requests without an outcome may have."""
        with self._lock, self._clear_errors():
            return sum(self._sums())

    def reserve(self, most: float, limit: float) -> int:
        """Count `most` as spent from now on; the reservation's number.

        Raises:
            SpendingLimitError: that would be more than the limit; nothing changes.
        """
        with self._transaction() as connection:
            spent, reserved = self._sums()
            if spent + reserved + most > limit:
                raise SpendingLimitError(
                    f"The next answer could cost {most:.6f}; {spent:.6f} of "
                    f"spending_limit={limit} are spent and {reserved:.6f} under way, "
                    "or lost with requests that were killed or cut off. What is "
                    "answered is kept: raise the limit and start again."
                )
            return connection.execute(
                "INSERT INTO reserved (most) VALUES (?)", (most,)
            ).lastrowid

    def release(self, reservation: int, cost: float = 0.0) -> None:
        """Put what a request without an answer did cost in place of its reservation."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE reserved SET most = ? WHERE id = ?", (cost, reservation)
            )
            connection.execute("DELETE FROM reserved WHERE most = 0")

    def settle(
        self, reservation: int, key: str, request: str, answer: str, cost: float
    ) -> None:
        """Keep an answer and what it did cost, in place of its reservation."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM reserved WHERE id = ?", (reservation,))
            connection.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE "
                "SET answer = excluded.answer, cost = cost + excluded.cost",
                (key, request, answer, cost),
            )

    def _sums(self) -> tuple[float, float]:
        """Of the answers and of the reservations."""
        return tuple(
            self._connection.execute(f"{SUM.format(column)} FROM {table}").fetchone()[0]
            for column, table in (("cost", "answers"), ("most", "reserved"))
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is executed inside is written, or nothing."""
        with self._lock, self._clear_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.rollback()
                raise
            self._connection.execute("COMMIT")

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._error(error) from None

    def _error(self, error: Exception) -> CacheError:
        return CacheError(
            f"{self._path}, which keeps the service's answers, cannot be used: {error}."
            " Move it away to begin a new one, or end the process that holds it."
        )
