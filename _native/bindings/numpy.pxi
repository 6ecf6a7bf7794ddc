# SPDX-License-Identifier: Apache-2.0
#
# numpy, from the moment when the first array is seen.
#
# numpy takes longer to import than a rank takes to join its gang, and many ranks need none: a barrier, messages of
# objects, the rank's number. `cimport numpy` would import it when this extension loads, so what is used of its C API
# is declared here, as functions of plain objects. Invariant: `array_type` is NULL until the API may be called; who
# holds an array that `as_array` gave, or has called `numpy_load`, may call it.

cdef extern from *:
    """
    #define NPY_TARGET_VERSION NPY_1_23_API_VERSION /* numpy's allocator hook; older headers leave it out */
    #include <numpy/arrayobject.h>

    static PyTypeObject *pmr_py_array_type; /* numpy.ndarray, once it is loaded */

    static inline int pmr_py_is_array(PyObject *thing)
    {
        return Py_TYPE(thing) == pmr_py_array_type;
    }

    /* The API's macros take its own struct, which Cython only knows as an imported class. */
    #define PMR_PY_ARRAY(array) ((PyArrayObject *)(array))
    #define pmr_py_array_number(array) PyArray_TYPE(PMR_PY_ARRAY(array))
    #define pmr_py_array_packed(array) PyArray_ISCARRAY_RO(PMR_PY_ARRAY(array))
    #define pmr_py_array_writeable(array) PyArray_ISWRITEABLE(PMR_PY_ARRAY(array))
    #define pmr_py_array_axes(array) PyArray_NDIM(PMR_PY_ARRAY(array))
    #define pmr_py_array_dims(array) PyArray_DIMS(PMR_PY_ARRAY(array))
    #define pmr_py_array_dim(array, axis) PyArray_DIM(PMR_PY_ARRAY(array), axis)
    #define pmr_py_array_size(array) PyArray_SIZE(PMR_PY_ARRAY(array))
    #define pmr_py_array_nbytes(array) PyArray_NBYTES(PMR_PY_ARRAY(array))
    #define pmr_py_array_data(array) PyArray_DATA(PMR_PY_ARRAY(array))
    #define pmr_py_array_base(array) PyArray_BASE(PMR_PY_ARRAY(array))
    #define pmr_py_array_fill(target, source) PyArray_CopyInto(PMR_PY_ARRAY(target), PMR_PY_ARRAY(source))

    /* An array over memory that `owner` keeps alive; no strides: C order. */
    static PyObject *pmr_py_array_at(int axes, npy_intp *dims, npy_intp *strides, int number, void *data, int flags,
                                     PyObject *owner)
    {
        PyObject *array = PyArray_New(&PyArray_Type, axes, dims, number, strides, data, 0, flags, NULL);
        if (array == NULL)
            return NULL;
        Py_INCREF(owner);
        if (PyArray_SetBaseObject(PMR_PY_ARRAY(array), owner) < 0) { /* it took our reference, well or not */
            Py_DECREF(array);
            return NULL;
        }
        return array;
    }
    """
    ctypedef Py_ssize_t npy_intp
    int NPY_UINT8
    int NPY_ARRAY_CARRAY
    int NPY_ARRAY_WRITEABLE

    int import_api "_import_array"() except -1
    PyTypeObject *numpy_array_type "&PyArray_Type"
    PyTypeObject *array_type "pmr_py_array_type"

    bint is_array "pmr_py_is_array"(object thing)
    int array_number "pmr_py_array_number"(object array)
    bint array_packed "pmr_py_array_packed"(object array)
    bint array_writeable "pmr_py_array_writeable"(object array)
    int array_axes "pmr_py_array_axes"(object array)
    npy_intp *array_dims "pmr_py_array_dims"(object array)
    npy_intp array_dim "pmr_py_array_dim"(object array, int axis)
    npy_intp array_size "pmr_py_array_size"(object array)
    npy_intp array_nbytes "pmr_py_array_nbytes"(object array)
    void *array_data "pmr_py_array_data"(object array)
    PyObject *array_base "pmr_py_array_base"(object array)
    int array_fill "pmr_py_array_fill"(object target, object source) except -1
    object array_empty "PyArray_EMPTY"(int axes, npy_intp *dims, int number, bint fortran)
    object array_at "pmr_py_array_at"(int axes, npy_intp *dims, npy_intp *strides, int number, void *data, int flags,
                                      object owner)

    ctypedef struct PyDataMemAllocator:
        void *ctx
        void *(*malloc)(void *, size_t) noexcept nogil
        void *(*calloc)(void *, size_t, size_t) noexcept nogil
        void *(*realloc)(void *, void *, size_t) noexcept nogil
        void (*free)(void *, void *, size_t) noexcept nogil

    ctypedef struct PyDataMem_Handler:
        char name[127]
        uint8_t version
        PyDataMemAllocator allocator

    object PyDataMem_SetHandler(object handler)

cdef object np = None                     # the module


cdef inline int numpy_load() except -1:
    """Before anything of numpy is used where no array was seen yet."""
    return 0 if array_type != NULL else numpy_import()


cdef int numpy_import() except -1:
    """Two threads may both come here: they do the same, and `array_type`, which says that all is there, comes last."""
    global np, array_type
    import_api()
    import numpy
    np = numpy
    numbers_learn()
    array_type = numpy_array_type
    return 0
