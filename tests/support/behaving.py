"""Measurements that misbehave on request, and a stand-in for a fresh process.

They are functions of a module of their own, because a fresh process imports them by name.
"""

import os
import time

import torch

from fsanet.cost import Outcome, Stage, describe_error
from fsanet.errors import InputError

MIB = 2**20


def measure(behaviour):
    """Announce one stage, yield a result, then do as asked."""
    yield {"pid": os.getpid(), "threads": torch.get_num_threads()}
    yield Stage("work", 0.3 if behaviour == "slow" else 300)
    if behaviour == "huge":
        torch.ones(100 * MIB, dtype=torch.uint8)
        yield {"inside the limit": True}
        torch.ones(2000 * MIB, dtype=torch.uint8)
    elif behaviour == "slow":
        time.sleep(600)  # the parent ends it
    elif behaviour == "dies":
        os._exit(3)
    elif behaviour == "wrong":
        raise InputError("k=0: give more")
    yield {"done": True}


def run_in_process(measure, *arguments, memory, threads):
    """Takes the place of `run_isolated`: the same result, without a process and limits."""
    found, stage = {}, "start"
    try:
        for message in measure(*arguments):
            if isinstance(message, Stage):
                stage = message.name
            else:
                found |= message
    except Exception as error:
        return Outcome(found, stage, describe_error(error))
    return Outcome(found, stage, None)
