"""Members -> one stacked `torch.nn.Module`, and the plain loop over the members that judges it."""

from ensexport.stacking.baseline import MemberSource, run_member, run_members
from ensexport.stacking.ensemble import Ensemble, stack

__all__ = ["Ensemble", "MemberSource", "run_member", "run_members", "stack"]
