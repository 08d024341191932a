"""The least time one call of an ONNX file can take here, whoever computes it: `max(flops / peak, bytes / bandwidth)`.

Whatever computes the same products, reads every weight and input and writes every output once, needs at least that
long. How far a measured time lies above says how much is left to gain.
"""

from __future__ import annotations

from ensexport.bench.peaks import Peak, measure_peak
from ensexport.bench.work import Work, count_work

__all__ = ["Peak", "Work", "count_work", "floor_s", "measure_peak"]


def floor_s(work: Work, peak: Peak) -> float:
    """Return the least seconds that one call can take."""
    return max(work.flops / peak.flops_per_s, work.total_bytes / peak.bandwidth(work.total_bytes))
