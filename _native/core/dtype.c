/* SPDX-License-Identifier: Apache-2.0
 *
 * dtype.c: what is known about element types and reduce operations without looking at any data.
 *
 * Both enumerations index plain tables; a value outside them gives 0, "?" or false, so that a caller may
 * ask before it has checked. `pmr_op_defined` is the one statement of which pairs exist: the kernels' tables
 * (reduce_kernels.inc) have an entry exactly where it says true, and tests/native/test_reduce_op.c holds them to it.
 */
#include "include/pmr.h"

typedef enum family { FAMILY_BOOL, FAMILY_INTEGER, FAMILY_FLOAT, FAMILY_COMPLEX } family;

static const struct dtype_facts {
    const char *name;
    uint8_t size;
    uint8_t family;
} DTYPES[PMR_DTYPE_COUNT] = {
    [PMR_BOOL] = {"bool", 1, FAMILY_BOOL},
    [PMR_INT8] = {"int8", 1, FAMILY_INTEGER},
    [PMR_INT16] = {"int16", 2, FAMILY_INTEGER},
    [PMR_INT32] = {"int32", 4, FAMILY_INTEGER},
    [PMR_INT64] = {"int64", 8, FAMILY_INTEGER},
    [PMR_UINT8] = {"uint8", 1, FAMILY_INTEGER},
    [PMR_UINT16] = {"uint16", 2, FAMILY_INTEGER},
    [PMR_UINT32] = {"uint32", 4, FAMILY_INTEGER},
    [PMR_UINT64] = {"uint64", 8, FAMILY_INTEGER},
    [PMR_FLOAT16] = {"float16", 2, FAMILY_FLOAT},
    [PMR_BFLOAT16] = {"bfloat16", 2, FAMILY_FLOAT},
    [PMR_FLOAT32] = {"float32", 4, FAMILY_FLOAT},
    [PMR_FLOAT64] = {"float64", 8, FAMILY_FLOAT},
    [PMR_COMPLEX64] = {"complex64", 8, FAMILY_COMPLEX},
    [PMR_COMPLEX128] = {"complex128", 16, FAMILY_COMPLEX},
};

static const char *const OPS[PMR_OP_COUNT] = {
    [PMR_SUM] = "sum",   [PMR_PROD] = "prod", [PMR_MIN] = "min",   [PMR_MAX] = "max",
    [PMR_AVG] = "avg",   [PMR_LAND] = "land", [PMR_LOR] = "lor",   [PMR_LXOR] = "lxor",
    [PMR_BAND] = "band", [PMR_BOR] = "bor",   [PMR_BXOR] = "bxor",
};

static bool is_dtype(pmr_dtype dtype) {
    return (unsigned)dtype < (unsigned)PMR_DTYPE_COUNT;
}

size_t pmr_dtype_size(pmr_dtype dtype) {
    return is_dtype(dtype) ? DTYPES[dtype].size : 0;
}

const char *pmr_dtype_name(pmr_dtype dtype) {
    return is_dtype(dtype) ? DTYPES[dtype].name : "?";
}

const char *pmr_op_name(pmr_op op) {
    return (unsigned)op < (unsigned)PMR_OP_COUNT ? OPS[op] : "?";
}

bool pmr_op_defined(pmr_op op, pmr_dtype dtype) {
    if (!is_dtype(dtype))
        return false;
    uint8_t family = DTYPES[dtype].family;
    switch (op) {
    case PMR_SUM:
    case PMR_PROD:
    case PMR_LAND:
    case PMR_LOR:
    case PMR_LXOR:
        return true;
    case PMR_MIN:
    case PMR_MAX: /* complex numbers have no order */
        return family != FAMILY_COMPLEX;
    case PMR_AVG: /* an integer's average would have to round, and nobody agrees on how */
        return family == FAMILY_FLOAT || family == FAMILY_COMPLEX;
    case PMR_BAND:
    case PMR_BOR:
    case PMR_BXOR:
        return family == FAMILY_BOOL || family == FAMILY_INTEGER;
    case PMR_OP_COUNT:
        break;
    }
    return false;
}
