"""What a box is: one machine with one model server, its models, its memory and its places.  Values alone.

    Box(
        kind="ollama", memory=24 * GB, slots=2, seconds_per_token=1e-5,
        models={"qwen3:8b": Model(size=6 * GB, load_seconds=0.3), "qwen3:32b": Model(size=20 * GB, num_ctx=8192)},
    )

`StandIn(box=...)` is that machine; as a process it is `python -m tests.standin` with `flags_of(box)`:

    --kind ollama --memory 24e9 --slots 2 --seconds-per-token 1e-5 --model qwen3:8b='delay_ms=5'
    --weights qwen3:8b='size=6e9 load_seconds=0.3' --weights qwen3:32b='size=20e9 num_ctx=8192'

Times are seconds, to be scaled down by whoever writes a test; sizes are bytes, and cost nothing.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping

GB = 10**9

Kind = Literal["ollama", "llama.cpp", "vllm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that a box has on its disk.

    Attributes:
        size: bytes in memory.
        bytes_per_token: more of them for each token of the window, in each slot.
        load_seconds: from the disk into memory.
        failing_loads: of its loads so many fail, the first ones, as of a model that is too large.
        trained: the context length it was made for, which no window exceeds.
        num_ctx: the window in its own parameters; None: the server's.
        vram_share: of what it takes up, the part that is on the card.
        says: directives (see `script`).
    """

    size: int = GB
    bytes_per_token: int = 0
    load_seconds: float = 0.0
    failing_loads: int = 0
    trained: int = 131_072
    num_ctx: int | None = None
    vram_share: float = 1.0
    says: str = ""

    def size_with(self, window: int, slots: int) -> int:
        """Bytes in memory, with such a window."""
        return self.size + self.bytes_per_token * window * slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A machine.

    Attributes:
        models: by their names, of which one without a tag means `:latest`; llama.cpp and vLLM serve the first one.
        kind: which server runs there.
        version: the one that an Ollama tells, and behaves as.
        memory: bytes that resident models share; None: there is no end of it.
        most_models: resident at once (`OLLAMA_MAX_LOADED_MODELS`); None: as many as fit.
        slots: calls at once of one model (`OLLAMA_NUM_PARALLEL`, `--parallel`, `--max-num-seqs`).
        most_waiting: calls for a model that is not ready yet; one more is refused with 503 (`OLLAMA_MAX_QUEUE`).
        num_ctx: the window of a slot, where neither call nor model say another.
        heeds_num_ctx: whether a call's own window is the one it gets, which a proxy may prevent.
        keep_alive: seconds that an Ollama keeps a model after its last call, where the call says none.
        seconds_per_token: to read a token of a prompt that is not in the slot's cache.
        image_tokens: that an image counts for.
        counts_cached: whether an Ollama's `prompt_eval_count` has what it did not read again; old versions leave it out.
        refuses_long_last: a last message that alone is too long is llama.cpp's error, as of an Ollama 0.33, not cut.
    """

    models: Mapping[str, Model] = field(default_factory=lambda: {"stand-in": Model()})
    kind: Kind = "ollama"
    version: str = "0.33.0"
    memory: int | None = None
    most_models: int | None = None
    slots: int = 1
    most_waiting: int = 512
    num_ctx: int = 4096
    heeds_num_ctx: bool = True
    keep_alive: float = 300.0
    seconds_per_token: float = 0.0
    image_tokens: int = 256
    counts_cached: bool = True
    refuses_long_last: bool = False

    @property
    def takes_truncate(self) -> bool:
        """Whether it heeds `truncate`, which Ollamas do from 0.13 on."""
        found = re.match(r"(\d+)\.(\d+)", self.version)
        return found is not None and (int(found[1]), int(found[2])) >= (0, 13)

    def name_of(self, told: str) -> str | None:
        """The model that a call means, as it stands in `models`; None: there is none of that name."""
        if self.kind == "llama.cpp":  # it has one, and does not look at the name
            return next(iter(self.models))
        if self.kind == "vllm":
            return told if told == next(iter(self.models)) else None
        full = with_tag(told)
        return next((name for name in self.models if with_tag(name) == full), None)

    def window_of(self, name: str, asked: int | None = None) -> int:
        """The window that a model is loaded with for a call that asks for `asked`."""
        model = self.models[name]
        asked = asked if self.heeds_num_ctx else None
        wanted = (asked or model.num_ctx or self.num_ctx) if self.kind == "ollama" else self.num_ctx
        return min(wanted, model.trained)


def with_tag(name: str) -> str:
    """A model's whole name."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


_LARGE = {"size", "bytes_per_token", "memory"}  # written as 24e9


def _read(name: str, text: str, kind: str) -> Any:
    """A value from its text, by the type that its field is annotated with."""
    if name in _LARGE:
        return int(float(text))
    if kind.startswith("int"):
        return int(text)
    if kind == "float":
        return float(text)
    return text not in {"0", "false"} if kind == "bool" else text


_BOX_FIELDS = {each.name: str(each.type) for each in fields(Box) if each.name != "models"}
_MODEL_FIELDS = {each.name: str(each.type) for each in fields(Model) if each.name != "says"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a box; `--model` is there already."""
    group = parser.add_argument_group("box", "what makes it a machine with memory and places; see tests/standin/box.py")
    group.add_argument("--weights", action="append", default=[], metavar="NAME=FIELDS", help="size=6e9 load_seconds=1")
    for name in _BOX_FIELDS:
        choices = get_args(Kind) if name == "kind" else None
        group.add_argument(f"--{name.replace('_', '-')}", choices=choices)


def read_flags(options: argparse.Namespace, says: Mapping[str, str]) -> Box | None:
    """The box that flags describe; None where they speak of none.

    Args:
        options: as parsed.
        says: models and their directives.
    """
    told = {name: text for name in _BOX_FIELDS if (text := getattr(options, name)) is not None}
    weights = dict(each.partition("=")[::2] for each in options.weights)
    if not told and not weights:
        return None
    models = {name: _read_model(weights.get(name, ""), says.get(name, "")) for name in {**says, **weights}}
    values = {name: _read(name, text, _BOX_FIELDS[name]) for name, text in told.items()}
    return Box(models=models or {"stand-in": Model()}, **values)


def _read_model(text: str, says: str) -> Model:
    pairs = (word.partition("=")[::2] for word in shlex.split(text))
    return Model(**{name: _read(name, value, _MODEL_FIELDS[name]) for name, value in pairs}, says=says)


def flags_of(box: Box) -> list[str]:
    """The flags that make a process this box."""
    flags = []
    for name, value in _told(box, _BOX_FIELDS):
        flags += [f"--{name.replace('_', '-')}", value]
    for name, model in box.models.items():
        told = " ".join(f"{key}={value}" for key, value in _told(model, _MODEL_FIELDS))
        flags += ["--model", f"{name}={model.says}", "--weights", f"{name}={told}"]
    return flags


def _told(value: Box | Model, names: Iterable[str]) -> list[tuple[str, str]]:
    pairs = ((name, getattr(value, name)) for name in names)
    return [(name, str(int(each) if isinstance(each, bool) else each)) for name, each in pairs if each is not None]
