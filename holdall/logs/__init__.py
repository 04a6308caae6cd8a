"""Logs: files of lines that machines wrote, packed small and still searchable.

A log is a few hundred message templates filled with times, numbers and names. `logs.logzip` finds the templates by
itself and stores columns; `logs.zstd` and `logs.xz` are what people use today; `logs.none` stores. All are exact on
any bytes. `holdall.logs.open` reads and writes packed logs like files.
"""

from holdall.logs.logzip import Logzip
from holdall.logs.none import Nothing
from holdall.logs.reader import LogReader, LogWriter, open
from holdall.logs.xz import Xz
from holdall.logs.zstd import Zstd

__all__ = ["LogReader", "LogWriter", "Logzip", "Nothing", "Xz", "Zstd", "open"]
