/* SPDX-License-Identifier: Apache-2.0
 *
 * form.c: the names of the calls of users that pmrun makes out of several calls of the core.
 *
 * A call of the core carries the form that it is part of into its record, so that whoever is told of it reads
 * what he wrote in his program. Invariant: a name is that of the Python function, by which the bindings find
 * the form of a function written in Python.
 */
#include "include/pmr.h"

static const char *const form_names[PMR_FORM_COUNT] = {
    [PMR_FORM_PLAIN] = "",
    [PMR_FORM_SPLIT] = "split",
    [PMR_FORM_DUP] = "dup",
    [PMR_FORM_SHARED] = "shared",
    [PMR_FORM_SCATTER] = "scatter",
    [PMR_FORM_SCATTERV] = "scatterv",
    [PMR_FORM_GATHERV] = "gatherv",
    [PMR_FORM_ALLGATHERV] = "allgatherv",
    [PMR_FORM_ALLTOALLV] = "alltoallv",
    [PMR_FORM_BROADCAST_OBJECT] = "broadcast_object",
    [PMR_FORM_REDUCE_OBJECT] = "reduce_object",
    [PMR_FORM_ALLREDUCE_OBJECT] = "allreduce_object",
    [PMR_FORM_GATHER_OBJECT] = "gather_object",
    [PMR_FORM_ALLGATHER_OBJECT] = "allgather_object",
    [PMR_FORM_SCATTER_OBJECT] = "scatter_object",
    [PMR_FORM_ALLTOALL_OBJECT] = "alltoall_object",
};

const char *pmr_form_name(pmr_form form)
{
    return (unsigned)form < PMR_FORM_COUNT ? form_names[form] : "";
}
