# SPDX-License-Identifier: Apache-2.0
#
# Call sites for the flight recorder: which line of the user's program made this call.
#
# Cython's methods push no Python frame, so the running frame is the caller's, or that of one of pmrun's own
# Python files, which is walked past; where that is a function of which the core has a form, the call is a part of it,
# and the user's is the outermost. (code object, last instruction) is looked up in a small direct-mapped
# cache; only a miss makes the text "train.py:44 in main" and asks the core for its number.
# Invariant: a cached code object is kept alive by the cache, so its address cannot come to mean another.

cdef extern from *:
    """
    #include <frameobject.h>
    #if PY_VERSION_HEX >= 0x030b0000
    #define pmr_py_frame_place(frame) PyFrame_GetLasti(frame)
    #else
    #define pmr_py_frame_place(frame) PyFrame_GetLineNumber(frame)
    #endif

    typedef struct {
        PyObject *code;
        int place;
        uint32_t site;
    } pmr_py_site;

    #define PMR_PY_SITES 256
    /* A frame of pmrun itself, which may be a form: look further up. */
    #define PMR_PY_SITE_OWN(form) (UINT32_MAX - (uint32_t)(form))
    #define PMR_PY_SITE_IS_OWN(site) ((site) > PMR_PY_SITE_OWN(PMR_FORM_COUNT))
    #define PMR_PY_SITE_FORM(site) ((pmr_form)(UINT32_MAX - (site)))
    static pmr_py_site pmr_py_sites[PMR_PY_SITES];

    static inline pmr_py_site *pmr_py_site_slot(const void *code, int place)
    {
        uintptr_t key = ((uintptr_t)code >> 4) ^ ((uintptr_t)(unsigned)place * 31u);
        return &pmr_py_sites[(key ^ (key >> 8)) % PMR_PY_SITES];
    }
    """
    ctypedef struct PyFrameObject:
        pass
    ctypedef struct PyCodeObject:
        pass
    PyFrameObject *PyEval_GetFrame()
    PyFrameObject *PyFrame_GetBack(PyFrameObject *frame)
    PyCodeObject *PyFrame_GetCode(PyFrameObject *frame)
    int PyFrame_GetLineNumber(PyFrameObject *frame)
    int pmr_py_frame_place(PyFrameObject *frame)
    void frame_release "Py_DECREF"(PyFrameObject *frame)
    void code_release "Py_DECREF"(PyCodeObject *code)

    ctypedef struct pmr_py_site:
        PyObject *code
        int place
        uint32_t site
    int PMR_PY_SITES
    uint32_t PMR_PY_SITE_OWN(int form)
    bint PMR_PY_SITE_IS_OWN(uint32_t site)
    pmr_form PMR_PY_SITE_FORM(uint32_t site)
    pmr_py_site *pmr_py_sites
    pmr_py_site *pmr_py_site_slot(const void *code, int place)

cdef str OWN_FILES = os.path.dirname(os.path.abspath(errors.__file__)) + os.sep
cdef int SITE_PATH_MAX = 120
cdef int SITE_NAME_MAX = 48
cdef dict FORMS = {text_of(pmr_form_name(<pmr_form>number)): number for number in range(1, PMR_FORM_COUNT)}


cdef uint32_t site_here(pmr_form *form) noexcept:
    """The site number of the innermost frame that is not pmrun's, 0 where there is none; and, where what it called
    is a form, that."""
    cdef PyFrameObject *frame = PyEval_GetFrame()
    cdef PyFrameObject *above = NULL
    cdef uint32_t site
    cdef bint owned = False
    while frame != NULL:
        site = site_of(frame)
        if PMR_PY_SITE_IS_OWN(site):
            above = PyFrame_GetBack(frame)
            if PMR_PY_SITE_FORM(site) != PMR_FORM_PLAIN:
                form[0] = PMR_PY_SITE_FORM(site)
        if owned:
            frame_release(frame)
        if not PMR_PY_SITE_IS_OWN(site):
            return site
        frame = above
        owned = True
    return 0


cdef inline uint32_t site_of(PyFrameObject *frame) noexcept:
    """The site number of one frame; one of PMR_PY_SITE_OWN for pmrun's own."""
    cdef PyCodeObject *code = PyFrame_GetCode(frame)
    cdef int place = pmr_py_frame_place(frame)
    cdef pmr_py_site *slot = pmr_py_site_slot(code, place)
    if slot.code == <PyObject *>code and slot.place == place:
        code_release(code)
        return slot.site
    Py_XDECREF(slot.code)
    slot.code = <PyObject *>code  # our reference becomes the cache's
    slot.place = place
    slot.site = site_make(<object>code, PyFrame_GetLineNumber(frame))
    return slot.site


cdef uint32_t site_make(object code, int line) noexcept:
    """The recorder must not fail a call: an error here is reported as unraisable, and the site is unknown."""
    cdef str path = code.co_filename
    if path.startswith(OWN_FILES):
        return PMR_PY_SITE_OWN(FORMS.get(code.co_name, <int>PMR_FORM_PLAIN))
    try:
        here = os.getcwd() + os.sep
    except OSError:  # the directory is gone
        here = ""
    if here and path.startswith(here):
        path = path[len(here):]
    if len(path) > SITE_PATH_MAX:
        path = "..." + path[3 - SITE_PATH_MAX:]
    name = getattr(code, "co_qualname", code.co_name)
    if len(name) > SITE_NAME_MAX:
        name = "..." + name[3 - SITE_NAME_MAX:]
    text = f"{path}:{line} in {name}".encode("utf-8", "replace")
    return pmr_site_intern(context_now, text)


cdef void sites_forget() noexcept:
    """Numbers belong to one context: none may outlive it."""
    cdef int index
    for index in range(PMR_PY_SITES):
        Py_XDECREF(pmr_py_sites[index].code)
        pmr_py_sites[index].code = NULL
