"""What a box tells of itself: each server's pages in its own shape.

Ollama: `/api/version`, `/api/tags`, `/api/ps`, `/api/show`, `/v1/models`.  llama.cpp: `/health`, `/props`, `/slots`,
`/v1/models`.  vLLM: `/health`, `/version`, `/metrics`, `/v1/models`.
"""

from __future__ import annotations

import hashlib
import math
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson

from tests.standin.box import with_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.standin.machine import Machine
    from tests.standin.memory import Resident

_JSON = "application/json; charset=utf-8"
_MODIFIED_AT = "2026-11-20T08:21:25.185978833Z"
_CREATED = 1795162885

Page = tuple[int, bytes, str]
"""A status, a body and its content type."""


def page_of(machine: Machine, path: str, lie: Iterable[str] | None) -> Page:
    """What a GET of a path is answered.

    Args:
        machine: whose.
        path: without a query.
        lie: models to be told as resident, in place of those that are.
    """
    if machine.box.kind == "ollama":
        return _ollama_page(machine, path, lie)
    return (_llama_page if machine.box.kind == "llama.cpp" else _vllm_page)(machine, path)


def not_found(machine: Machine) -> Page:
    """What any other path is answered."""
    match machine.box.kind:
        case "ollama":
            return 404, b"404 page not found", "text/plain"
        case "llama.cpp":
            return _json({"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}, 404)
        case _:
            return _json({"detail": "Not Found"}, 404)


def loading() -> Page:
    """What a llama.cpp answers, whatever is asked, as long as it loads its model."""
    return _json({"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}, 503)


def _json(answer: Any, status: int = 200) -> Page:
    return status, orjson.dumps(answer), _JSON


def _ollama_page(machine: Machine, path: str, lie: Iterable[str] | None) -> Page:
    box = machine.box
    pages: dict[str, Callable[[], Any]] = {
        "/api/version": lambda: {"version": box.version},
        "/api/tags": lambda: {"models": [_on_disk(machine, name) for name in box.models]},
        "/api/ps": lambda: {"models": _in_memory(machine, lie)},
        "/v1/models": lambda: _list([{"id": with_tag(name), "owned_by": "library"} for name in box.models]),
    }
    if path.startswith("/v1/models/") and (name := box.name_of(path.removeprefix("/v1/models/"))) is not None:
        return _json(_list([{"id": with_tag(name), "owned_by": "library"}])["data"][0])
    if path == "/":
        return 200, b"Ollama is running", "text/plain; charset=utf-8"
    return _json(pages[path]()) if path in pages else not_found(machine)


def _list(models: list[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": [{"object": "model", "created": _CREATED, **model} for model in models]}


def _named(name: str) -> dict[str, Any]:
    full = with_tag(name)
    return {"name": full, "model": full, "digest": hashlib.sha256(full.encode()).hexdigest()}


def _details() -> dict[str, Any]:
    details = {"parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"]}
    return {**details, "parameter_size": "0", "quantization_level": "unknown"}


def _on_disk(machine: Machine, name: str) -> dict[str, Any]:
    model = machine.box.models[name]
    details = {**_details(), "context_length": model.trained}
    told = {"modified_at": _MODIFIED_AT, "size": model.size, "details": details}
    return {**_named(name), **told, "capabilities": ["completion", "tools"]}


def _in_memory(machine: Machine, lie: Iterable[str] | None) -> list[dict[str, Any]]:
    """The models that are loaded, the one used last first."""
    if lie is not None:
        return [_running(machine, name, None) for name in lie]
    resident = [each for each in machine.memory.resident.values() if each.is_loaded]
    return [_running(machine, each.name, each) for each in sorted(resident, key=lambda each: -each.used)]


def _running(machine: Machine, name: str, resident: Resident | None) -> dict[str, Any]:
    box = machine.box
    known = box.name_of(name)
    share = 1.0 if known is None else box.models[known].vram_share
    if resident is not None:
        size, window, left = resident.size, resident.window, resident.seconds_left
    else:
        window = box.num_ctx if known is None else box.window_of(known)
        size = 10**9 if known is None else box.models[known].size_with(window, box.slots)
        left = 300.0 if math.isinf(box.keep_alive) else box.keep_alive
    goes = (datetime.now(UTC) + timedelta(seconds=left)).isoformat().replace("+00:00", "Z")
    told = {"size": size, "size_vram": int(size * share), "expires_at": goes, "context_length": window}
    return {**_named(name), "details": _details(), **told}


def shown(machine: Machine, name: str) -> bytes:
    """The answer of `/api/show`."""
    model = machine.box.models[name]
    answer: dict[str, Any] = {"modelfile": f"FROM {with_tag(name)}\n", "template": "{{ .Prompt }}"}
    if model.num_ctx is not None:
        answer["parameters"] = f'stop                           "<end>"\nnum_ctx                        {model.num_ctx}'
    info = {"general.architecture": "llama", "llama.context_length": model.trained, "llama.embedding_length": 64}
    answer |= {"details": _details(), "model_info": info, "capabilities": ["completion", "tools"]}
    return orjson.dumps({**answer, "modified_at": _MODIFIED_AT})


def _llama_page(machine: Machine, path: str) -> Page:
    if not machine.is_ready:
        return loading()
    box = machine.box
    name = next(iter(box.models))
    window = box.window_of(name)
    resident = machine.memory.resident.get(name)
    busy = [slot.is_busy for slot in resident.slots.all] if resident is not None else []
    slots = [{"id": n, "id_task": n, "n_ctx": window, "is_processing": each} for n, each in enumerate(busy)]
    meta = {"n_ctx": window, "n_ctx_train": box.models[name].trained, "size": box.models[name].size}
    settings = {"id": 0, "id_task": -1, "n_ctx": window, "is_processing": False, "params": {}}
    pages: dict[str, Any] = {
        "/health": {"status": "ok"},
        "/slots": slots,
        "/props": {"default_generation_settings": settings, "total_slots": box.slots, "model_path": name},
        "/v1/models": _list([{"id": name, "aliases": [name], "owned_by": "llamacpp", "meta": meta}]),
    }
    return _json(pages[path]) if path in pages else not_found(machine)


def _vllm_page(machine: Machine, path: str) -> Page:
    box = machine.box
    name = next(iter(box.models))
    model = {"id": name, "owned_by": "vllm", "root": name, "parent": None, "max_model_len": box.window_of(name)}
    match path:
        case "/health":
            return 200, b"", "text/plain"
        case "/version":
            return _json({"version": box.version})
        case "/metrics":
            return 200, _metrics(machine, name), "text/plain; version=0.0.4; charset=utf-8"
        case "/v1/models":
            return _json(_list([model]))
        case _:
            return not_found(machine)


def _metrics(machine: Machine, name: str) -> bytes:
    gauges = {
        "vllm:num_requests_running": ("Number of requests in model execution batches.", machine.running),
        "vllm:num_requests_waiting": ("Number of requests waiting to be processed.", machine.waiting),
    }
    lines = []
    for gauge, (told, value) in gauges.items():
        lines += [f"# HELP {gauge} {told}", f"# TYPE {gauge} gauge"]
        lines.append(f'{gauge}{{engine="0",model_name="{name}"}} {float(value)}')
    return "\n".join([*lines, ""]).encode()


def loaded(name: str, reason: str, *, is_chat: bool) -> bytes:
    """An Ollama's answer to a call without a prompt, which loads or unloads."""
    now = datetime.fromtimestamp(time.time(), UTC).isoformat().replace("+00:00", "Z")
    said: dict[str, Any] = {"message": {"role": "assistant", "content": ""}} if is_chat else {"response": ""}
    return orjson.dumps({"model": name, "created_at": now, **said, "done": True, "done_reason": reason})
