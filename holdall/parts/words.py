"""Eight bytes at once, wherever they stand in an array: numba alone reads words only where words may stand."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_WORD = ir.IntType(64)


def _place(context: Any, builder: Any, kind: Any, value: Any, at: Any) -> Any:
    first = context.make_array(kind)(context, builder, value).data
    return builder.bitcast(builder.gep(first, [at]), _WORD.as_pointer())


def _word(typingctx: Any, x: Any, at: Any) -> Any:
    """fn(x uint8 [...], at) -> uint64: the eight bytes from `at` on; x is contiguous."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        found = builder.load(_place(context, builder, signature.args[0], args[0], args[1]))
        found.align = 1
        return found

    return types.uint64(x, types.int64), codegen


def _put_word(typingctx: Any, x: Any, at: Any, word: Any) -> Any:
    """fn(x uint8 [...], at, word): the eight bytes from `at` on become those of the word; x is contiguous."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _place(context, builder, signature.args[0], args[0], args[1])).align = 1
        return context.get_dummy_value()

    return types.void(x, types.int64, types.uint64), codegen


word: Any = intrinsic(_word)
put_word: Any = intrinsic(_put_word)
