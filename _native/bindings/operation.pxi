# SPDX-License-Identifier: Apache-2.0
#
# The communicator's methods as functions on the world: what `pm.allreduce` is.
#
# Each is a builtin function whose `self` is the method; a call puts the world in front of the arguments as they lie
# on the interpreter's stack. A Python function in between would cost more than the call itself, and would stand
# between the recorder and the caller's line. Invariant: a function adds nothing to its method but the world.

cdef extern from "Python.h":
    ctypedef struct PyMethodDef:
        const char *ml_name
        void *ml_meth
        int ml_flags
        const char *ml_doc
    int METH_FASTCALL
    int METH_KEYWORDS
    object PyCFunction_NewEx(PyMethodDef *definition, object self, object module)
    object PyObject_Vectorcall(object callable, PyObject **arguments, size_t count, PyObject *names)
    Py_ssize_t tuple_size "PyTuple_GET_SIZE"(PyObject *tuple)

cdef enum:
    OPERATION_ARGUMENTS_MAX = 15

cdef list operation_texts = []  # names and docstrings that the definitions point into


cdef object operation_call(object method, PyObject **arguments, Py_ssize_t count, PyObject *names):
    cdef PyObject *stack[OPERATION_ARGUMENTS_MAX + 1]
    cdef Py_ssize_t total = count + (tuple_size(names) if names != NULL else 0)
    if world_now is None:
        refuse_dead()
    if total > OPERATION_ARGUMENTS_MAX:
        raise TypeError(f"{method.__name__}() got {total} arguments: no operation takes as many")
    stack[0] = <PyObject *>world_now
    memcpy(&stack[1], arguments, <size_t>total * sizeof(PyObject *))
    return PyObject_Vectorcall(method, stack, <size_t>count + 1, names)


def world_operation(method, str signature):
    """The function that calls `method` on the world; for operations.py, once for each method.

    Parameters
    ----------
    method : callable
        A method of the communicator's class.
    signature : str
        Its parameters without ``self``, as `inspect.signature` is to show them.
    """
    cdef bytes name = method.__name__.encode()
    cdef bytes text = f"{method.__name__}{signature}\n--\n\n{method.__doc__}".encode()
    cdef PyMethodDef *definition = <PyMethodDef *>malloc(sizeof(PyMethodDef))
    if definition == NULL:
        raise MemoryError("no memory for a function")
    operation_texts.append((name, text))
    definition.ml_name = name
    definition.ml_doc = text
    definition.ml_flags = METH_FASTCALL | METH_KEYWORDS
    definition.ml_meth = <void *>operation_call
    return PyCFunction_NewEx(definition, method, "pmrun")  # lives as long as the module
