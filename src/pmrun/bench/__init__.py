# SPDX-License-Identifier: Apache-2.0
"""What the ranks of `pmrun bench` run, and what its figures mean.

The peers' interpreters run this too, under another name and without pmrun. Invariant: nothing here imports pmrun but
`bindings.Pmrun`; modules import each other relatively, and need numpy alone.
"""
