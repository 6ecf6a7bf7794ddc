# SPDX-License-Identifier: Apache-2.0
"""Engines for tests, pmrun's own and its users': the true contract of a cloud's API, executed on this machine.

A node of a fake is a process with a network address of its own. Invariant: nothing that a fake started outlives the
process that holds it.
"""
