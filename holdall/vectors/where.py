"""Attributes beside vectors, and conditions on them: `lang = 'en' AND year > 2020`, as DuckDB reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput, CorruptArtefact
from holdall.optional import need

if TYPE_CHECKING:
    import pyarrow


class Attributes:
    """A table with a row for each vector."""

    def __init__(self, table: pyarrow.Table):
        self.table = table

    @classmethod
    def of(cls, given: Any, count: int) -> Attributes | None:
        """given: a pyarrow table, or columns by name."""
        if given is None:
            return None
        arrow = need("pyarrow", "vectors")
        try:
            table = given if isinstance(given, arrow.Table) else arrow.table(dict(given))
        except (arrow.ArrowInvalid, arrow.ArrowTypeError, TypeError, ValueError) as fault:
            raise BadInput("attributes", str(fault), "columns of numbers or strings, by name") from fault
        if table.num_rows != count:
            raise BadInput(
                "attributes", f"{table.num_rows} rows for {count} vectors", "a row for each vector"
            )
        return cls(table)

    @property
    def nbytes(self) -> int:
        return int(self.table.nbytes)

    def mask(self, condition: str) -> np.ndarray:
        """bool [N]: where it holds; BadInput for what is no condition on these columns."""
        duckdb = need("duckdb", "vectors")
        with duckdb.connect(config={"enable_external_access": "false", "threads": "1"}) as base:
            try:
                told = base.from_arrow(self.table).project(f"({condition}) AS held")
                if str(told.types[0]) != "BOOLEAN":
                    raise BadInput(
                        "where", condition, f"a condition, which is true or false, not {told.types[0]}"
                    )
                found = told.fetchnumpy()["held"]
            except duckdb.Error as fault:
                known = ", ".join(self.table.column_names)
                why = str(fault).splitlines()[0]
                raise BadInput("where", f"{condition} ({why})", f"a condition on {known}") from fault
        return np.asarray(np.ma.filled(found, False), bool)

    def kept(self, keep: np.ndarray) -> Attributes:
        arrow = need("pyarrow", "vectors")
        return Attributes(self.table.filter(arrow.array(keep)))

    def more(self, given: Any, count: int) -> Attributes:
        arrow = need("pyarrow", "vectors")
        new = Attributes.of(given, count)
        if new is None:
            raise BadInput("attributes", "none", f"columns {', '.join(self.table.column_names)}")
        try:
            fitted = new.table.select(self.table.column_names).cast(self.table.schema)
        except (KeyError, ValueError, arrow.ArrowInvalid) as fault:
            raise BadInput("attributes", str(fault), f"columns {self.table.schema.names}") from fault
        return Attributes(arrow.concat_tables([self.table, fitted]))

    def sections(self) -> dict[str, np.ndarray]:
        arrow = need("pyarrow", "vectors")
        sink = arrow.BufferOutputStream()
        with arrow.ipc.new_stream(sink, self.table.schema) as out:
            out.write_table(self.table)
        return {"attributes": np.frombuffer(sink.getvalue(), np.uint8)}

    @classmethod
    def of_sections(cls, arrays: Mapping[str, np.ndarray], count: int) -> Attributes | None:
        if "attributes" not in arrays:
            return None
        arrow = need("pyarrow", "vectors")
        try:
            table = arrow.ipc.open_stream(arrow.py_buffer(arrays["attributes"].tobytes())).read_all()
        except (arrow.ArrowInvalid, OSError) as fault:
            raise CorruptArtefact("the attributes", str(fault)) from fault
        if table.num_rows != count:
            raise CorruptArtefact("the attributes", f"{table.num_rows} rows for {count} vectors")
        return cls(table)
