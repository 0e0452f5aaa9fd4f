"""The calls to models: a module or room per wire protocol, and what they share.

- `factory`: the door.  `wiring` and `check` come in here, and nobody comes in elsewhere.
- `ollama`, `openai`, `anthropic`: a protocol each: `backend` is its `protocol.Backend`, `request` writes what is sent,
  `answer` reads what comes.  `litellm`: every other provider, through the library of that name.
- `wire`: HTTP, framing and the course of one exchange, the same for every protocol.
- `faults`, `known_messages`: from what goes wrong to a `BackendError`.  `finish_reasons`, `toolcalls`, `usage`: what
  servers say alike.  `answer_format`, `data_urls`: how a schema or an image is put to them.  `optional_fields`,
  `prompt_cut`, `server_kind`: in what servers are unlike their protocol.

Imports `config` (its values), `accounting`, `protocol` and below; nothing of the queue, nothing that runs.

Another backend: a module here with a function `make_backends(deployments, transport)`, as `ollama/__init__` has it, and
a row of the module's name in `config.providers`.  Another server that speaks a protocol we know: a row there alone.
"""
