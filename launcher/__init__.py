# SPDX-License-Identifier: Apache-2.0
"""The `pmrun` command: controller, agents, backends. Loads no extension, no numpy and no cloud library."""
