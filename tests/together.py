"""Functions run in several real processes that find each other as those of torchrun do."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch

# One clean process imports the package, and the others are forked from it: none has to import it again.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["torch", "migm.train", "tiny_parts"])


def _as_rank(
    rank: int, count: int, port: int, function: Callable[..., Any], args: tuple[Any, ...], answers: Any
) -> None:
    address = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({**{key: str(value) for key, value in address.items()}, "MIGM_PATIENCE": "2"})
    torch.set_num_threads(1)
    try:
        answers.put((rank, function(*args)))
    except Exception as error:
        answers.put((rank, error))


def together(count: int, function: Callable[..., Any], *args: Any, killed: int = 0) -> list[Any]:
    """What `function(*args)` returns or raises in every rank, in their order; None for the `killed` ones that die."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = context.Queue()
    ranks = [
        context.Process(target=_as_rank, args=(rank, count, port, function, args, answers)) for rank in range(count)
    ]
    for process in ranks:
        process.start()
    try:
        found = dict(answers.get(timeout=600) for _ in range(count - killed))
        for process in ranks:
            process.join(60)
    finally:
        for process in ranks:
            process.kill()
    return [found.get(rank) for rank in range(count)]
