"""Array in, format out: SVD, whole or by groups of rows, CP-ALS, HOOI, TT-SVD and TT-ALS."""

from tdjax.decompose.als import Info
from tdjax.decompose.cp import cp_als
from tdjax.decompose.grouped import grouped_svd
from tdjax.decompose.svd import truncated_svd
from tdjax.decompose.tt import tt_als, tt_svd
from tdjax.decompose.tucker import hosvd, tucker_als
from tdjax.decompose.weighted import weighted_als

__all__ = [
    "Info",
    "cp_als",
    "grouped_svd",
    "hosvd",
    "truncated_svd",
    "tt_als",
    "tt_svd",
    "tucker_als",
    "weighted_als",
]
