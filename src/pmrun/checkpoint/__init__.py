# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: `pm.Checkpoint`, which the docs call by that name, and what it is made of.

`checkpoint` is the class, `saving` and `loading` what the ranks do together, `versions` what a directory holds and which
of it counts, `shard` and `tree` the bytes of one file, `storage` the contract of the places they lie in: one file
`storage_<scheme>.py` each, found by its name. Invariant: nothing here is loaded before a program uses a checkpoint.
"""
