"""Ollama's `options`: what is sampled, and how a model is run."""

from __future__ import annotations

from typing import Any, Final

from llm_routerd.gateway.properties import Properties, a_count

_PARAMS: Final = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "stop")
OPTIONS: Final = Properties(
    heeded=frozenset({*_PARAMS, "seed", "num_predict"}),
    # How a model is run is its deployment's affair; the last two say something only of what is refused.
    idle=frozenset(
        {
            *("num_ctx", "num_gpu", "num_thread", "num_batch", "num_keep", "main_gpu", "numa", "low_vram"),
            *("use_mmap", "use_mlock", "f16_kv", "logits_all", "vocab_only", "embedding_only", "num_gqa"),
            *("mirostat_tau", "mirostat_eta"),
        }
    ),
    # What is off, and what Ollama does of itself.
    refused={
        "min_p": (0,),
        "mirostat": (0,),
        "penalize_newline": (True,),
        "repeat_last_n": (64,),
        "repeat_penalty": (1, 1.1),
        "tfs_z": (1,),
        "typical_p": (1,),
    },
)
_RANDOM_SEED: Final = -1


def params_of(options: Any) -> dict[str, Any]:
    """The request's `params`.

    Raises:
        RefusedError: one of them would change the answer and cannot be sent.
    """
    given = OPTIONS.of(options, "options")
    params: dict[str, Any] = {name: given[name] for name in _PARAMS if name in given}
    if params.get("stop") == []:
        del params["stop"]
    if given.get("seed", _RANDOM_SEED) != _RANDOM_SEED:
        params["seed"] = given["seed"]
    if "num_predict" in given and (most := a_count(given["num_predict"], "options.num_predict")) > 0:
        params["max_tokens"] = most
    return params
