"""What a well-formed request has to pass before anybody is asked: one pure function a file, and one line in `GATES`.

A gate may import `protocol`, `routing` and the values of `config`.
"""

from __future__ import annotations

from llm_routerd.worker.gates.gate import Asked, Gate, Refusal
from llm_routerd.worker.gates.known_model import has_known_model
from llm_routerd.worker.gates.poison import is_no_poison
from llm_routerd.worker.gates.right_shard import is_in_its_shard

GATES: tuple[Gate, ...] = (is_in_its_shard, has_known_model, is_no_poison)

__all__ = ["GATES", "Asked", "Gate", "Refusal"]
