"""Calls that hang must not keep the daemon from ending."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from peerstore.daemon import DaemonThreads
from tests.daemon import HANG


async def test_each_call_has_a_thread_of_its_own() -> None:
    asyncio.get_running_loop().set_default_executor(DaemonThreads())
    both = threading.Barrier(2)
    results = await asyncio.gather(*(asyncio.to_thread(both.wait, HANG) for _ in range(2)))
    assert sorted(results) == [0, 1]


async def test_what_a_call_raises_is_told() -> None:
    asyncio.get_running_loop().set_default_executor(DaemonThreads())

    def fail() -> None:
        raise KeyError("why")

    with pytest.raises(KeyError, match="why"):
        await asyncio.to_thread(fail)


def test_the_end_of_the_process_waits_for_none() -> None:
    code = """if True:
        import asyncio, threading
        from peerstore.daemon import DaemonThreads

        async def main():
            asyncio.get_running_loop().set_default_executor(DaemonThreads())
            begun = threading.Event()
            task = asyncio.create_task(
                asyncio.to_thread(lambda: (begun.set(), threading.Event().wait()))
            )
            await asyncio.to_thread(begun.wait)
            task.cancel()

        asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-c", code], timeout=HANG, check=False)
    assert done.returncode == 0
