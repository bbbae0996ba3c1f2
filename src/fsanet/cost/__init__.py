"""What a call costs: FLOPs, memory and time, in this process or in a fresh one with limits.

The one place that measures: layers and networks (`fsanet bench`), conversions, and the experiments.
"""

from fsanet.cost.flops import count_flops, count_parameters, flop_counter
from fsanet.cost.memory import (
    available_memory,
    is_out_of_memory,
    kept_for_backward,
    limit_memory,
    peak_memory,
    peak_resident_memory,
)
from fsanet.cost.process import START_SECONDS, Outcome, Stage, describe_error, run_isolated
from fsanet.cost.timing import (
    Clock,
    Quartiles,
    Timed,
    Watch,
    has_bfloat16,
    no_watch,
    ratios,
    time_calls,
)

__all__ = [
    "START_SECONDS",
    "Clock",
    "Outcome",
    "Quartiles",
    "Stage",
    "Timed",
    "Watch",
    "available_memory",
    "count_flops",
    "count_parameters",
    "describe_error",
    "flop_counter",
    "has_bfloat16",
    "is_out_of_memory",
    "kept_for_backward",
    "limit_memory",
    "no_watch",
    "peak_memory",
    "peak_resident_memory",
    "ratios",
    "run_isolated",
    "time_calls",
]
