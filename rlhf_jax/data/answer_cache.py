"""Answers of a paid service and their costs, in an SQLite file.

The largest possible cost of a request is reserved in the file before the request is
sent, and replaced by the actual cost afterwards. A process that is killed in between
leaves its reservation, which counts as spent, since the service may have billed the
request. So the spending limit holds over kills, and over processes that share the file.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

LOCK_SECONDS = 30.0  # longest wait, in seconds, for a process that locks the file
TABLES = (
    "CREATE TABLE IF NOT EXISTS answers "
    "(key TEXT PRIMARY KEY, request TEXT, answer TEXT, cost REAL)",
    "CREATE TABLE IF NOT EXISTS reserved (id INTEGER PRIMARY KEY, most REAL)",
)
# Values in the file may be damaged: only numbers above 0 count.
SUM = "SELECT TOTAL(CASE WHEN typeof({0}) IN ('real', 'integer') THEN MAX({0}, 0) END)"


class CacheError(ValueError):
    """The file of answers cannot be used: no database, locked, read-only, full."""


class SpendingLimitError(ValueError):
    """The next request could cost more than the rest of the spending limit."""


class AnswerCache:
    """A store of answers by key; safe to use from several threads and processes.

    All costs are in one currency, that of the prices.
    """

    def __init__(self, path: Path):
        """Open or make the file.

        Raises:
            CacheError: the file cannot be read and written.
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
        """Return the cached answer, "" if the service gave an empty one, else None."""
        with self._lock, self._clear_errors():
            row = self._connection.execute(
                "SELECT answer FROM answers WHERE key = ?", (key,)
            ).fetchone()
        return row[0] if row and isinstance(row[0], str) else None

    def spent(self) -> float:
        """Return the cost of all answers plus the reservations of lost requests."""
        with self._lock, self._clear_errors():
            return sum(self._sums())

    def reserve(self, most: float, limit: float) -> int:
        """Count `most` as spent from now on; return the reservation's number.

        Raises:
            SpendingLimitError: the sum would exceed the limit; nothing changes.
        """
        with self._transaction() as connection:
            spent, reserved = self._sums()
            if spent + reserved + most > limit:
                raise SpendingLimitError(
                    f"The next answer could cost {most:.6f}; {spent:.6f} of "
                    f"spending_limit={limit} are spent and {reserved:.6f} under way, "
                    "or lost with requests that were killed or cut off. Answers so far "
                    "are kept: raise the limit and start again."
                )
            return connection.execute(
                "INSERT INTO reserved (most) VALUES (?)", (most,)
            ).lastrowid

    def release(self, reservation: int, cost: float = 0.0) -> None:
        """Replace a reservation by the cost of its request, which has no answer."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE reserved SET most = ? WHERE id = ?", (cost, reservation)
            )
            connection.execute("DELETE FROM reserved WHERE most = 0")

    def settle(
        self, reservation: int, key: str, request: str, answer: str, cost: float
    ) -> None:
        """Replace a reservation by its request's answer and cost."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM reserved WHERE id = ?", (reservation,))
            connection.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE "
                "SET answer = excluded.answer, cost = cost + excluded.cost",
                (key, request, answer, cost),
            )

    def _sums(self) -> tuple[float, float]:
        """Return the sum of the answers' costs and the sum of the reservations."""
        return tuple(
            self._connection.execute(f"{SUM.format(column)} FROM {table}").fetchone()[0]
            for column, table in (("cost", "answers"), ("most", "reserved"))
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the statements inside in one transaction: all are written or none."""
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
