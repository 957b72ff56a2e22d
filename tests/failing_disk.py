"""A disk that does not keep what it was given: SQLite's files whose sync fails, as `fsync` tells it of a broken one."""

import ctypes
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

IOERR_FSYNC = 1034
FILE_POINTER, JOURNAL_POINTER = 7, 28  # of sqlite3_file_control: the database's file, and its log's
SYNC = 5  # the place of xSync in sqlite3_io_methods, counted in pointers
METHODS_POINTERS = 20  # of these tables, more than any has

_Sync = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)


@contextmanager
def failing_syncs(connection: sqlite3.Connection, what: int) -> Iterator[list[int]]:
    """As long as this lasts, no sync of this file succeeds. Yields the list of those that failed."""
    import _sqlite3

    library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))  # SQLite's functions, however it is linked
    handle = ctypes.c_void_p.from_address(id(connection) + object.__basicsize__)  # the first field of a Connection
    file = ctypes.c_void_p()
    assert library.sqlite3_file_control(handle, b"main", what, ctypes.byref(file)) == 0
    assert file.value
    methods = ctypes.c_void_p.from_address(file.value)
    before = methods.value
    assert before
    table = (ctypes.c_void_p * METHODS_POINTERS)()
    ctypes.memmove(table, before, ctypes.sizeof(table))
    failed: list[int] = []

    def fail(_: int, flags: int) -> int:
        failed.append(flags)
        return IOERR_FSYNC

    replaced = _Sync(fail)
    table[SYNC] = ctypes.cast(replaced, ctypes.c_void_p).value
    methods.value = ctypes.addressof(table)
    try:
        yield failed
    finally:
        methods.value = before
