# SPDX-License-Identifier: Apache-2.0
"""`pmrun bench` on the launcher's side: options, gangs in turn, table, file, comparison, plots, peers.

Invariant: nothing here loads numpy or the C core; matplotlib is loaded by plot.py alone, when a plot is drawn.
"""
