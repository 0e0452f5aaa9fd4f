"""What nobody foresaw is a fault of ours: it costs one attempt and stands in the log, and the next may do without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.logs import get_logger
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import Rejection

if TYPE_CHECKING:
    from llm_routerd.config.tree import Deployment

log = get_logger()


def fault(request_id: str, deployment: Deployment, error: Exception) -> Rejection:
    """Log it; returns what is said of the attempt."""
    log.error("attempt_failed", id=request_id, deployment=deployment.name, exc_info=error)
    reason = f"a fault in llm-routerd ({type(error).__name__}); its log has more"
    return Rejection(code=AttemptCode.INTERNAL, reason=reason)
