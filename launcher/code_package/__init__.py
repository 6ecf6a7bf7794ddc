# SPDX-License-Identifier: Apache-2.0
"""The user's code on its way to nodes that do not share a disk with the one it is on (docs/code-package.md).

`listing.py` says which files, `archive.py` makes one archive of them, a *place* (`places.py`) keeps it between here and
there, `unpack.py` is the node's side, and `stock_image.py` starts nodes whose image has no pmrun. No engine is known
here. Invariant: a package is named by the hash of what is in it, from the first to the last of them, so nobody runs
other code than was packed.
"""
