"""The metadata file under threads, processes and damage."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from blobtee.content import Database
from blobtee.content.database import among, rows
from blobtee.errors import (
    Closed,
    DataLoss,
    FailedPrecondition,
    Internal,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    StorageError,
)

STEPS = ("CREATE TABLE t (n INTEGER);\nCREATE INDEX i ON t (n);", "INSERT INTO t VALUES (7);")


@pytest.fixture(params=["file", "memory"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "a name?with#odd%characters.db" if request.param == "file" else None)
    yield made
    made.close()


def numbers(database: Database) -> list[int]:
    with database.reading() as connection:
        return [row[0] for row in connection.execute("SELECT n FROM t ORDER BY n")]


def test_each_step_is_run_once(database: Database) -> None:
    database.migrate("a", STEPS[:1])
    assert numbers(database) == []
    database.migrate("a", STEPS)
    database.migrate("a", STEPS)
    assert numbers(database) == [7]
    database.migrate("b", ("CREATE TABLE u (n INTEGER)",))


def test_a_step_that_fails_leaves_nothing(database: Database) -> None:
    with pytest.raises(Internal):
        database.migrate("a", (*STEPS, "INSERT INTO nowhere VALUES (1);"))
    database.migrate("a", STEPS)
    assert numbers(database) == [7]


def test_tables_of_a_newer_version_are_refused(database: Database) -> None:
    database.migrate("a", STEPS)
    with pytest.raises(FailedPrecondition, match="newer version"):
        database.migrate("a", STEPS[:1])


def test_tables_with_a_version_that_is_no_number_are_told(database: Database) -> None:
    database.migrate("room", [])
    with database.transaction() as connection:
        connection.execute("UPDATE migrations SET version = 'seven'")
    with pytest.raises(DataLoss):
        database.migrate("room", [])


def test_a_transaction_that_an_interrupt_left_open_locks_nobody_out(tmp_path: Path) -> None:
    one, other = Database(tmp_path / "db"), Database(tmp_path / "db")
    with one._connection() as connection:
        connection.execute("BEGIN IMMEDIATE")
    with other.transaction(), closing(other):
        pass
    with one.transaction(), closing(one):
        pass


def test_a_path_of_any_bytes_will_do(tmp_path: Path) -> None:
    directory = tmp_path / os.fsdecode(b"\xff ?#%41")
    directory.mkdir()
    with closing(Database(directory / "db")) as database:
        database.migrate("room", [])
    assert (directory / "db").exists()


def test_a_transaction_is_all_or_nothing(database: Database) -> None:
    database.migrate("a", STEPS)

    def change_and_fail() -> None:
        with database.transaction() as connection:
            connection.execute("INSERT INTO t VALUES (1)")
            raise NotFound("changed my mind")

    with pytest.raises(NotFound):
        change_and_fail()
    assert numbers(database) == [7]
    with database.transaction() as connection:
        connection.execute("INSERT INTO t VALUES (1)")
    assert numbers(database) == [1, 7]


def test_a_transaction_inside_another_joins_it(database: Database) -> None:
    database.migrate("a", STEPS)

    def change_inside_and_fail_outside() -> None:
        with database.transaction():
            with database.transaction() as connection:
                connection.execute("INSERT INTO t VALUES (1)")
            assert numbers(database) == [1, 7]
            raise NotFound("changed my mind")

    with pytest.raises(NotFound):
        change_inside_and_fail_outside()
    assert numbers(database) == [7]


def test_a_statement_that_makes_no_sense_is_a_defect_of_ours(database: Database) -> None:
    with pytest.raises(Internal), database.transaction() as connection:
        connection.execute("SELECT nonsense")
    with pytest.raises(Internal), database.reading(), database.transaction():
        pass


def test_threads_take_turns_to_write_and_nothing_is_lost(database: Database) -> None:
    database.migrate("a", ("CREATE TABLE t (n INTEGER); INSERT INTO t VALUES (0);",))
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                with database.transaction() as connection:
                    (n,) = connection.execute("SELECT n FROM t").fetchone()
                    connection.execute("UPDATE t SET n = ?", (n + 1,))
                numbers(database)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert numbers(database) == [120]


def test_a_closed_database_says_so(database: Database) -> None:
    database.close()
    database.close()
    with pytest.raises(Closed), database.reading():
        pass
    with pytest.raises(Closed), database.transaction():
        pass


def test_many_processes_create_and_write_one_file(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from blobtee.content.database import Database\n"
        "database = Database(Path(sys.argv[1]))\n"
        "database.migrate('a', ('CREATE TABLE t (n INTEGER); INSERT INTO t VALUES (0);',))\n"
        "for _ in range(10):\n"
        "    with database.transaction() as connection:\n"
        "        connection.execute('UPDATE t SET n = n + 1')\n"
        "database.close()\n"
    )
    path = tmp_path / "x.db"
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(6)]
    assert [process.wait() for process in processes] == [0] * 6
    database = Database(path)
    assert numbers(database) == [60]
    database.close()


def insert(number: int) -> Callable[[sqlite3.Connection], None]:
    def work(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (?)", (number,))

    return work


def fail(connection: sqlite3.Connection) -> None:
    insert(1000)(connection)
    raise NotFound("not there")


def test_works_that_succeed_are_one_transaction(database: Database) -> None:
    database.migrate("a", STEPS[:1])
    changes: list[int] = []

    def total(connection: sqlite3.Connection) -> None:
        changes.append(connection.in_transaction + connection.total_changes)

    assert database.transactions([insert(1), total, insert(2), total]) == [None] * 4
    assert changes[1] == changes[0] + 1
    assert numbers(database) == [1, 2]
    assert database.transactions([]) == []


def test_a_work_that_fails_leaves_the_others_theirs(database: Database) -> None:
    database.migrate("a", STEPS[:1])
    first, error, last = database.transactions([insert(1), fail, insert(2)])
    assert (first, last) == (None, None)
    assert isinstance(error, NotFound)
    assert numbers(database) == [1, 2]
    (alone,) = database.transactions([fail])
    assert isinstance(alone, NotFound)
    assert numbers(database) == [1, 2]


def test_works_inside_a_transaction_are_a_part_of_it(database: Database) -> None:
    database.migrate("a", STEPS[:1])
    with pytest.raises(NotFound), database.transaction():  # noqa: PT012 - the block is the scenario
        assert database.in_transaction
        assert database.transactions([insert(1)]) == [None]
        assert numbers(database) == [1]
        raise NotFound("the block ends")
    assert not database.in_transaction
    assert numbers(database) == []


def test_what_keeps_a_transaction_from_beginning_keeps_all_works(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.db")
    database.close()
    errors = database.transactions([insert(1), insert(2)])
    assert [type(error) for error in errors] == [Closed, Closed]


def test_a_reader_does_not_wait_for_a_writer_of_another_process(tmp_path: Path) -> None:
    one, two = Database(tmp_path / "x.db"), Database(tmp_path / "x.db")
    one.migrate("a", STEPS)
    with one.transaction() as connection:
        connection.execute("INSERT INTO t VALUES (1)")
        assert numbers(two) == [7]
    assert numbers(two) == [1, 7]
    one.close()
    two.close()


def test_a_writer_that_waits_too_long_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blobtee.content.database.BUSY_SECONDS", 0.05)
    one, two = Database(tmp_path / "x.db"), Database(tmp_path / "x.db")
    with one.transaction(), pytest.raises(ResourceExhausted), two.transaction():
        pass
    with two.transaction():
        pass
    one.close()
    two.close()


@pytest.mark.parametrize("content", [b"no database" * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_damaged_file_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(content)
    with pytest.raises(DataLoss):
        Database(path)


def test_a_file_that_is_damaged_in_the_middle_is_told_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    database = Database(path)
    database.migrate("a", STEPS[:1])
    with database.transaction() as connection:
        connection.executemany("INSERT INTO t VALUES (?)", ((n,) for n in range(20_000)))
    database.close()
    with path.open("r+b") as file:
        file.seek(20_000)
        file.write(b"\xa5" * 100_000)
    database = Database(path)
    with pytest.raises(DataLoss):
        numbers(database)
    database.close()


def test_a_directory_in_its_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Database(tmp_path)


def test_read_only_reads_and_refuses_to_write(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    Database(path, read_only=True).close()
    assert not path.exists()
    writer = Database(path)
    writer.migrate("a", STEPS)
    reader = Database(path, read_only=True)
    reader.migrate("a", STEPS)
    assert numbers(reader) == [7]
    with pytest.raises(PermissionDenied), reader.transaction():
        pass
    with pytest.raises(PermissionDenied):
        reader.migrate("a", (*STEPS, "CREATE TABLE u (n INTEGER)"))
    with pytest.raises(FailedPrecondition):
        reader.migrate("a", STEPS[:1])
    reader.close()
    writer.close()


def test_commits_are_synced(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.db")
    with database.transaction() as connection:
        assert isinstance(connection, sqlite3.Connection)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


def test_lists_of_any_length_are_asked_for_in_few_words() -> None:
    """Each text of a statement stays prepared, on every connection."""
    texts = set()
    for count in range(301):
        names = [f"name {number}" for number in range(count)]
        marks, values = among(names)
        assert marks.count("?") == len(values)
        assert list(dict.fromkeys(values)) == names
        texts.add(marks)
    assert len(texts) <= 11


def test_rows_of_any_number_are_written_in_few_words_and_none_of_them_twice(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.db")
    database.migrate("a", ("CREATE TABLE things (name TEXT PRIMARY KEY, labels TEXT NOT NULL)",))
    texts = set()
    for count in (*range(1, 70), 300):
        wanted = [(f"{count}-{number}", "x" * (count - number)) for number in reversed(range(count))]
        marks, values = rows(wanted)
        texts.add(marks)
        with database.transaction() as connection:
            done = connection.execute(f"INSERT OR IGNORE INTO things VALUES {marks}", values)
            assert done.rowcount == count
            found = connection.execute("SELECT * FROM things WHERE name LIKE ?", (f"{count}-%",)).fetchall()
        assert sorted(found) == sorted(wanted)
    assert len(texts) <= 9
    database.close()


def test_a_long_row_is_given_to_the_database_once() -> None:
    """It copies what it is given: of labels that is a MiB, and some dozens of them come at once."""
    long = ("a", "x" * (1 << 20))
    for wanted in ([("b", "{}")] * 32 + [long], [long] + [("b", "{}")] * 32):
        _, values = rows(wanted)
        assert len(values) == 128
        assert values.count(long[1]) == 1
