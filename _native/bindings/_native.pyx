# SPDX-License-Identifier: Apache-2.0
# cython: auto_pickle=False, autotestdict=False
"""The C core as Python sees it: `pmrun._native`.

One extension, composed of one .pxi file per noun; this file only orders them. Every operation has the same
three steps: a Plan is made from the arguments (plan.pxi, buffers.pxi), the core runs it, the result goes back
in the form that the input had. Invariants: errors become exceptions in `check` alone; no exception leaves a
buffer in the core's hands; nothing here knows how a collective works.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals, PyErr_Occurred
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.long cimport PyLong_CheckExact
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject, PyTypeObject
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New, PyCapsule_SetName
from cpython.pythread cimport (
    NOWAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock, PyThread_type_lock,
)
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset, strcmp

import os
import sys
from time import monotonic

from pmrun import errors as errors

include "numpy.pxi"
include "capi.pxi"
include "errors.pxi"
include "sites.pxi"
include "context.pxi"
include "operation.pxi"
include "heap.pxi"
include "dlpack.pxi"
include "buffers.pxi"
include "plan.pxi"
include "communicator.pxi"
include "request.pxi"
include "collectives.pxi"
include "vectors.pxi"
include "messages.pxi"
include "frames.pxi"
