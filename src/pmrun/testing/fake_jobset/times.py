# SPDX-License-Identifier: Apache-2.0
"""Times as the API writes them. Invariant: all are UTC; those of objects have seconds, those of logs nanoseconds."""

from __future__ import annotations

import datetime

from pmrun.testing.fake_jobset.statuses import bad_request


def stamp(time_s: float) -> str:
    """As objects have it."""
    return datetime.datetime.fromtimestamp(int(time_s), datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def log_stamp(time_ns: int) -> str:
    """As lines of logs have it."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{stamp(seconds)[:-1]}.{rest:09d}Z"


def seconds(text: str) -> float:
    """Since the epoch, of either."""
    whole, _, rest = text.rstrip("Z").partition(".")
    try:
        moment = datetime.datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=datetime.timezone.utc)
        return moment.timestamp() + float(f"0.{rest or 0}")
    except ValueError:
        raise bad_request(f"cannot read the time {text!r}: write it like 2026-01-31T12:00:00Z") from None
