"""The kernel of `transport.capped`: points ask for columns, and full columns keep those that want them most."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def placed(shares, order, most, codes):  # type: ignore[no-untyped-def]
    """Into codes int64 [B]. shares float64 [B, K]; order int64 [B, K], the columns of each by its shares.

    A full column lets go of its smallest share where a greater one asks; of equal ones the lower number stays.
    """
    points, columns = shares.shape
    members, sizes = np.empty((columns, most), np.int64), np.zeros(columns, np.int64)
    worst = np.zeros(columns, np.int64)  # place of the smallest share among a full column's members
    asked = np.zeros(points, np.int64)  # how many columns each has asked for
    for start in range(points):
        point = start
        while point >= 0:
            column = order[point, asked[point]]
            asked[point] += 1
            if sizes[column] < most:
                members[column, sizes[column]] = point
                sizes[column] += 1
                point = -1
                if sizes[column] < most:
                    continue
            else:
                least = members[column, worst[column]]
                mine, other = shares[point, column], shares[least, column]
                if mine < other or (mine == other and point > least):
                    continue
                members[column, worst[column]], point = point, least
            at = 0
            for j in range(1, most):
                one, two = members[column, j], members[column, at]
                mine, other = shares[one, column], shares[two, column]
                if mine < other or (mine == other and one > two):
                    at = j
            worst[column] = at
    for column in range(columns):
        for j in range(sizes[column]):
            codes[members[column, j]] = column
